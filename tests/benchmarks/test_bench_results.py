"""Medians, ratios, targets, the result file, and the check that two peers agree."""

import json

import pytest
import torch
from fakes import empty_report, run
from safetensors.torch import save_file

from benchmarks import results
from benchmarks.agreement import DisagreementError, compare_files
from benchmarks.cases import CASES, OLD, OURS, Comparison, Series, Target, Workload
from benchmarks.results import Measurement, Report

CASE = Comparison("c", "a case", Workload("train", 8), {OLD: Target(speed=4.0, memory=0.25)})


def measured(peer, cpu_seconds, sizes, key=None, length=8):
    wall = [20 * second for second in cpu_seconds] if peer == OURS else cpu_seconds
    return Measurement(key or peer, peer, Workload("train", length).to_dict(), 1, wall, cpu_seconds, sizes, "VmHWM")


def test_ratios_are_of_medians():
    ours, theirs = measured(OURS, [1.0, 9.0, 2.0], [4, 1, 2]), measured(OLD, [8.0, 7.0, 100.0], [8, 80, 7])
    (row,) = results.rows(CASE, [ours, theirs], {OLD: 0.5})
    assert (row.ours_cpu_seconds, row.their_cpu_seconds, row.ours_bytes, row.their_bytes) == (2.0, 8.0, 2, 8)
    assert (row.ours_seconds, row.their_seconds, row.wall_speed) == (40.0, 8.0, 0.2)
    assert row.speed == 4.0 and row.memory == 0.25
    assert row.speed_met is True and row.memory_met is True  # a target that is just reached is met
    assert row.agreement == 0.5 and row.refused is None


def test_targets_missed():
    ours, theirs = measured(OURS, [2.01], [3]), measured(OLD, [8.0], [8])
    (row,) = results.rows(CASE, [ours, theirs], {})
    assert row.speed_met is False and row.memory_met is False


def test_no_target_is_neither_met_nor_missed():
    case = Comparison("c", "", CASE.workload, {OLD: Target()})
    (row,) = results.rows(case, [measured(OURS, [1.0], [1]), measured(OLD, [2.0], [2])], {})
    assert row.speed == 2.0 and row.speed_met is None and row.memory_met is None


@pytest.mark.parametrize("broken", [OURS, OLD])
def test_errors_refuse_the_ratio(broken):
    pair = [measured(OURS, [1.0], [1]), measured(OLD, [2.0], [2])]
    next(entry for entry in pair if entry.key == broken).error = "out of memory"
    (row,) = results.rows(CASE, pair, {})
    assert row.speed is row.memory is None and "out of memory" in row.refused and broken in row.refused


def test_growth_is_last_over_first():
    curve = tuple(Workload("infer", length) for length in (4, 8, 16))
    case = Series("s", "", {"x": curve}, growth=4.0)
    points = [
        measured(OURS, [second], [size], f"x@{workload.length}", workload.length)
        for workload, second, size in zip(curve, (1.0, 100.0, 4.0), (10, 0, 41))
    ]
    (row,) = results.rows(case, points, {})
    assert row.growth and row.speed == 4.0 and row.memory == 4.1
    assert row.speed_met is True and row.memory_met is False


def test_memory_may_have_a_growth_of_its_own():
    case = Series("s", "", {"x": (Workload("decode", 4), Workload("decode", 8))}, growth=1.2, memory_growth=1.0)
    points = [measured(OURS, [1.0], [size], f"x@{length}", length) for length, size in ((4, 10), (8, 11))]
    (row,) = results.rows(case, points, {})
    assert (row.speed_target, row.speed_met, row.memory_target, row.memory_met) == (1.2, True, 1.0, False)


def test_ratio_without_a_denominator():
    assert results.ratio(1.0, 0.0) is None and results.ratio(None, 1.0) is None and results.ratio(1.0, None) is None


def test_file_round_trip(tmp_path):
    report, _, _ = run(CASES["train-2048-full"])
    path = tmp_path / "new folder" / "r.json"
    report.save(path)
    assert Report.load(path) == report
    assert [entry.name for entry in path.parent.iterdir()] == ["r.json"]
    data = json.loads(path.read_text())
    assert data["schema"] == results.SCHEMA
    assert {"cpu", "vendor", "family", "flags", "cores", "memory_bytes"} <= data["machine"].keys()
    assert data["git"].keys() == {"revision", "dirty"}
    for name in ("date", "command", "seed", "threads", "repeats", "versions"):
        assert data[name] is not None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 999}', '{"schema": 1, "cases": [{}]}'])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"r\.json"):
        Report.load(path)


def test_a_file_without_processor_time_is_refused_with_the_remedy(tmp_path):
    path = tmp_path / "r.json"
    path.write_text('{"schema": 1, "cases": []}')
    with pytest.raises(ValueError, match=r"no processor time: run the benchmark again"):
        Report.load(path)


def test_stolen_time_is_a_share_of_the_time_cores_had_work():
    assert results.stolen_share((100, 10), (180, 30)) == 0.25
    assert results.stolen_share(None, None) is results.stolen_share((1, 1), (1, 1)) is None
    if ticks := results.processor_ticks():
        assert ticks[0] > ticks[1] >= 0


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not a result file"):
        Report.load(tmp_path / "none.json")


def test_default_path_names_date_and_machine():
    report = empty_report()
    report.machine = {"cpu": "Some(R) Core(TM) i9 CPU @ 2.80GHz", "cores": 3}
    assert results.default_path(report).name == "2024-02-03-some-core-i9-2.80ghz-3c.json"
    report.quick = True
    assert results.default_path(report).name.endswith("-quick.json")
    report.before = {"revision": None, "dirty": None}
    assert results.default_path(report).name.endswith("-before-after-quick.json")


def agreement(tmp_path, ours, theirs):
    save_file(ours, tmp_path / "a")
    save_file(theirs, tmp_path / "b")
    return compare_files(tmp_path / "a", tmp_path / "b")


def test_agreement_is_a_share_of_what_is_allowed(tmp_path):
    theirs = torch.tensor([3.0, -1.0])
    assert agreement(tmp_path, {"output": theirs}, {"output": theirs}) == 0
    half = {"output": theirs + torch.tensor([0.0, 4e-5])}  # allowed is 2e-5 * (1 + 3)
    assert agreement(tmp_path, half, {"output": theirs}) == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        ({"output": torch.tensor([3.0, -1.0 + 1e-4])}, "output differs"),
        ({"output": torch.tensor([3.0, float("nan")])}, "output differs"),
        ({"output": torch.tensor([3.0])}, "shape"),
        ({"loss": torch.tensor([3.0, -1.0])}, "one side only"),
    ],
)
def test_disagreement(tmp_path, ours, message):
    with pytest.raises(DisagreementError, match=message):
        agreement(tmp_path, ours, {"output": torch.tensor([3.0, -1.0])})


def test_tokens_must_be_equal(tmp_path):
    theirs = {"tokens": torch.tensor([[5, 8000], [7, 9]])}
    assert agreement(tmp_path, {"tokens": theirs["tokens"].clone()}, theirs) == 0
    with pytest.raises(DisagreementError, match="tokens: 1 of 4 are different"):
        agreement(tmp_path, {"tokens": theirs["tokens"] + torch.tensor([[0, 0], [0, 1]])}, theirs)


def test_gradients_are_judged_by_norm(tmp_path):
    theirs = {"gradient.a": torch.full((100,), 1e-6), "gradient.b": torch.ones(100)}
    close = {**theirs, "gradient.b": theirs["gradient.b"] * 1.0001}
    assert agreement(tmp_path, close, theirs) == pytest.approx(0.5, rel=0.05)
    with pytest.raises(DisagreementError, match=r"gradient\.b"):
        agreement(tmp_path, {**theirs, "gradient.b": theirs["gradient.b"] * 1.0004}, theirs)
    with pytest.raises(DisagreementError, match=r"gradient\.a"):  # absolutely tiny, but wrong by its own measure
        agreement(tmp_path, {**theirs, "gradient.a": theirs["gradient.a"] * 100}, theirs)
