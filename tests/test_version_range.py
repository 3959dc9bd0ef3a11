"""The range of transformers is one: in pyproject.toml, in the pins, in the code; others are warned of."""

from __future__ import annotations

import importlib.metadata
import re
import warnings
from pathlib import Path

import pytest

from mega_transformers import releases

ROOT = Path(__file__).parents[1]


def test_the_range_is_the_same_everywhere() -> None:
    lowest = re.search(r'"transformers>=([\d.]+),<6"', (ROOT / "pyproject.toml").read_text())
    pinned = re.search(r"^transformers==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert lowest is not None
    assert pinned is not None
    assert releases.OLDEST_TESTED in (lowest[1], f"{lowest[1]}.0")
    assert pinned[1] == releases.NEWEST_TESTED


@pytest.mark.parametrize("installed", ["5.24.1", "5.25.0.dev0", "6.0.0", "5.17.0"])
def test_an_untested_release_is_warned_of(installed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases, "version", lambda name: installed)
    with pytest.warns(UserWarning, match=rf"transformers {re.escape(installed)} .*mega doctor") as caught:
        releases.warn_of_untested_release()
    assert len(caught) == 1


@pytest.mark.parametrize("installed", [releases.OLDEST_TESTED, "5.20.1", releases.NEWEST_TESTED])
def test_a_tested_release_is_not_warned_of(installed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases, "version", lambda name: installed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        releases.warn_of_untested_release()


def test_without_transformers_there_is_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(releases, "version", missing)
    releases.warn_of_untested_release()
