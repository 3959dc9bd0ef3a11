"""The runner: for each case checks that peers agree, then measures memory and, in turns, time.

Every subject has a worker process of its own, and one worker computes at a time. Timed rounds go A B B A ..., so that
whatever else the machine does hits all alike, a drift too. Processes are not all equally fast, the one that is started
first least, so that there are several, started in either order. Of each, the first full step gives the memory; the
next is a warm-up and not counted; the timed steps are divided among them. A peer that computes the same function as
ours gives it its weights and is compared with it first, in processes of their own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from .agreement import DisagreementError, compare_files
from .cases import OURS, QUICK_DIVISOR, Case, Comparison, Series, Subject
from .client import Worker, WorkerError
from .peers import PEERS
from .results import CaseResult, Measurement, Report, rows


class Listener(Protocol):
    """What the runner tells while it works."""

    def case(self, case: Case, steps: int) -> None:
        """A case begins that has this many steps."""

    def step(self, what: str) -> None:
        """The next step begins."""


@dataclass(frozen=True)
class Settings:
    """How a run is done. `start` makes a worker for a subject."""

    repeats: int
    memory_repeats: int
    seed: int
    threads: int
    quick: bool
    start: Callable[[Subject], Worker]


def run_case(case: Case, settings: Settings, listener: Listener, report: Report) -> CaseResult:
    """Measure one case. A failure is written into its measurement; the other subjects continue."""
    if settings.quick:
        case = case.scaled(QUICK_DIVISOR)
    memory_repeats = settings.memory_repeats
    if isinstance(case, Series):
        memory_repeats = min(memory_repeats, case.memory_repeats)
    settings = replace(settings, memory_repeats=memory_repeats)
    subjects = [subject for group in case.groups for subject in group]
    checks = 2 * sum(PEERS[subject.peer].same_weights for subject in subjects)
    calls = sum(subject.workload.task == "decode" for subject in subjects)
    rounds = memory_repeats + min(memory_repeats, settings.repeats) + settings.repeats
    listener.case(case, len(subjects) * rounds + checks + calls)
    measurements: list[Measurement] = []
    agreements: dict[str, float | str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for group in case.groups:
            runner = _Group(group, settings, listener, report, Path(folder))
            measurements += runner.run()
            agreements.update(runner.agreements)
    kind = "comparison" if isinstance(case, Comparison) else "series"
    outcome = rows(case, measurements, agreements)
    if settings.quick:  # targets are for the full lengths
        for row in outcome:
            row.speed_target = row.speed_met = row.memory_target = row.memory_met = None
    return CaseResult(case.name, case.title, kind, measurements, outcome)


class _Group:
    """Subjects that are measured in turns."""

    def __init__(self, subjects: list[Subject], settings: Settings, listener: Listener, report: Report, folder: Path):
        self.subjects = subjects
        self.settings = settings
        self.listener = listener
        self.report = report
        self.folder = folder
        self.measurements = {subject.key: Measurement.of(subject) for subject in subjects}
        self.workers: dict[str, Worker] = {}
        self.agreements: dict[str, float | str] = {}
        self.weights: Path | None = None

    def run(self) -> list[Measurement]:
        try:
            self._check()
            processes, repeats = self.settings.memory_repeats, self.settings.repeats
            for process in range(processes):
                self._close_all()
                self._round(f"memory {process + 1}/{processes}", self._memory, process % 2)
                rounds = range(process, repeats, processes)
                if rounds:
                    self._round("warm-up", lambda subject: self.workers[subject.key].time(), process % 2)
                for turn, repeat in enumerate(rounds, process):
                    self._round(f"time {repeat + 1}/{repeats}", self._time, turn % 2)
            if self.subjects[0].workload.task == "decode":
                self._round("counting calls", self._calls)
        finally:
            self._close_all()
        return list(self.measurements.values())

    def _round(self, what: str, action: Callable[[Subject], object], backwards: int = 0) -> None:
        for subject in reversed(self.subjects) if backwards else self.subjects:
            self.listener.step(f"{subject.key}: {what}")
            ours = self.measurements.get(OURS)
            if self.measurements[subject.key].error or (ours and ours.error):
                continue
            try:
                action(subject)
            except WorkerError as error:
                self.measurements[subject.key].error = str(error)
                self._close(subject.key)

    def _check(self) -> None:
        """Take the reference's weights, and see whether ours computes the same with them."""
        for reference in self.subjects:
            if not PEERS[reference.peer].same_weights:
                continue
            ours = next(subject for subject in self.subjects if subject.key == OURS)
            weights = self.folder / "weights.safetensors"
            for subject in (reference, ours):
                self.listener.step(f"{subject.key}: checking that {ours.key} and {reference.key} agree")
                try:
                    with self.settings.start(subject) as worker:
                        self._load(worker, subject)
                        if subject is reference:
                            worker.save(weights)
                            self.weights = weights
                        worker.check(self._evaluation(subject))
                except WorkerError as error:
                    self.measurements[subject.key].error = str(error)
                    return
            try:
                self.agreements[reference.key] = compare_files(self._evaluation(ours), self._evaluation(reference))
            except DisagreementError as error:
                message = f"no speed-up of a wrong result: {error}"
                self.agreements[reference.key] = self.measurements[reference.key].error = message

    def _evaluation(self, subject: Subject) -> Path:
        return self.folder / f"{subject.key}-evaluation.safetensors"

    def _load(self, worker: Worker, subject: Subject) -> None:
        weights = self.weights if subject.key == OURS else None
        facts = worker.load(subject, self.settings.seed, self.settings.threads, weights)
        self.measurements[subject.key].parameters = facts["parameters"]
        self.report.versions[subject.peer] = facts["versions"]

    def _memory(self, subject: Subject) -> None:
        worker = self.workers[subject.key] = self.settings.start(subject)
        self._load(worker, subject)
        size, method = worker.memory()
        self.measurements[subject.key].memory_bytes.append(size)
        self.measurements[subject.key].memory_method = method

    def _time(self, subject: Subject) -> None:
        seconds, cpu_seconds = self.workers[subject.key].time()
        self.measurements[subject.key].seconds.append(seconds)
        self.measurements[subject.key].cpu_seconds.append(cpu_seconds)

    def _calls(self, subject: Subject) -> None:
        self.measurements[subject.key].calls = self.workers[subject.key].calls()

    def _close_all(self) -> None:
        for key in list(self.workers):
            self._close(key)

    def _close(self, key: str) -> None:
        if worker := self.workers.pop(key, None):
            worker.close()
