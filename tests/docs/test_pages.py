"""Every block of Python and of commands in the documentation runs, from the top of a page to its end.

Blocks of a page share their names, as in a notebook. A block that cannot run here follows a comment that says why:
`<!--- skip: next "needs a GPU" -->`.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from pathlib import Path
from unittest import SkipTest

import pytest
from commands import parse as _parse
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser
from typer.testing import CliRunner

from mega_transformers.cli import app

ROOT = Path(__file__).parents[2]
CARDS = ROOT / "docs" / "cards"  # of models that are not here
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if not page.is_relative_to(CARDS)]
MAKEFILE = (ROOT / "Makefile").read_text()
LAUNCHERS = ("torchrun", "accelerate")
PARSED = {
    "bench": "minutes",
    "convert": "a checkpoint of another code base",
    "demo": "does not end",
    "doctor": "half a minute",
    "export-onnx": "half a minute; tests/onnx_export",
    "inspect": "a quarter of a minute",
    "publish": "the hub",
    "run": "a command of another package",
}
"""Commands whose words are parsed but which do not run, and why; their own tests run them."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_runs(page: Path, reader: Path) -> None:
    sybil = Sybil(parsers=[PythonCodeBlockParser(), CodeBlockParser("bash", _run), SkipParser()], encoding="utf-8")
    for example in sybil.parse(page).examples():
        with contextlib.suppress(SkipTest):  # of one block, not of the page
            example.evaluate()


def _run(example: Example) -> None:
    """Runs the commands of a block; of those of other programs it checks what can be checked."""
    for line in re.sub(r"\\\n", " ", example.parsed).splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words.pop(0)
        if words:
            _run_command(words)


def _run_command(words: list[str]) -> None:
    program, *rest = words
    if program == "make":
        for target in (word for word in rest if "=" not in word):
            assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), f"make {target}: there is no such target"
    elif program == "mega":
        _run_mega(rest)
    elif program == "pip":
        extras = re.findall(r"\[([\w,]+)\]", " ".join(rest))
        known = re.findall(r"^([\w-]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
        assert {extra for names in extras for extra in names.split(",")} <= set(known), rest
    elif program in LAUNCHERS:
        assert "mega_transformers" in rest or any(word.endswith(".py") for word in rest), words
        if "mega_transformers" in rest:
            _parse(rest[rest.index("mega_transformers") + 1 :])
    elif program == "python":
        module = rest[rest.index("-m") + 1].replace(".", "/") + ".py" if "-m" in rest else rest[0]
        assert (ROOT / module).is_file(), f"python {shlex.join(rest)}: there is no {module}"
    elif program == "cd":
        pass
    else:
        raise AssertionError(f"nothing is known of {program}; skip the block, and say why")


def _run_mega(words: list[str]) -> None:
    """A command of ours: its words are always parsed, and it runs unless it is one of `PARSED`."""
    ends = [i for i, word in enumerate(words) if word in ("<", ">", "|")]
    given = Path(words[words.index("<") + 1]).read_text() if "<" in words else None
    words = words[: ends[0]] if ends else words
    _parse(words)
    if words[0] not in PARSED:
        result = CliRunner().invoke(app, words, input=given)
        assert result.exit_code == 0, f"mega {shlex.join(words)}: {result.output}"
