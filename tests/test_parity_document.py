"""docs/parity.md says of every difference which test pins it, and those tests exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIFFERENCES, PINS = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8").split("## 6. The tests that pin them")


def test_every_difference_is_pinned() -> None:
    differences = re.findall(r"^\| ([A-Z]\d+) \|", DIFFERENCES, flags=re.MULTILINE)
    rows = re.findall(r"^\| ([A-Z]\d[A-Z\d, ]*) \|", PINS, flags=re.MULTILINE)
    pinned = [row for some in rows for row in some.split(", ")]
    assert len(differences) == len(set(differences)) > 50
    assert sorted(pinned) == sorted(differences)


def test_the_tests_exist() -> None:
    named = set(re.findall(r"`([\w/.]+\.py)::(\w+)`", PINS))
    assert len(named) > 40
    for file, test in named:
        assert re.search(rf"^def {test}\(", (ROOT / "tests" / file).read_text(encoding="utf-8"), flags=re.MULTILINE), (
            test
        )
