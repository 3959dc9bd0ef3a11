"""Tables of a run of cases for a GPU: a time beside the least that the card could need, for terminal and document."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from .formatting import escape, mebibytes, seconds
from .results import CaseResult, Measurement, Report, floor_seconds, ratio

HEADINGS = ("time", "floor", "share", "MiB", "tokens/s", "host", "x mega")


def cells(entry: Measurement, case: CaseResult, report: Report) -> list[str]:
    """A subject under `HEADINGS`: the floor's share of its time; its time as a multiple of ours."""
    assert report.roofline is not None
    took, floor = entry.median_seconds, floor_seconds(entry, report.roofline)
    share = ratio(floor, took)
    multiple = next((row.speed for row in case.rows if row.against == entry.peer), None)
    return [
        seconds(took, digits=3),
        seconds(floor, digits=3),
        "-" if share is None else f"{share:.0%}",
        mebibytes(entry.median_bytes),
        "-" if not took else f"{tokens(entry) / took:,.0f}",
        seconds(entry.median_cpu_seconds, digits=3),
        "" if multiple is None else f"{multiple:.2f}",
    ]


def tokens(entry: Measurement) -> int:
    """Of a step, or of its part: all of the batch, when decoding one a row."""
    workload = entry.workload
    return workload["batch"] * (1 if workload["task"] == "decode" else workload["length"])


def tables(report: Report) -> list[Table | Text]:
    """The cases as rich tables that fit 80 columns."""
    parts: list[Table | Text] = []
    for case in report.cases:
        table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        table.title, table.title_justify, table.title_style = case.name, "left", "bold"
        table.add_column("", no_wrap=True)
        for heading in HEADINGS:
            table.add_column(heading, justify="right", no_wrap=True)
        for entry in case.measurements:
            if entry.error is None:
                table.add_row(entry.key, *cells(entry, case, report))
        parts += [Text(), table] if table.row_count else [Text(f"\n{case.name}", style="bold")]
        parts += [Text(f"{e.key}: not measured: {e.error}", style="yellow") for e in case.measurements if e.error]
    parts.append(Text())
    return parts + [Text(line, style="yellow") for line in out_of_time(report)]


def markdown(report: Report) -> list[str]:
    """The cases as one markdown table."""
    lines = ["| case | of | " + " | ".join(HEADINGS) + " |", "|---|---" + "|---:" * len(HEADINGS) + "|"]
    for case in report.cases:
        for entry in case.measurements:
            outcome = cells(entry, case, report)
            if entry.error:
                outcome = [f"not measured: {escape(entry.error)}", *[""] * (len(HEADINGS) - 1)]
            lines.append("| " + " | ".join((f"`{case.name}`", entry.key, *outcome)) + " |")
    lines += ["", "What the cases are:", ""]
    lines += [f"- `{case.name}`: {case.title}" for case in report.cases]
    return [*lines, "", *[f"- {line}" for line in out_of_time(report)]]


def out_of_time(report: Report) -> list[str]:
    """Which cases the time did not suffice for."""
    return [f"Not measured, since the time was up: {', '.join(report.missing)}"] if report.missing else []


def card(report: Report) -> list[str]:
    """The card, and what it reaches, as one fact."""
    if report.roofline is None:
        return []
    device, dtype = report.roofline["device"], report.roofline["dtype"]
    copies, products = report.roofline["bytes_per_second"], report.roofline["operations_per_second"]
    cuda = f" (CUDA {device['cuda']}, {device['memory_bytes'] / 2**30:.0f} GiB)" if device["cuda"] else ""
    return [
        f"Card: {device['name']}{cuda}; measured in this run: copies {copies / 1e9:,.0f} GB/s, multiplies matrices in "
        f"{dtype} at {products / 1e12:,.1f} TFLOP/s"
    ]
