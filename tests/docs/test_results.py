"""The tables of docs/results.md are made from the runs in docs/results.csv."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import training_results as results

CARD = """| command | `mega train compare/x --set seed={seed}{more}` |
| commit | 1234567 |
| hardware | a processor, 1 thread |
| software | Python 3.11 |
| date | 2026-11-29 |
"""


def finished(folder: Path, seed: int, accuracy: float, more: str = "") -> results.Record:
    """A run's folder as `mega train` leaves it, read."""
    model = {"architecture": "bert", "mega": {}, "bert": {"learning_rate": 0.001}}
    recipe = {"name": "compare-x", "task": "sequence-classification", "seed": seed, "model": model, "training": {}}
    scores = {role: {"model": {"accuracy": accuracy}} for role in ("validation", "test")}
    said: dict[str, Any] = {"steps": 1000, "parameters": 1234, "scores": scores, "memory": 10**9, "hours": 0.1}
    said["processor_seconds_per_step"] = 0.5
    (folder / "model").mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps(recipe))
    (folder / "results.json").write_text(json.dumps(said))
    (folder / "model" / "README.md").write_text(CARD.format(seed=seed, more=more))
    return results.read(folder)


def test_tables_of_the_page_are_those_of_the_runs() -> None:
    page = results.PAGE.read_text(encoding="utf-8")
    records = results.stored()
    assert len(records) > 20
    assert results.with_tables(page, records) == page


def test_seeds_are_one_row_with_mean_and_deviation(tmp_path: Path) -> None:
    runs = [finished(tmp_path / str(seed), seed, accuracy) for seed, accuracy in ((1, 0.5), (0, 0.7))]
    row = results.table(results.recorded([], runs)).splitlines()[-1]
    scores = "60.0% ± 14.1%"
    name = "bert (a Transformer with learned positions)"
    assert row == f"| {name} | 1,234 | 0.001 | 1,000 | 0, 1 | {scores} | {scores} | 0.500 ± 0.000 | 1.00 ± 0.00 |"


def test_other_settings_are_a_row_of_their_own(tmp_path: Path) -> None:
    settings = ("", " --set model.bert.learning_rate=0.002")
    runs = [finished(tmp_path / str(seed), seed, 0.5, more) for seed, more in enumerate(settings)]
    assert len(results.table(results.recorded([], runs)).splitlines()) == 2 + len(settings)


def test_a_run_replaces_its_older_one(tmp_path: Path) -> None:
    old, new = (finished(tmp_path / str(accuracy), 0, accuracy) for accuracy in (0.5, 0.6))
    assert results.recorded([old], [new]) == [new]


def test_a_page_without_the_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must have the line <!-- compare-x --> once, and has it 0 times"):
        results.with_tables("# Results\n", [finished(tmp_path / "run", 0, 0.5)])


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not the output folder of a finished run: .*recipe\.json"):
        results.read(tmp_path)
