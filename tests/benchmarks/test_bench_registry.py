"""The registries of cases and peers are consistent, and bad options are refused."""

import sys

import pytest

from benchmarks.cases import (
    BEFORE,
    CASES,
    ONE_BY_ONE,
    OURS,
    QUICK_DIVISOR,
    Comparison,
    Series,
    before_after,
    select,
)
from benchmarks.peers import PEERS, interpreter, parse_pythons


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("divisor", [1, QUICK_DIVISOR])
def test_subjects(case, divisor):
    groups = case.scaled(divisor).groups
    subjects = [subject for group in groups for subject in group]
    assert len({subject.key for subject in subjects}) == len(subjects)
    assert all(subject.peer in PEERS for subject in subjects)
    for subject in subjects:
        assert subject.workload.length >= 1
        assert subject.workload.chunk is None or 1 <= subject.workload.chunk <= subject.workload.length
    if isinstance(case, Comparison):
        assert len(groups) == 1 and subjects[0].key == OURS
        assert len({subject.workload for subject in subjects}) == 1
        assert OURS not in case.against


def test_dropout_sparse_and_dense_are_compared_with_their_like():
    comparisons = [case for case in CASES.values() if isinstance(case, Comparison)]
    headline = [case for case in comparisons if any(target.speed for target in case.against.values())]
    assert headline
    for case in headline:
        assert case.workload.dropout == 0 and not case.workload.sparse
    for case in comparisons:  # 4.40.2 has no sparse prediction
        assert not (case.workload.sparse and any(PEERS[peer].same_weights for peer in case.against))


def test_scaling_is_a_factor_of_sixteen():
    (curve,) = CASES["infer-scaling"].curves.values()
    assert curve[-1].length == 16 * curve[0].length == 65536


@pytest.mark.parametrize("divisor", [1, QUICK_DIVISOR])
def test_decoding_steps_sit_at_the_same_place_of_a_chunk(divisor):
    (curve,) = CASES["decode-scaling"].scaled(divisor).curves.values()
    first, last = curve[0], curve[-1]
    assert len({workload.length % workload.chunk for workload in curve}) == 1
    assert first.length % first.chunk + first.new_tokens <= first.chunk  # no step of a run enters another chunk
    assert last.length > 200 * first.length


def test_causal_models_generate_and_no_others():
    tasks = ("prefill", "decode", "generate")
    for case in CASES.values():
        for workload in (subject.workload for group in case.groups for subject in group):
            assert (workload.head in ("causal-lm", "text-to-text")) == (workload.task in tasks)
            assert (workload.new_tokens > 0) == (workload.task in ("decode", "generate"))
            assert workload.batch == 1 or workload.task == "generate"
    # what is generated in another way must be the same tokens
    assert PEERS[ONE_BY_ONE].same_weights and ONE_BY_ONE in CASES["generate-batch8"].against


def test_series_in_turns():
    def sets(series):
        return [{subject.workload.length for subject in group} for group in series.groups]

    assert len(sets(CASES["infer-scaling"])) == 1
    by_length = sets(CASES["ema-crossover"])
    assert all(len(lengths) == 1 for lengths in by_length) and len(by_length) > 1
    assert isinstance(CASES["ema-crossover"], Series)


def test_before_and_after_is_every_case_that_calls_no_op():
    chosen, left_out = before_after(select(None))
    assert left_out == ["ema-crossover", "attention-crossover"]
    names = [case.name for case in chosen]
    assert len(set(names)) == len(names)
    assert set(names) >= {case.name for case in CASES.values() if isinstance(case, Comparison)}
    assert {f"infer-scaling/encoder@{length}" for length in (4096, 65536)} <= set(names)
    for case in chosen:
        assert list(case.against) == [BEFORE] and PEERS[BEFORE].same_weights
        assert [subject.peer for subject in case.scaled(QUICK_DIVISOR).groups[0]] == [OURS, BEFORE]


def test_select():
    assert select(None) == select([]) == list(CASES.values())
    assert [case.name for case in select(["ema-op", "train-2048-full"])] == ["train-2048-full", "ema-op"]
    with pytest.raises(ValueError, match=r"Unknown case 'nope'.*train-2048-full"):
        select(["ema-op", "nope"])


def test_parse_pythons(tmp_path):
    assert parse_pythons([f"transformers-4.40.2={sys.executable}"])["transformers-4.40.2"].samefile(sys.executable)
    plain = tmp_path / "file"
    plain.touch()
    for entry, what in (
        (sys.executable, "expected PEER="),
        ("roberta=", "expected PEER="),
        (f"nope={sys.executable}", "unknown peer 'nope'"),
        (f"roberta={plain}", "not an executable file"),
        (f"roberta={tmp_path}", "not an executable file"),
    ):
        with pytest.raises(ValueError, match=what):
            parse_pythons([entry])


def test_interpreter_of_a_peer_without_requirements_is_ours(tmp_path):
    assert str(interpreter(PEERS["roberta"], {}, print)) == sys.executable
    assert interpreter(PEERS["roberta"], {"roberta": tmp_path}, print) == tmp_path


def test_environment_that_cannot_be_made_leaves_nothing_marked_complete(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.peers.REPOSITORY", tmp_path)
    monkeypatch.setattr("benchmarks.peers._base_python", lambda peer: "false")
    peer = PEERS["transformers-4.40.2"]
    with pytest.raises(RuntimeError, match=r"--peer-python transformers-4\.40\.2="):
        interpreter(peer, {}, lambda text: None)
    assert not list(tmp_path.rglob("complete"))
