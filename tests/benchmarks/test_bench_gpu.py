"""What is measured on a GPU, tried on the CPU: the runner, the clock, the floor and the tables."""

import importlib
import json
from dataclasses import asdict, replace

import pytest
import torch
import typer
from fakes import Listener, empty_report
from rich.console import Console
from typer.testing import CliRunner

from benchmarks import device_report, floor, roofline, timing
from benchmarks.build import build
from benchmarks.cases import (
    CASES,
    GPT2,
    MODERNBERT,
    MODERNBERT_FLASH,
    OURS,
    TRITON,
    UNCOMPILED,
    Comparison,
    Target,
    Workload,
)
from benchmarks.client import WorkerError
from benchmarks.device_run import Workers, run_case, run_cases, variables
from benchmarks.gpu_cases import GPU_CASES
from benchmarks.peers import PEERS, REPOSITORY, absence
from benchmarks.report import BEGIN, END, GPU_DOCUMENT, markdown, publish, terminal
from benchmarks.results import Measurement, Report, floor_seconds
from benchmarks.worker import Session

bench = importlib.import_module("mega_transformers.cli.bench")
app = typer.Typer()
app.command()(bench.bench)

ROOFLINE = {
    "device": {"name": "Some GPU", "cuda": "13.0", "memory_bytes": 80 * 2**30},
    "dtype": "bfloat16",
    "bytes_per_second": 2e12,
    "operations_per_second": 5e14,
}
SMALL = Workload("train", 24, batch=2, dtype="bfloat16", width=64, layers=2)


class InProcess:
    """A worker without a process: the session itself, whose every answer goes through JSON."""

    def __init__(self, journal, **broken):
        self.session, self.journal, self.broken, self.closed = Session(), journal, broken, False

    def __getattr__(self, operation):
        def ask(*given):
            if operation == "load":
                subject, seed, threads, weights = given
                self.key = subject.key
                given = (subject.peer, subject.workload.to_dict(), seed, threads, weights)
            self.journal.append((self.key, operation))
            if operation in self.broken:
                raise WorkerError(self.broken[operation])
            answer = json.loads(json.dumps(getattr(self.session, operation)(*given)))
            return {"load": answer, "unload": None}.get(operation, tuple(answer.values()))

        return ask

    def close(self):
        self.closed = True


def report(**changes):
    return empty_report(repeats=3, threads=1, **{"device": "cpu", "roofline": ROOFLINE, "quick": True, **changes})


def test_a_case_in_small(monkeypatch):
    """Every subject is loaded, warmed up, measured and dropped."""
    monkeypatch.setattr("benchmarks.worker.DEVICE_BURST_SECONDS", 1e-3)
    journal, listener, whole = [], Listener(), report()
    train = replace(GPU_CASES["gpu-train-8x2048"], against={MODERNBERT: Target()})
    with Workers(lambda peer: InProcess(journal)) as workers:
        whole.cases.append(run_case(train, workers, whole, listener))
    order = ["load", "work", "device_time", "device_time", "memory", *["device_time"] * 3, "unload"]
    assert journal == [(peer, what) for peer in (OURS, MODERNBERT) for what in order]
    assert listener.steps == listener.announced
    for entry in whole.cases[0].measurements:
        assert entry.error is None and len(entry.seconds) == 3 and min(entry.seconds) > 0
        assert entry.operations > 2 * 3 * entry.parameters - 2 * 3 * 64 * 8192  # of every weight but the embeddings'
        assert entry.moved_bytes > 10 * 2 * entry.parameters
        assert entry.workload["batch"] == 2 and entry.workload["length"] == 32
    (row,) = whole.cases[0].rows
    assert row.speed == row.wall_speed == row.their_seconds / row.ours_seconds


def test_peers_that_are_absent_or_fail_are_rows_that_say_so(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    case = replace(GPU_CASES["gpu-decode-1x1k"], against=dict.fromkeys((UNCOMPILED, GPT2, MODERNBERT_FLASH), Target()))
    made = {}

    def start(peer):
        failing = {
            OURS: {"memory": "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB"},
            UNCOMPILED: {"device_time": "CUDA error: an illegal memory access", "unload": "CUDA error"},
        }
        made[peer] = InProcess([], **failing.get(peer, {}))
        return made[peer]

    whole = report(missing=["gpu-late"])
    with Workers(start, {MODERNBERT_FLASH: "flash_attn is not installed"}) as workers:
        whole.cases.append(run_case(case, workers, whole, Listener()))
        assert set(workers.running) == {OURS, GPT2} and made[UNCOMPILED].closed and not made[OURS].closed
    assert made[OURS].closed and made[GPT2].closed
    errors = {entry.key: entry.error for entry in whole.cases[0].measurements}
    assert errors[OURS] == "out of memory" and errors[GPT2] is None
    assert "illegal memory access" in errors[UNCOMPILED] and "not installed" in errors[MODERNBERT_FLASH]
    console = Console(width=80)
    with console.capture() as capture:
        console.print(terminal(whole))
    for text in (capture.get(), markdown(whole)):
        assert "not measured: out of memory" in text and "the time was up: gpu-late" in text
        assert "Some GPU (CUDA 13.0, 80 GiB)" in text and "copies 2,000 GB/s" in text and "500.0 TFLOP/s" in text
        assert "in turns" not in text
    assert max(map(len, capture.get().splitlines())) <= 80


def test_no_case_begins_after_the_budget_and_each_is_saved(monkeypatch):
    cases = [GPU_CASES[name] for name in ("gpu-train-8x2048", "gpu-ema-op", "gpu-decode-1x1k")]
    clock = iter((0.0, 1.0, 9.0, 11.0))
    monkeypatch.setattr("benchmarks.device_run.time.monotonic", lambda: next(clock))
    monkeypatch.setattr("benchmarks.device_run.run_case", lambda case, *_: case.name)
    whole, saved = report(), []
    run_cases(cases, Workers(None), whole, Listener(), lambda: saved.append((*whole.cases, *whole.missing)), 10.0)
    names = [case.name for case in cases]
    assert whole.cases == names[:2] and whole.missing == names[2:]
    assert saved == [tuple(names[:1]), tuple(names[:2]), tuple(names)]


def test_cases_for_a_gpu():
    assert not GPU_CASES.keys() & CASES.keys()
    for case in GPU_CASES.values():
        for subject in (subject for group in case.groups for subject in group):
            workload = subject.workload
            assert subject.peer in PEERS and subject.peer in (OURS, TRITON, *getattr(case, "against", ()))
            assert (workload.device, workload.dtype) == ("cuda", "bfloat16")
            assert (workload.width, workload.layers, workload.hidden, workload.shared) == (768, 12, 1536, 128)
            assert (subject.peer == TRITON) == (workload.backend == "triton" or subject.key == TRITON)
    sizes = {(w.batch, w.length, w.chunk) for w in (case.workload for case in _comparisons("train"))}
    assert {(32, 512, None), (8, 2048, None), (2, 8192, None), (2, 8192, 1024), (1, 32768, 1024)} <= sizes
    decoded = {(w.batch, w.length // 1024) for w in (case.workload for case in _comparisons("decode"))}
    assert decoded == {(1, 1), (1, 16), (32, 1), (32, 16)}
    assert variables(TRITON, 8)["MEGA_TRITON"] == "1" and variables(OURS, 8)["MEGA_TRITON"] == "0"


def _comparisons(task):
    return [case for case in GPU_CASES.values() if isinstance(case, Comparison) and case.workload.task == task]


def test_what_must_be_installed(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.peers.REPOSITORY", tmp_path)
    monkeypatch.setattr("benchmarks.peers.importlib.util.find_spec", lambda name: None)
    assert absence(PEERS[OURS], {}) is None and absence(PEERS[GPT2], {}) is None
    assert absence(PEERS["gla"], {}) == "fla is not installed: pip install flash-linear-attention"
    assert "--peer-python transformers-4.40.2=" in absence(PEERS["transformers-4.40.2"], {})
    assert absence(PEERS["transformers-4.40.2"], {"transformers-4.40.2": tmp_path}) is None


class Events:
    """A GPU's clock: work moves it on, and it is read only after its event was waited for."""

    now = 0.0

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing
            self.at, self.reached = None, False

        def record(self):
            self.at = Events.now

        def synchronize(self):
            self.reached = True

        def elapsed_time(self, end):
            assert end.reached
            return 1e3 * (end.at - self.at)


def test_time_on_a_gpu_is_between_events(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.cuda, "Event", Events.Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(Events.now))

    def work():
        Events.now += 0.25

    assert timing.seconds(work, "cuda") == 0.25 and waits == [0.0]
    assert timing.mean_seconds(work, "cuda", 4) == 0.25 and waits == [0.0, 0.25]
    assert timing.seconds(lambda: None, "cpu") >= 0
    assert [timing.calls_within(once, 0.1) for once in (1.0, 0.05, 0.0, 1e-5)] == [1, 2, 1000, 1000]


def test_rates_of_a_device(monkeypatch):
    """A copy reads and writes every byte; a product has two operations for each multiplication."""
    monkeypatch.setattr(roofline, "BURST_SECONDS", 1e-3)
    assert all(roofline.measure("cpu")[name] > 1e6 for name in ("bytes_per_second", "operations_per_second"))
    monkeypatch.setattr(roofline, "_median_seconds", lambda work, device: work() is None or 0.5)
    assert roofline.copy_rate("cpu", 1000) == 4000
    assert roofline.matmul_rate("cpu", 10, torch.bfloat16) == 4000


def test_peak_of_the_allocator(monkeypatch):
    from benchmarks.memory import measure

    state = {"allocated": 100, "peak": 900}
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: state.update(peak=state["allocated"]))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: state["allocated"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: state["peak"])
    assert measure(lambda: state.update(peak=350), "cuda") == (250, "max_memory_allocated")


def test_the_floor_is_the_slower_of_both_limits():
    entry = Measurement(OURS, OURS, {}, operations=5e14, moved_bytes=1e12)
    assert floor_seconds(entry, ROOFLINE) == 1.0
    assert floor_seconds(replace(entry, moved_bytes=4e12), ROOFLINE) == 2.0
    assert floor_seconds(replace(entry, operations=None), ROOFLINE) == 0.5
    assert floor_seconds(replace(entry, operations=None, moved_bytes=None), ROOFLINE) is None


def test_the_work_of_ops():
    forward, both = (floor.op(task, 2, 10, 7, 3, 5, 2) for task in ("ema-forward", "ema-op"))
    assert forward == (None, 2 * 2 * 10 * 7 * 2) and both.bytes == 5 / 2 * forward.bytes
    forward, both = (floor.op(task, 2, 10, 7, 3, 5, 2) for task in ("attention-forward", "attention-op"))
    assert forward.operations == 2 * 2 * 10**2 * (3 + 5) and both.operations == 3.5 * forward.operations
    assert floor.op("train", 2, 10, 7, 3, 5, 2) is None


def test_the_work_of_a_training_step_is_that_of_the_definition():
    subject = build(OURS, replace(SMALL, chunk=8), 0)
    operations, moved = subject.work()
    config = subject.module.config
    tokens, d, z, h = 2 * 24, 64, config.shared_representation_size, config.intermediate_size
    linear = sum(x.weight.numel() for x in subject.module.modules() if isinstance(x, torch.nn.Linear))
    least = 3 * 2 * tokens * (linear + 2 * 8 * (z + h))
    assert least <= operations < 1.2 * least  # the rest is the EMA's
    sizes = [x.numel() * x.element_size() for x in subject.module.parameters()]
    assert moved == 10 * sum(sizes) + 5 * tokens * d * 2 * 2
    assert config._attn_implementation == "sdpa" and all(x.grad is None for x in subject.module.parameters())
    dtypes = {name: x.dtype for name, x in subject.module.named_parameters()}
    assert {dtypes.pop(name) for name in list(dtypes) if "ema_gate" in name} == {torch.float32}
    assert set(dtypes.values()) == {torch.bfloat16}


def test_a_decoding_step_reads_the_weights_and_the_cache():
    workload = replace(SMALL, task="decode", head="causal-lm", new_tokens=3)
    subject = build(UNCOMPILED, workload, 0)
    operations, moved = subject.work()
    weights = sum(x.numel() * x.element_size() for x in subject.module.parameters())  # its table is tied to its head
    assert weights < moved <= weights + subject.memory()[0]
    assert operations > 2 * 2 * 8192 * 64  # logits alone, of two rows
    subject.module.lm_head.weight = torch.nn.Parameter(subject.module.lm_head.weight.clone())
    assert floor.weights_read(subject.module) == weights
    assert subject.evaluate()["output"].shape == (2, 3, 8192)


def test_files_without_a_device_are_of_a_cpu(tmp_path):
    path = tmp_path / "r.json"
    data = asdict(empty_report())
    for name in ("device", "roofline", "missing"):
        del data[name]
    path.write_text(json.dumps(data))
    loaded = Report.load(path)
    assert (loaded.device, loaded.roofline, loaded.missing) == ("cpu", None, [])


def test_the_page_of_a_gpu(tmp_path):
    document = tmp_path / "gpu.md"
    document.write_text(f"a\n{BEGIN}\n{END}\nb\n")
    with pytest.raises(ValueError, match="run with --device cuda"):
        publish(report(quick=False), document)
    assert publish(report(quick=False, device="cuda"), document) == [document]
    assert "Some GPU" in document.read_text() and list(tmp_path.iterdir()) == [document]
    text = GPU_DOCUMENT.read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    if "not measured: no GPU was at hand" in text:
        assert all(f"`{name}`" in text for name in GPU_CASES)
    assert device_report.card(empty_report()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu"], "--device tpu: expected cpu or cuda"),
        (["--device", "cuda", "train-2048-full"], "train-2048-full is measured on a CPU"),
        (["gpu-ema-op", "ema-op"], "run them apart"),
        (["gpu-nope-*"], "Unknown case 'gpu-nope-*'"),
        (["ema-op", "--budget", "5"], "--budget is for the cases for a GPU"),
        (["gpu-ema-op", "--against", "."], "--against compares on a CPU"),
        (["--from", "none.json", "--device", "cuda"], "--from shows a finished run"),
    ],
)
def test_wrong_options(arguments, message, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "300"})
    assert result.exit_code == 2 and message in result.output, result.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu():
    result = CliRunner().invoke(app, ["--device", "cuda"], env={"COLUMNS": "300"})
    assert result.exit_code and "finds no CUDA device" in str(result.output) + str(result.exception)
    listed = CliRunner().invoke(app, ["--list"], env={"COLUMNS": "200"}).output
    assert all(name in listed for name in GPU_CASES) and "cuda" in listed
