"""The runner of cases for a GPU: a process for each peer, which measures the peer's subjects one after the other.

On a card of one's own nothing else runs, so that steps need no turns; and two models at a time might not fit into its
memory. Of each subject the first step is a warm-up (kernels are chosen, graphs compiled), then come memory and time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from .cases import QUICK_DIVISOR, TRITON, Case, Comparison, Subject, Workload
from .client import Worker, WorkerError
from .gpu_cases import SMALL_LAYERS, SMALL_WIDTH
from .peers import PEERS
from .results import CaseResult, Measurement, Report, rows
from .runner import Listener

OUT_OF_MEMORY = "out of memory"


@dataclass
class Workers:
    """Processes by peer; `start` makes one, `absent` says why a peer has none."""

    start: Callable[[str], Worker]
    absent: dict[str, str] = field(default_factory=dict)
    running: dict[str, Worker] = field(default_factory=dict)

    def of(self, peer: str) -> Worker:
        """The process of a peer.

        Raises:
            WorkerError: if the peer is absent.
        """
        if peer in self.absent:
            raise WorkerError(self.absent[peer])
        if peer not in self.running:
            self.running[peer] = self.start(peer)
        return self.running[peer]

    def empty(self, peer: str) -> None:
        """Ready a process that failed for its next subject, or end it: some errors leave a card's context useless."""
        try:
            if peer in self.running:
                self.running[peer].unload()
        except WorkerError:
            self.running.pop(peer).close()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.running.values():
            worker.close()


def variables(peer: str, cores: int) -> dict[str, str]:
    """What a peer's process finds in its environment."""
    return {"MEGA_TRITON": str(int(peer == TRITON)), "TORCHINDUCTOR_COMPILE_THREADS": str(cores)}


def run_cases(
    cases: list[Case],
    workers: Workers,
    report: Report,
    listener: Listener,
    save: Callable[[], None],
    budget: float | None = None,
) -> None:
    """Measure cases into the report, saved after each; none begins after `budget` seconds, which the report says."""
    begin = time.monotonic()
    for case in cases:
        if budget is not None and time.monotonic() - begin > budget:
            report.missing.append(case.name)
        else:
            report.cases.append(run_case(case, workers, report, listener))
        save()


def run_case(case: Case, workers: Workers, report: Report, listener: Listener) -> CaseResult:
    """Measure one case. What fails is written into its measurement; the other subjects follow."""
    case = case.changed(lambda workload: _adapted(workload, report))
    subjects = [subject for group in case.groups for subject in group]
    listener.case(case, len(subjects) * (3 + report.repeats))
    measurements = []
    for subject in subjects:
        measurement = Measurement.of(subject)
        measurements.append(measurement)
        try:
            _measure(workers.of(subject.peer), subject, measurement, report, listener)
        except WorkerError as error:
            measurement.error = OUT_OF_MEMORY if "OutOfMemoryError" in str(error) else str(error)
            workers.empty(subject.peer)
    kind = "comparison" if isinstance(case, Comparison) else "series"
    return CaseResult(case.name, case.title, kind, measurements, rows(case, measurements, {}, wall=True))


def _adapted(workload: Workload, report: Report) -> Workload:
    workload = replace(workload, device=report.device)
    if not report.quick:
        return workload
    workload = workload.scaled(4 * QUICK_DIVISOR)
    return replace(workload, batch=min(workload.batch, 2), width=SMALL_WIDTH, layers=SMALL_LAYERS)


def _measure(worker: Worker, subject: Subject, into: Measurement, report: Report, listener: Listener) -> None:
    listener.step(f"{subject.key}: loading")
    facts = worker.load(subject, report.seed, report.threads, None)
    into.parameters = facts["parameters"]
    report.versions[PEERS[subject.peer].name] = facts["versions"]
    into.operations, into.moved_bytes = worker.work()
    listener.step(f"{subject.key}: warm-up")
    for _ in range(2):  # the second says how many steps in a row are worth measuring
        worker.device_time()
    listener.step(f"{subject.key}: memory")
    size, into.memory_method = worker.memory()
    into.memory_bytes.append(size)
    for repeat in range(report.repeats):
        listener.step(f"{subject.key}: time {repeat + 1}/{report.repeats}")
        seconds, cpu_seconds = worker.device_time()
        into.seconds.append(seconds)
        into.cpu_seconds.append(cpu_seconds)
    worker.unload()
