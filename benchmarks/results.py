"""What a run found: its JSON form, the arithmetic on it, and the facts about machine and code that go with it."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from .cases import OURS, Case, Comparison, Series, Subject
from .memory import CACHE_METHOD
from .peers import REPOSITORY

SCHEMA = 2


@dataclass
class Measurement:
    """What was measured of one subject.

    `error` says why something is missing; `calls` counts aten functions; `operations` and `moved_bytes` are what no
    implementation can do without, as far as they are known.
    """

    key: str
    peer: str
    workload: dict[str, Any]
    parameters: int | None = None
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    memory_bytes: list[int] = field(default_factory=list)
    memory_method: str | None = None
    calls: int | None = None
    error: str | None = None
    operations: float | None = None
    moved_bytes: float | None = None

    @classmethod
    def of(cls, subject: Subject) -> Measurement:
        """An empty measurement of a subject."""
        return cls(subject.key, subject.peer, subject.workload.to_dict())

    @property
    def median_seconds(self) -> float | None:
        """Median wall time of a step, or of one of its like parts."""
        return median(self.seconds) if self.seconds else None

    @property
    def median_cpu_seconds(self) -> float | None:
        """Median processor time of a step, or of one of its like parts, summed over threads."""
        return median(self.cpu_seconds) if self.cpu_seconds else None

    @property
    def median_bytes(self) -> float | None:
        """Median memory: peak of a step above the loaded model, or what the cache holds."""
        return median(self.memory_bytes) if self.memory_bytes else None


@dataclass
class Row:
    """A comparison's outcome, or a curve's growth from first point to last.

    Args:
        growth: Whether this is a curve's growth: "ours" is then its last point and "their" its first.
        speed: Peer's median processor time over ours; of a curve, last median over first.
        wall_speed: The same of wall time, which has no target.
        memory: Our median peak over the peer's; of a curve, last over first.
        agreement: Largest difference of the checked tensors over what is allowed, 1 at most; None if not checked.
        refused: Why there is no ratio.
    """

    case: str
    against: str
    growth: bool = False
    ours_seconds: float | None = None
    their_seconds: float | None = None
    wall_speed: float | None = None
    ours_cpu_seconds: float | None = None
    their_cpu_seconds: float | None = None
    speed: float | None = None
    speed_target: float | None = None
    speed_met: bool | None = None
    ours_bytes: float | None = None
    their_bytes: float | None = None
    ours_calls: int | None = None
    their_calls: int | None = None
    memory: float | None = None
    memory_target: float | None = None
    memory_met: bool | None = None
    agreement: float | None = None
    refused: str | None = None


@dataclass
class CaseResult:
    """One case of a run."""

    name: str
    title: str
    kind: str
    measurements: list[Measurement]
    rows: list[Row]

    @property
    def memory_kind(self) -> str:
        """What its numbers of bytes are."""
        cached = any(entry.memory_method == CACHE_METHOD for entry in self.measurements)
        return "memory of the cache" if cached else "peak memory"


@dataclass
class Report:
    """One run: everything that is written to its JSON file.

    Args:
        before: State of the other tree's repository, as in `git`, of a run against one.
        stolen: Share of the processor time in which the machine had work that its host gave to others meanwhile.
        device: `"cpu"` or `"cuda"`.
        roofline: Of a run of cases for a GPU: the card and its rates, as `benchmarks.roofline.measure` gives them.
        missing: Names of cases that the time did not suffice for.
    """

    date: str
    command: str
    seed: int
    threads: int
    repeats: int
    memory_repeats: int
    quick: bool
    machine: dict[str, Any]
    git: dict[str, Any]
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    cases: list[CaseResult] = field(default_factory=list)
    before: dict[str, Any] | None = None
    stolen: float | None = None
    device: str = "cpu"
    roofline: dict[str, Any] | None = None
    missing: list[str] = field(default_factory=list)
    schema: int = SCHEMA

    def save(self, path: Path) -> None:
        """Write the JSON file; beside it first, so that a broken run leaves no half file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(asdict(self), indent=1) + "\n")
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Report:
        """Read a file that `save` wrote.

        Raises:
            ValueError: if it is no such file, or of another schema.
        """
        try:
            data = json.loads(path.read_text())
            if data.get("schema") != SCHEMA:
                raise ValueError(
                    f"{path} has schema {data.get('schema')!r}; this code reads {SCHEMA}. Schema 1 has no processor "
                    "time: run the benchmark again."
                )
            data["cases"] = [
                CaseResult(
                    **{
                        **case,
                        "measurements": [Measurement(**entry) for entry in case["measurements"]],
                        "rows": [Row(**entry) for entry in case["rows"]],
                    }
                )
                for case in data["cases"]
            ]
            return cls(**data)
        except (OSError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a result file of `mega bench`: {error}.") from error


def rows(
    case: Case, measurements: list[Measurement], agreements: dict[str, float | str], wall: bool = False
) -> list[Row]:
    """The outcome of a case. `agreements` holds for each checked peer its agreement, or why it failed.

    A peer that was checked and does not agree gets no ratio: a speed-up of something else means nothing. With `wall`
    the speed is that of the device's time, and not of the processor's.
    """
    found = {measurement.key: measurement for measurement in measurements}
    if isinstance(case, Series):
        return [_growth(case, curve, found) for curve in case.curves] if case.growth else []
    outcome = [_comparison(case, peer, found[OURS], found[peer], agreements.get(peer)) for peer in case.against]
    for row in outcome if wall else ():
        row.speed = row.wall_speed
    return outcome


def _comparison(
    case: Comparison, peer: str, ours: Measurement, theirs: Measurement, agreement: float | str | None
) -> Row:
    target = case.against[peer]
    row = Row(case.name, peer, speed_target=target.speed, memory_target=target.memory)
    if isinstance(agreement, str):
        row.refused = agreement
    elif ours.error or theirs.error:
        row.refused = f"{ours.key}: {ours.error}" if ours.error else f"{theirs.key}: {theirs.error}"
    else:
        row.agreement = agreement
    if row.refused:
        return row
    _fill(row, ours, theirs)
    row.speed = ratio(row.their_cpu_seconds, row.ours_cpu_seconds)
    row.wall_speed = ratio(row.their_seconds, row.ours_seconds)
    row.speed_met = _met(row.speed, row.speed_target, at_least=True)
    row.memory_met = _met(row.memory, row.memory_target, at_least=False)
    return row


def _growth(case: Series, curve: str, found: dict[str, Measurement]) -> Row:
    workloads = case.curves[curve]
    first, last = (found[f"{curve}@{workload.length}"] for workload in (workloads[0], workloads[-1]))
    row = Row(case.name, f"itself, {workloads[0].length} to {workloads[-1].length} tokens", growth=True)
    row.speed_target = case.growth
    row.memory_target = case.growth if case.memory_growth is None else case.memory_growth
    if first.error or last.error:
        row.refused = first.error or last.error
        return row
    _fill(row, last, first)
    row.speed = ratio(row.ours_cpu_seconds, row.their_cpu_seconds)
    row.wall_speed = ratio(row.ours_seconds, row.their_seconds)
    row.speed_met = _met(row.speed, case.growth, at_least=False)
    row.memory_met = _met(row.memory, row.memory_target, at_least=False)
    return row


def _fill(row: Row, ours: Measurement, theirs: Measurement) -> None:
    row.ours_seconds, row.their_seconds = ours.median_seconds, theirs.median_seconds
    row.ours_cpu_seconds, row.their_cpu_seconds = ours.median_cpu_seconds, theirs.median_cpu_seconds
    row.ours_bytes, row.their_bytes = ours.median_bytes, theirs.median_bytes
    row.ours_calls, row.their_calls = ours.calls, theirs.calls
    row.memory = ratio(row.ours_bytes, row.their_bytes)


def floor_seconds(measurement: Measurement, roofline: dict[str, Any]) -> float | None:
    """The least time for the work that no implementation can avoid, at the rates measured on the card."""
    times = (
        ratio(measurement.operations, roofline["operations_per_second"]),
        ratio(measurement.moved_bytes, roofline["bytes_per_second"]),
    )
    return max((time for time in times if time), default=None)


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """The quotient, or None where a part is missing or the denominator is 0."""
    return numerator / denominator if numerator is not None and denominator else None


def _met(value: float | None, target: float | None, at_least: bool) -> bool | None:
    if value is None or target is None:
        return None
    return value >= target if at_least else value <= target


def now() -> str:
    """The date and time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def machine() -> dict[str, Any]:
    """Processor, cores usable by this process, memory and system."""
    return {
        **_processor(),
        "cores": available_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> dict[str, Any]:
    """Model, vendor, family, and which of the wide instruction sets there are; Linux on x86 tells them all."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().partition("\n\n")[0].splitlines() if cpuinfo.exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", "").split()
    return {
        "cpu": facts.get("model name") or platform.processor() or platform.machine(),
        "vendor": facts.get("vendor_id"),
        "family": facts.get("cpu family"),
        "flags": [name for name in ("amx", "avx512", "avx2") if any(flag.startswith(name) for flag in flags)],
    }


def processor_ticks() -> tuple[int, int] | None:
    """Ticks since boot in which cores had work, stolen ones included, and those stolen; None without /proc/stat."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(int, stat.read_text().split()[1:11])
    return user + nice + system + irq + softirq + steal, steal


def stolen_share(before: tuple[int, int] | None, after: tuple[int, int] | None) -> float | None:
    """`Report.stolen` of the time between two answers of `processor_ticks`."""
    return ratio(after[1] - before[1], after[0] - before[0]) if before and after else None


def git_state(tree: Path = REPOSITORY) -> dict[str, Any]:
    """Revision of a repository and whether the tree differs from it; None where git or a commit is missing."""
    revision = _git(tree, "rev-parse", "HEAD")
    status = _git(tree, "status", "--porcelain")
    return {"revision": revision, "dirty": None if status is None else bool(status)}


def _git(tree: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=tree, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def default_path(report: Report) -> Path:
    """`benchmarks/results/<date>-<processor>-<cores>c.json`; the machine is named by its processor, not its owner."""
    card = report.roofline["device"]["name"] if report.roofline else "CPU"
    processor = re.sub(r"\(R\)|\(TM\)|CPU|Processor|@", " ", report.machine["cpu"] if card == "CPU" else card)
    slug = re.sub(r"[^a-z0-9.]+", "-", processor.lower()).strip("-")
    kind = (
        ("-gpu-cases" if report.roofline else "")
        + ("-before-after" if report.before else "")
        + ("-quick" if report.quick else "")
    )
    return REPOSITORY / "benchmarks" / "results" / f"{report.date[:10]}-{slug}-{report.machine['cores']}c{kind}.json"
