"""Tables of a run: for the terminal (rich), and for docs/performance.md and docs/gpu.md (markdown)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from . import device_report
from .cases import CASES, MATMULS
from .formatting import escape, mebibytes, seconds, size
from .peers import PEERS, REPOSITORY
from .results import CaseResult, Measurement, Report, Row

DOCUMENT = REPOSITORY / "docs" / "performance.md"
GPU_DOCUMENT = REPOSITORY / "docs" / "gpu.md"
BEGIN = "<!-- benchmarks: begin (written by `mega bench --publish`) -->"
END = "<!-- benchmarks: end -->"

# Headings of a row's parts, in the terminal three tables and in the document one.
CPU = ("ours", "theirs", "speed-up", "target", "met")
WALL = ("ours", "theirs", "speed-up")
MEMORY = ("ours", "theirs", "share", "target", "met")


def cpu_title(report: Report) -> str:
    """What the ratios go by."""
    return "processor time, " + ("one thread" if report.threads == 1 else f"sum of {report.threads} threads")


def cpu_cells(row: Row) -> list[str]:
    """A row under `CPU`; of a growth, its last and first point."""
    return [
        seconds(row.ours_cpu_seconds),
        seconds(row.their_cpu_seconds),
        _number(row.speed, "x"),
        _target(row.speed_target, "≤" if row.growth else "≥", "x"),
        _yes_no(row.speed_met),
    ]


def wall_cells(row: Row) -> list[str]:
    """A row under `WALL`; of a growth, its last and first point."""
    return [seconds(row.ours_seconds), seconds(row.their_seconds), _number(row.wall_speed, "x")]


def memory_cells(row: Row) -> list[str]:
    """A row under `MEMORY`; of a growth, its last and first point."""
    unit = "x" if row.growth else ""
    return [
        size(row.ours_bytes),
        size(row.their_bytes),
        _number(row.memory, unit),
        _target(row.memory_target, "≤", unit),
        _yes_no(row.memory_met),
    ]


def _number(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.2f}{unit}"


def _target(value: float | None, sign: str, unit: str) -> str:
    return "" if value is None else f"{sign} {value:g}{unit}"


def _yes_no(value: bool | None) -> str:
    return "" if value is None else ("yes" if value else "NO")


def _revision(git: dict[str, Any]) -> str:
    return (git["revision"] or "none")[:12] + (" with uncommitted changes" if git["dirty"] else "")


def facts(report: Report) -> list[str]:
    """What the numbers depend on, one fact a line."""
    machine = report.machine
    before = f"; before: {_revision(report.before)}" if report.before else ""
    versions = "; ".join(
        f"{peer}: " + ", ".join(f"{name} {number}" for name, number in found.items())
        for peer, found in report.versions.items()
    )
    processor = ", ".join(
        filter(None, (machine["vendor"], machine["family"] and f"family {machine['family']}", *machine["flags"]))
    )
    quick = "; QUICK run, short inputs" if report.quick else ""
    stolen = "" if report.stolen is None else f"; stolen by the host: {report.stolen:.1%} of the time cores had work"
    if report.roofline:
        timing = f"Times are the device's; seed {report.seed}; medians of {report.repeats} samples in a process each"
    else:
        timing = (
            f"Ratios and targets go by {cpu_title(report)}; seed {report.seed}; medians of {report.repeats} timed "
            f"steps in turns, in up to {report.memory_repeats} processes"
        )
    return [
        *device_report.card(report),
        f"Machine: {machine['cpu']}{processor and f' ({processor})'}, {machine['cores']} cores used, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB memory, {machine['system']}{stolen}",
        f"{timing}{quick}",
        f"Date: {report.date}; revision: {_revision(report.git)}{before}",
        f"Versions: {versions}",
        f"Command: `{report.command}`",
    ]


def sizes(report: Report) -> list[str]:
    """Parameters of each peer's model, from the first case that trains it, or the first of a causal one."""
    found: dict[str, int] = {}
    for case in report.cases:
        for entry in case.measurements:
            causal = entry.workload["head"] == "causal-lm"
            if entry.parameters and (causal or entry.workload["task"] == "train"):
                found.setdefault(PEERS[entry.peer].title + (", causal" if causal else ""), entry.parameters)
    return [f"{title}: {number / 1e6:.2f}M parameters" for title, number in found.items()]


def notes(report: Report) -> list[str]:
    """What else the rows of comparisons say: tokens a second, calls of a step, a step over its matrix products."""
    lines = []
    for case in report.cases:
        for row in case.rows:
            if row.against == MATMULS and row.speed:
                lines.append(f"Training step / its matrix products in {row.case}: {1 / row.speed:.2f}")
            if row.ours_calls and not row.growth:
                calls = f"ours {row.ours_calls}, {row.against} {row.their_calls}"
                lines.append(f"Calls of aten functions a token in {row.case}: {calls}")
            if case.measurements[0].workload.get("new_tokens") and not row.growth and row.speed:
                ours, theirs = (f"{1 / value:.0f}" for value in (row.ours_cpu_seconds, row.their_cpu_seconds) if value)
                lines.append(f"Tokens a second of processor time in {row.case}: ours {ours}, {row.against} {theirs}")
    return lines


def terminal(report: Report) -> Group:
    """The run as rich tables that fit 80 columns."""
    if report.roofline:
        return Group(*device_report.tables(report), *(Text(line) for line in (*facts(report), *sizes(report))))
    rows = [row for case in report.cases for row in case.rows]
    parts: list[Table | Text] = []
    if rows:
        parts += [
            _part(rows, cpu_title(report), CPU, cpu_cells, "speed_met"),
            _part(rows, "wall time", WALL, wall_cells),
            _part(rows, "memory", MEMORY, memory_cells, "memory_met"),
        ]
    for row in rows:
        if row.refused:
            parts.append(Text(f"No ratio for {row.case} against {row.against}: {row.refused}", style="red"))
    for case in report.cases:
        if case.kind == "series":
            curves, lines = _grid(case)
            parts.append(Text(f"{case.name}: {_cell_title(report, case)}", style="bold"))
            grid = Table(box=SIMPLE_HEAD)
            for heading in ("tokens", *curves):
                grid.add_column(heading, justify="right")
            for line in lines:
                grid.add_row(*line)
            parts.append(grid)
            parts += [Text(f"Not measured: {text}", style="yellow") for text in missing(case)]
    return Group(*parts, *(Text(line) for line in (*notes(report), *facts(report), *sizes(report))))


def _part(
    rows: list[Row], title: str, headings: tuple[str, ...], cells: Callable[[Row], list[str]], met: str = ""
) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(title, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right")
    case = None
    for row in rows:
        if row.case != case:
            table.add_row(row.case, style="bold")
            case = row.case
        reached = getattr(row, met) if met else None
        style = "red" if row.refused or reached is False else "green" if reached else None
        table.add_row(f"  {row.against}", *(["refused"] if row.refused else cells(row)), style=style)
    return table


def _cell_title(report: Report, case: CaseResult) -> str:
    return f"{cpu_title(report)} / wall time / {case.memory_kind} in MiB"


def _grid(case: CaseResult) -> tuple[list[str], list[list[str]]]:
    """A series as lengths by curves; a cell is processor time / wall time / MiB."""
    found: dict[tuple[int, str], Measurement] = {}
    for entry in case.measurements:
        found[entry.workload["length"], entry.key.partition("@")[0]] = entry
    curves = list(dict.fromkeys(curve for _, curve in found))
    lines = []
    for length in sorted({length for length, _ in found}):
        line = [str(length)]
        for curve in curves:
            point = found.get((length, curve))
            if point is None or point.error:
                line.append("-")
                continue
            times = f"{seconds(point.median_cpu_seconds)} / {seconds(point.median_seconds)}"
            line.append(f"{times} / {mebibytes(point.median_bytes)}")
        lines.append(line)
    return curves, lines


def missing(case: CaseResult) -> list[str]:
    """Why points of a series are missing, one line a reason."""
    reasons: dict[str, list[str]] = {}
    for entry in case.measurements:
        if entry.error:
            reasons.setdefault(entry.error, []).append(entry.key)
    return [f"{case.name} {', '.join(keys)}: {reason}" for reason, keys in reasons.items()]


def markdown(report: Report) -> str:
    """The run as markdown tables, with the facts they depend on."""
    if report.roofline:
        return "\n".join(device_report.markdown(report) + [f"- {fact}" for fact in (*facts(report), *sizes(report))])
    headings = ["case", "against"]
    for title, (first, *others) in ((cpu_title(report), CPU), ("wall time", WALL), ("memory", MEMORY)):
        headings += [f"{title}: {first}", *others]
    lines = ["| " + " | ".join(headings) + " |", "|---|---" + "|---:" * (len(headings) - 2) + "|"]
    for row in (row for case in report.cases for row in case.rows):
        outcome = cpu_cells(row) + wall_cells(row) + memory_cells(row)
        if row.refused:
            outcome = [f"refused: {escape(row.refused)}", *[""] * (len(outcome) - 1)]
        lines.append("| " + " | ".join((f"`{row.case}`", row.against, *outcome)) + " |")
    lines += ["", "What the cases are:", ""]
    lines += [f"- `{case.name}`: {case.title}" for case in report.cases]
    for case in report.cases:
        if case.kind == "series":
            curves, grid = _grid(case)
            lines += ["", f"**{case.name}**: {case.title} ({_cell_title(report, case)})", ""]
            lines += ["| tokens | " + " | ".join(curves) + " |", "|---:" * (len(curves) + 1) + "|"]
            lines += ["| " + " | ".join(line) + " |" for line in grid]
            lines += [f"- not measured: {escape(text)}" for text in missing(case)]
    absent = [f"`{name}`" for name in CASES if name not in {case.name for case in report.cases}]
    lines += ["", *[f"- {fact}" for fact in (*notes(report), *facts(report), *sizes(report))]]
    if absent:
        lines.append(f"- Not in this run: {', '.join(absent)}")
    return "\n".join(lines)


def publish(report: Report, document: Path | None = None) -> list[Path]:
    """Write tables and picture into the document between its markers; gives the files written.

    A run for a GPU has a document of its own, without a picture.

    Raises:
        ValueError: if the run was quick or against another tree, or the document has not exactly one pair of markers
            in order.
    """
    from .plot import draw

    if report.quick:
        raise ValueError("A quick run uses short inputs and is not published; run without --quick.")
    if report.before:
        raise ValueError("A run against another tree is not published; run without --against.")
    if report.roofline and report.device == "cpu":
        raise ValueError("What is for a GPU is not published from a CPU; run with --device cuda.")
    document = document or (GPU_DOCUMENT if report.roofline else DOCUMENT)
    text = document.read_text() if document.exists() else ""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{document} needs the lines {BEGIN} and {END}, once each and in this order.")
    written, block = [document], markdown(report)
    if not report.roofline:
        picture = document.with_name("performance.png")
        draw(report, picture)
        written.append(picture)
        block = f"![Speed and memory against each peer]({picture.name})\n\n{block}"
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    temporary = document.with_name(f".{document.name}.new")
    temporary.write_text(f"{before}{BEGIN}\n\n{block}\n\n{END}{after}")
    temporary.replace(document)
    return written
