"""The pictures of the documentation are what their script draws."""

from __future__ import annotations

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "figures"
LARGEST = 60_000


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = spec_from_file_location("figures_make", FOLDER / "make.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def numbers_and_words(svg: str) -> tuple[int, list[str]]:
    """How many shapes there are, and every text: what does not depend on a font or on a release of matplotlib."""
    root = ElementTree.fromstring(svg)
    return len(list(root.iter("{http://www.w3.org/2000/svg}path"))), [
        text.text or "" for text in root.iter("{http://www.w3.org/2000/svg}text")
    ]


def test_pictures_are_up_to_date(make: ModuleType, tmp_path: Path) -> None:
    make.main(tmp_path)
    drawn, committed = (
        {path.name: path.read_text("utf-8") for path in where.glob("*.svg")} for where in (tmp_path, FOLDER)
    )
    assert set(drawn) == set(committed)
    for name, svg in drawn.items():
        assert numbers_and_words(svg) == numbers_and_words(committed[name]), f"run docs/figures/make.py: {name}"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.svg")), ids=lambda path: path.stem)
def test_pictures_are_small_and_can_be_read_aloud(path: Path) -> None:
    svg = path.read_text(encoding="utf-8")
    assert len(svg.encode()) < LARGEST
    assert re.match(r'<svg role="img" aria-label="[^"]{20,}"', svg)
    assert not re.findall(r"<script|https?://(?!www\.w3\.org)", svg)
