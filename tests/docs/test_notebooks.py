"""Tutorials as notebooks: the code of the page, in its order."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(r"^```(python|bash)\n(.*?)\n```$", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def hooks() -> Any:
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_tutorials() -> None:
    assert TUTORIALS


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_notebook_has_the_code_of_its_page(page: Path, hooks: Any) -> None:
    text = page.read_text(encoding="utf-8")
    made = nbformat.reads(hooks.notebook(text), as_version=4)
    nbformat.validate(made)
    cells = [cell.source for cell in made.cells if cell.cell_type == "code"]
    blocks = BLOCK.findall(text)
    assert len(cells) == len(blocks) > 0
    for cell, (language, code) in zip(cells, blocks):
        assert (re.sub("^!", "", cell, flags=re.MULTILINE) if language == "bash" else cell) == code


def test_commands_become_cells_that_run_them(hooks: Any) -> None:
    page = "# A\n\n```bash\n# first\nmega train a.yaml\n```\n\nSee [b](../b.md), [c](https://c.org).\n\n```text\nout\n```\n"
    made = nbformat.reads(hooks.notebook(page), as_version=4)
    assert [cell.source for cell in made.cells if cell.cell_type == "code"] == ["# first\n!mega train a.yaml"]
    rest = "\n".join(cell.source for cell in made.cells if cell.cell_type == "markdown")
    assert "See b, [c](https://c.org)." in rest and "```text\nout\n```" in rest
    assert hooks.notebook(page) == hooks.notebook(page)


def test_a_page_links_to_its_notebook(hooks: Any) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri=f"tutorials/{TUTORIALS[0].name}"))
    shown = hooks.on_page_markdown(TUTORIALS[0].read_text(encoding="utf-8"), page, None, None)
    assert f"[Download this page as a notebook]({TUTORIALS[0].stem}.ipynb)" in shown.split("\n##")[0]
