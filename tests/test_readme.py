"""The README keeps its promises: its Python runs, and what it names exists."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """The README's shell commands as words, without comments, redirections and pipes."""
    lines = (line for block in blocks("bash") for line in block.splitlines() if line.strip())
    return [re.split(r" [<>|] ", shlex.join(shlex.split(line, comments=True)))[0].split() for line in lines]


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.splitlines()[-1])
def test_python_runs(
    code: str, tiny_checkpoint: Path, tiny_causal_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder where a small checkpoint stands in for the hub's ids."""
    if "sentence_transformers" in code:
        pytest.importorskip("sentence_transformers")
    for hub_id in set(re.findall(r'\("([\w-]+/[\w.-]+)"', code)):
        shutil.copytree(tiny_causal_checkpoint if "CausalLM" in code else tiny_checkpoint, tmp_path / hub_id)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = [command[1] for command in commands() if command[0] == "make"]
    named += re.findall(r"`make (?:\w+=\S+ )?([\w-]+)`", README)
    assert {"demo", "docs", "test"} <= set(named) <= targets


def test_first_commands_are_demo_and_test() -> None:
    assert commands()[:2] == [["make", "demo"], ["make", "test"]]


def test_recipes_exist() -> None:
    for recipe in re.findall(r"recipes/[\w.-]+\.yaml", README):
        assert (ROOT / recipe).is_file()


def test_tree_is_the_code() -> None:
    (tree,) = re.findall(r"^```text\n(src/.*?)^```", DESIGN, flags=re.MULTILINE | re.DOTALL)
    package = ROOT / "src" / "mega_transformers"
    named = re.findall(r"^  ([\w/.]+)(?=[ ,\n])|, (\w+/)", tree, flags=re.MULTILINE)
    paths = [first or second for first, second in named]
    assert all((package / path).exists() for path in paths)
    folders = {path.name for path in package.iterdir() if path.is_dir() and not path.name.startswith("__")}
    assert {path.split("/")[0] for path in paths if "/" in path} == folders
    modules = {path.name for path in package.glob("*.py") if not path.name.startswith("_")}
    assert {path for path in paths if path.endswith(".py")} == modules


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
        if "://" not in target and target != "reference/commands.md":  # which is made with the site
            assert (document.parent / target).exists(), target
