"""A run without processes: workers that answer at once, with numbers given by the test."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.cases import OLD, OURS, Case, Subject
from benchmarks.client import WorkerError
from benchmarks.memory import CACHE_METHOD
from benchmarks.results import Report, machine
from benchmarks.runner import Settings, run_case

# Processor seconds of each peer's successive steps, each process's warm-up first, and bytes of each process.
SECONDS = {OURS: [9.0, 1.0, 9.0, 2.0, 9.0, 3.0], OLD: [90.0, 12.0, 90.0, 10.0, 90.0, 5.0]}
WAITED = 5.0  # seconds by which wall time is more
BYTES = {OURS: [100, 300, 200], OLD: [1000, 800, 900]}


class FakeWorker:
    """Answers like a worker; `journal` gets everything it is asked for."""

    def __init__(self, subject: Subject, journal: list[tuple[str, str]], **behaviour):
        self.subject, self.journal, self.behaviour = subject, journal, behaviour
        journal.append((subject.key, "start"))

    def load(self, subject, seed, threads, weights):
        self.journal.append((self.subject.key, "load" if weights is None else "load with weights"))
        if self.subject.key == self.behaviour.get("broken"):
            raise WorkerError("it broke")
        return {"parameters": 7, "versions": {"torch": "0"}}

    def save(self, path: Path):
        path.write_bytes(b"")

    def check(self, path: Path):
        self.journal.append((self.subject.key, "check"))
        wrong = self.subject.key == OURS and self.behaviour.get("wrong", 0.0)
        save_file({"output": torch.ones(3) + wrong}, path)

    def memory(self):
        done = self.journal.count((self.subject.key, "memory"))
        self.journal.append((self.subject.key, "memory"))
        method = CACHE_METHOD if self.subject.workload.task == "decode" else "VmHWM"
        return BYTES.get(self.subject.peer, BYTES[OURS])[done], method

    def calls(self):
        self.journal.append((self.subject.key, "calls"))
        return 70 if self.subject.key == OURS else 30

    def time(self):
        done = self.journal.count((self.subject.key, "time"))
        self.journal.append((self.subject.key, "time"))
        cpu_seconds = SECONDS.get(self.subject.peer, SECONDS[OURS])[done]
        return cpu_seconds + WAITED, cpu_seconds

    def close(self):
        self.journal.append((self.subject.key, "close"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Listener:
    """Counts what the runner announces."""

    def __init__(self):
        self.announced = self.steps = 0

    def case(self, case: Case, steps: int):
        self.announced += steps

    def step(self, what: str):
        self.steps += 1


def empty_report(**changes) -> Report:
    facts = {
        "date": "2024-02-03T04:05:06+00:00",
        "command": "mega bench",
        "seed": 0,
        "threads": 2,
        "repeats": 3,
        "memory_repeats": 3,
        "quick": False,
        "machine": machine(),
        "git": {"revision": "a" * 40, "dirty": True},
    }
    return Report(**{**facts, **changes})


def run(case: Case, **behaviour) -> tuple[Report, list[tuple[str, str]], Listener]:
    """Run one case with fake workers."""
    journal: list[tuple[str, str]] = []
    listener = Listener()
    report = empty_report()
    repeats = {"repeats": 3, "memory_repeats": 3, **behaviour.pop("settings", {})}
    settings = Settings(*repeats.values(), 0, 1, False, lambda subject: FakeWorker(subject, journal, **behaviour))
    report.cases.append(run_case(case, settings, listener, report))
    return report, journal, listener
