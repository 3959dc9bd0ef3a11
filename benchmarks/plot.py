"""The picture of a run: ratios against each peer, and times and memory over length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .results import CaseResult, Report, Row

# Okabe and Ito's palette, told apart by colour-blind readers; markers differ too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")


def draw(report: Report, path: Path) -> None:
    """Write the picture as PNG. Its background is white and opaque, so that it reads on light and dark pages alike."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    series = [case for case in report.cases if case.kind == "series"]
    rows = [
        row
        for case in report.cases
        if case.kind == "comparison"
        for row in case.rows
        if row.speed is not None and row.memory is not None
    ][::-1]
    lines = int(bool(rows)) + len(series)
    if not lines:
        raise ValueError("The run has nothing to draw: every case failed or was refused.")
    heights = ([0.6 + 0.42 * len(rows)] if rows else []) + [3.2] * len(series)
    figure, axes = pyplot.subplots(
        lines, 2, figsize=(11, sum(heights) + 0.6 * lines), height_ratios=heights, squeeze=False, layout="constrained"
    )
    if rows:
        _bars(axes[0, 0], rows, "speed", "speed_target", "speed-up in processor time (longer is better)")
        _bars(axes[0, 1], rows, "memory", "memory_target", "share of the peer's memory (shorter is better)")
        axes[0, 1].set_yticklabels([])
    for line, case in zip(axes[int(bool(rows)) :], series):
        _curves(line[0], case, "median_cpu_seconds", 1.0, "processor seconds a step")
        _curves(line[1], case, "median_bytes", 2**20, f"{case.memory_kind}, MiB")
    temporary = path.with_name(f".{path.name}.new.png")
    figure.savefig(temporary, dpi=130, facecolor="white")
    pyplot.close(figure)
    temporary.replace(path)


def _bars(axis: Any, rows: list[Row], value: str, target: str, title: str) -> None:
    places = range(len(rows))
    values = [getattr(row, value) for row in rows]
    axis.barh(places, values, color=COLOURS[0], height=0.62)
    for place, row, number in zip(places, rows, values):
        axis.annotate(
            f"{number:.2f}",
            (number, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            zorder=3,
        )
        if (wanted := getattr(row, target)) is not None:
            axis.vlines(wanted, place - 0.42, place + 0.42, color=COLOURS[1], linewidth=2.5)
    axis.axvline(1.0, color="0.4", linewidth=0.8, linestyle="--")
    axis.vlines([], 0, 0, color=COLOURS[1], linewidth=2.5, label="target")
    axis.set_yticks(places, [f"{row.case}\nagainst {row.against}" for row in rows], fontsize=8)
    axis.set_xlim(0, max(*values, *[getattr(row, target) or 0 for row in rows], 1.0) * 1.15)
    axis.set_title(title, fontsize=10)
    axis.legend(loc="best", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _curves(axis: Any, case: CaseResult, value: str, unit: float, label: str) -> None:
    from matplotlib.ticker import LogLocator

    points: dict[str, list[tuple[int, float]]] = {}
    for entry in case.measurements:
        if entry.error is None and (number := getattr(entry, value)):
            points.setdefault(entry.key.partition("@")[0], []).append((entry.workload["length"], number / unit))
    for index, (curve, found) in enumerate(points.items()):
        lengths, numbers = zip(*sorted(found))
        style = index % len(COLOURS)
        axis.plot(lengths, numbers, color=COLOURS[style], marker=MARKERS[style], label=curve)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    if high < 10 * low:  # at least a factor of ten is shown, so that what is flat looks flat
        middle = (low * high) ** 0.5
        axis.set_ylim(middle / 10**0.5, middle * 10**0.5)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}" if value < 1024 else f"{value / 1024:g}k")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_minor_formatter(lambda value, _: "")
    axis.set_xlabel("tokens")
    axis.set_ylabel(label)
    axis.set_title(case.name, fontsize=10)
    axis.grid(True, which="major", linewidth=0.4)
    if points:
        axis.legend(fontsize=8)
