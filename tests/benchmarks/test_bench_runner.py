"""What the runner does, in which order, and what it refuses."""

import os
import sys
import time
from pathlib import Path

import pytest
import torch
from fakes import run
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.build import build
from benchmarks.cases import BEFORE, CASES, MATMULS, MODERNBERT, OLD, OURS, ROBERTA, Subject, Workload
from benchmarks.client import Worker, WorkerError


def test_order_of_a_comparison():
    _, journal, listener = run(CASES["train-2048-full"])
    check, measuring = journal[: journal.index((OURS, "memory"))], [e for e in journal if e[1] in ("memory", "time")]
    warm_up = "time"
    assert check.index((OLD, "check")) < check.index((OURS, "load with weights")) < check.index((OURS, "check"))
    assert (OURS, "load") not in journal
    process = [(peer, what) for what in ("memory", warm_up, "time") for peer in (OURS, OLD)]
    backwards = [(peer, what) for what in ("memory", warm_up, "time") for peer in (OLD, OURS)]
    assert measuring == process + backwards + process
    assert listener.steps == listener.announced
    starts = [key for key, what in journal if what == "start"]
    assert len(starts) == len([key for key, what in journal if what == "close"]) == 2 + 2 * 3


def test_rounds_are_divided_among_processes_and_change_direction():
    settings = {"repeats": 4, "memory_repeats": 2}
    _, journal, listener = run(CASES["train-2048-full"], settings=settings)
    measuring = [(key == OURS, what) for key, what in journal if what in ("memory", "time")]
    ours_first = [pair[0][0] for pair in zip(measuring[::2], measuring[1::2])]
    # of each process memory, warm-up and two rounds
    assert ours_first == [True, True, True, False, False, False, False, True]
    assert listener.steps == listener.announced


def test_warm_up_is_not_counted():
    report, _, _ = run(CASES["train-2048-full"])
    ours, theirs = report.cases[0].measurements
    assert ours.cpu_seconds == [1.0, 2.0, 3.0] and theirs.cpu_seconds == [12.0, 10.0, 5.0]
    assert ours.seconds == [6.0, 7.0, 8.0]
    assert ours.memory_bytes == [100, 300, 200]
    (row,) = report.cases[0].rows
    assert row.speed == 5.0 and row.wall_speed == 15 / 7 and row.memory == pytest.approx(200 / 900)
    assert row.agreement == 0


def test_calls_are_counted_last_and_of_decoding_only():
    report, journal, listener = run(CASES["decode-512-full"])
    assert journal.index((OURS, "calls")) > max(i for i, entry in enumerate(journal) if entry[1] == "time")
    assert (report.cases[0].rows[0].ours_calls, report.cases[0].rows[0].their_calls) == (70, 30)
    assert listener.steps == listener.announced
    assert not [entry for entry in run(CASES["train-2048-full"])[1] if entry[1] == "calls"]


@pytest.mark.parametrize("chunk", [None, 32])
def test_matrix_products_of_a_training_step(chunk):
    length, workload = 96, Workload("train", 96, chunk=chunk)
    subject, ours = build(MATMULS, workload, 0), build(OURS, workload, 0)
    rows = []
    linear = [layer for layer in ours.module.modules() if isinstance(layer, torch.nn.Linear)]
    for layer in linear:
        layer.register_forward_pre_hook(lambda layer, inputs: rows.append(inputs[0].shape[:-1].numel()))
    ours.module(input_ids=ours.input_ids, labels=ours.labels)
    assert rows == [length] * len(linear)  # each is applied once, to every token
    with FlopCounterMode(display=False) as counter:
        subject.step()
    products = 3 * length * sum(layer.weight.numel() for layer in linear) + 4 * 3 * length * (chunk or length) * (
        64 + 512
    )
    assert counter.get_total_flops() == 2 * products
    assert subject.memory()[0] == 0  # which gives no ratio
    with FlopCounterMode(display=False) as counter:
        ours.step()
    assert counter.get_total_flops() > 2 * products  # the EMA's, and what is made twice


def test_no_speed_up_of_a_wrong_result():
    report, journal, listener = run(CASES["train-8192-chunk512"], wrong=1e-3)
    rows = {row.against: row for row in report.cases[0].rows}
    assert "no speed-up of a wrong result" in rows[OLD].refused
    assert rows[OLD].speed is rows[OLD].ours_seconds is rows[OLD].memory is None
    assert (OLD, "time") not in journal
    assert rows[MODERNBERT].speed is not None and rows[ROBERTA].speed is not None
    assert listener.steps == listener.announced


def test_a_broken_peer_leaves_the_others():
    report, _, _ = run(CASES["train-8192-chunk512"], broken=MODERNBERT)
    rows = {row.against: row for row in report.cases[0].rows}
    assert "it broke" in rows[MODERNBERT].refused
    assert rows[OLD].speed is not None


def test_when_ours_is_broken_nothing_is_measured():
    report, journal, listener = run(CASES["train-8192-chunk512"], broken=OURS)
    assert all("it broke" in row.refused for row in report.cases[0].rows)
    assert not [entry for entry in journal if entry[1] in ("time", "memory")]
    assert listener.steps == listener.announced


def test_a_series_has_no_check_and_measures_length_by_length():
    _, journal, listener = run(CASES["ema-crossover"])
    assert not [entry for entry in journal if entry[1] == "check"]
    timed = [int(key.partition("@")[2]) for key, what in journal if what == "time"]
    assert timed == sorted(timed)
    assert listener.steps == listener.announced


def test_a_real_worker():
    workload = Workload("train", 24)
    with Worker(Path(sys.executable), threads=1) as worker:
        facts = worker.load(Subject(ROBERTA, ROBERTA, workload), 0, 1, None)
        assert facts["parameters"] > 0 and {"python", "torch", "transformers"} <= facts["versions"].keys()
        size, method = worker.memory()
        assert size > facts["parameters"] * 4 and method in ("VmHWM", "ru_maxrss")  # the gradients at least
        seconds, cpu_seconds = worker.time()
        assert 0 < cpu_seconds < 1.5 * seconds  # of one thread
        with pytest.raises(WorkerError, match="KeyError"):
            worker._ask("nonsense")
        assert worker.time()[0] > 0


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_worker_that_waits_uses_no_processor(threads):
    def ticks(worker):
        stat = Path(f"/proc/{worker._process.pid}/stat").read_text()
        return sum(map(int, stat.rpartition(")")[2].split()[11:13]))  # utime and stime

    with Worker(Path(sys.executable), threads) as worker:
        worker.load(Subject(OURS, OURS, Workload("train", 256)), 0, threads, None)
        worker.time()
        before = ticks(worker)
        time.sleep(1)
        assert (ticks(worker) - before) / os.sysconf("SC_CLK_TCK") < 0.1


def test_a_worker_takes_the_package_from_the_tree_it_is_given(tmp_path):
    subject = Subject(BEFORE, BEFORE, Workload("train", 24))
    with (
        Worker(Path(sys.executable), 1, tmp_path) as worker,
        pytest.raises(WorkerError, match="mega_transformers comes"),
    ):
        worker.load(subject, 0, 1, None)
    package = tmp_path / "src" / "mega_transformers"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('this is the other tree')")
    with (
        Worker(Path(sys.executable), 1, tmp_path) as worker,
        pytest.raises(WorkerError, match="this is the other tree"),
    ):
        worker.load(subject, 0, 1, None)


def test_a_worker_that_cannot_start_says_why(tmp_path):
    with Worker(Path("/bin/sh"), threads=1) as worker, pytest.raises(WorkerError, match="during load"):
        worker.load(Subject(ROBERTA, ROBERTA, Workload("train", 24)), 0, 1, None)
