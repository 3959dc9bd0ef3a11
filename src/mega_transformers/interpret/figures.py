"""Draws what a Mega model has learnt, as SVG with matplotlib: text stays text, ids are unique, nothing is loaded.

Each function takes measures of `inspection`, `reading` or `cost` and returns one `Picture`.
"""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from .cost import Cost
from .inspection import BACKWARD, FORWARD, HORIZON, PARTS, Bias, ParameterCount, Side
from .reading import Attention, LayerReading, Spread

INK = "#1f2328"
"""Colour of text and axes, which a page may replace."""

MINUS = "\N{MINUS SIGN}"

# Okabe and Ito's palette, which colour-blind readers can tell apart
BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, GREY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#8a8f98",
)
_OF_PART = dict(zip(PARTS, (GREY, ORANGE, BLUE, SKY, GREEN, YELLOW, PINK)))
_OF_DIRECTION = {FORWARD: BLUE, BACKWARD: ORANGE}
_DEPTH = LinearSegmentedColormap.from_list("depth", [BLUE, GREEN, YELLOW, ORANGE])
_WIDTH = 7.0  # inches: the text of a page of two columns
_MARGIN = 1.0  # inches of that beside the panels
_FEW_LAYERS = 8  # most entries of a legend
_FEW_TOKENS = 16  # most tokens named on an axis
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mega",
    "text.parse_math": False,  # tokens are text
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "lines.linewidth": 1.3,
    "grid.color": GREY,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
}


@dataclass(frozen=True)
class Picture:
    """A drawing.

    Args:
        name: The name of its file, without extension; its ids begin with it.
        description: The alternative text.
        svg: One `<svg>` element, without background.
    """

    name: str
    description: str
    svg: str

    @property
    def width(self) -> float:
        """Its width as a share of the page's."""
        return float(re.search(r'viewBox="0 0 ([\d.]+)', self.svg)[1]) / (72 * _WIDTH)  # type: ignore[index]

    def file(self) -> str:
        """The SVG as a file of its own, on white."""
        end = self.svg.index(">") + 1
        background = '<rect width="100%" height="100%" fill="#ffffff"/>'
        return f'<?xml version="1.0" encoding="utf-8"?>\n{self.svg[:end]}{background}{self.svg[end:]}\n'


def _picture(draw: Callable[..., tuple[Figure, str, str]]) -> Callable[..., Picture]:
    """Makes a picture in the common style from the figure, name and description that `draw` returns."""

    @wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> Picture:
        buffer = io.StringIO()
        with matplotlib.rc_context(_STYLE):
            figure, name, description = draw(*args, **kwargs)
            nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            figure.savefig(buffer, format="svg", facecolor="none", metadata=nothing)
        svg = buffer.getvalue()
        svg = svg[svg.index("<svg") :].strip()
        for before in ("url(#", 'href="#'):
            svg = svg.replace(before, f"{before}{name}-")
        svg = re.sub(r' id="([^"]*)"', _UniqueIds(name), svg)
        label = f'<svg role="img" aria-label="{escape(description)}"'
        return Picture(name, description, label + svg.removeprefix("<svg"))

    return drawn


class _UniqueIds:
    """Prefixes ids with the picture's name, and numbers those that matplotlib gives to equal elements."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: Counter[str] = Counter()

    def __call__(self, found: re.Match[str]) -> str:
        self.seen[found[1]] += 1
        times = self.seen[found[1]]
        return f' id="{self.name}-{found[1]}{f"-{times}" if times > 1 else ""}"'


@_picture
def parameters(counts: Sequence[ParameterCount]) -> tuple[Figure, str, str]:
    """The distribution of parameters: a bar for each block, and one for parameters outside of blocks."""
    rows: dict[str, dict[str, int]] = {}
    for each in counts:
        where = each.part if each.layer is None else f"layer {each.layer}"
        row = rows.setdefault(f"{each.side} {where}".strip(), {})
        row[each.part] = row.get(each.part, 0) + each.count
    figure, axis = _figure(0.8 + 0.2 * len(rows))
    present = [part for part in PARTS if any(part in row for row in rows.values())]
    for index, row in enumerate(rows.values()):
        left = 0
        for part in present:
            axis.barh(index, row.get(part, 0), left=left, height=0.68, color=_OF_PART[part], linewidth=0)
            left += row.get(part, 0)
        axis.annotate(short_count(left), (left, index), (4, 0), textcoords="offset points", va="center", fontsize=7)
    _rows(axis, list(rows))
    axis.xaxis.set_major_formatter(lambda value, _: short_count(value))
    axis.set_xlabel("parameters")
    axis.margins(x=0.08)
    handles = [matplotlib.patches.Patch(color=_OF_PART[part], label=part) for part in present]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), handlelength=1, columnspacing=1.2)
    return figure, "parameters", "Bars: parameters of every layer, by part"


@_picture
def kernels(side: Side) -> tuple[Figure, str, str]:
    """A panel for each layer: its channels' kernels, sorted by half-life, over distance on a logarithmic axis."""
    figure, axes = _grid(len(side.layers), 1.75)
    distances = side.kernel_distances
    image = None
    for index, (axis, layer) in enumerate(zip(axes, side.layers)):
        half_lives = np.mean([memory.half_lives for memory in layer.memory], axis=0)
        order = np.argsort(np.nan_to_num(half_lives, nan=-1.0, posinf=HORIZON))
        greatest = np.abs(layer.kernels).max(axis=1, keepdims=True)
        shown = layer.kernels / np.where(greatest > 0, greatest, 1.0)
        image = axis.imshow(
            shown[order], cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto", interpolation="none", origin="lower"
        )
        axis.set_title(f"layer {index + 1}")
        labelled = (0, 2 ** round(math.log2(distances[0] ** 2) / 4), -distances[0])
        places = [place for place, distance in enumerate(distances) if abs(distance) in labelled]
        axis.set_xticks(places, [_number(distances[place]) for place in places])
        axis.set_yticks([0, len(order) - 1], ["1", str(len(order))])
    _label_outer(axes, "distance of the token, in tokens", "channel by half-life")
    assert image is not None
    _colourbar(figure, image, axes, "share of the greatest weight", [-1, 0, 1])
    return (
        figure,
        _named(side.name, "kernels"),
        f"Heat maps: EMA kernels{_of(side.name)} by layer, channel and distance",
    )


@_picture
def memory_curves(side: Side) -> tuple[Figure, str, str]:
    """The share of a kernel's mass within a number of tokens: a line for each layer, a panel for each direction."""
    directions = [memory.direction for memory in side.layers[0].memory]
    figure, axes = _figure(2.1, columns=len(directions), sharey=True)
    axes = [axes] if len(directions) == 1 else axes
    for column, (axis, direction) in enumerate(zip(axes, directions)):
        for layer, colour in zip(side.layers, _depth_colours(len(side.layers))):
            axis.plot(side.curve_lags, layer.memory[column].curve, color=colour)
        axis.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":")
        axis.set_xscale("log", base=2)
        _octaves(axis.xaxis, *side.curve_lags[[0, -1]])
        axis.set_ylim(0, 1.02)
        axis.set_xlabel("tokens, the current one included")
        axis.set_title(f"{direction} EMA")
        axis.grid()
        if side.chunk is not None and side.chunk <= side.curve_lags[-1]:
            axis.axvline(side.chunk, color=GREY, linewidth=0.9, linestyle="--")
            place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
            axis.annotate("chunk", (side.chunk, 0.02), (-2, 0), ha="right", fontsize=7, **place)
    axes[0].set_ylabel("share of absolute mass")
    _layer_key(figure, axes, len(side.layers))
    return figure, _named(side.name, "memory"), f"Lines: share of the EMA kernels' mass{_of(side.name)} within lags"


@_picture
def half_lives(side: Side) -> tuple[Figure, str, str]:
    """Distributions of the half-lives of kernels and of their single exponentials, by layer and direction."""
    figure, (left, right) = _figure(0.95 + 0.3 * len(side.layers), columns=2, sharey=True)
    lows, highs = [], []
    for index, layer in enumerate(side.layers):
        for place, memory in enumerate(layer.memory):
            row = index + (0.32 * place - 0.16 if len(layer.memory) == 2 else 0)
            for axis, values in ((left, memory.half_lives), (right, memory.component_half_lives)):
                low, high = _distribution(axis, row, values, _OF_DIRECTION[memory.direction])
                lows.append(low)
                highs.append(high)
    within_sight = side.chunk is not None and min(lows) < side.chunk < 1.3 * max(highs)
    for axis, title in ((left, "kernels of channels"), (right, "single exponentials")):
        axis.set_xscale("log", base=2)
        _octaves(axis.xaxis, min(lows), max(highs))
        axis.set_xlim(min(lows) / 1.15, max(highs) * 1.3)
        axis.set_xlabel("half-life in tokens")
        axis.set_title(title)
        axis.grid(axis="x")
        if within_sight:
            axis.axvline(side.chunk, color=GREY, linewidth=0.9, linestyle="--")
        _rows(axis, [f"layer {index + 1}" for index in range(len(side.layers))])
    handles = [
        *(
            Line2D([], [], color=_OF_DIRECTION[memory.direction], linewidth=3, label=f"{memory.direction} EMA")
            for memory in side.layers[0].memory
        ),
        Line2D([], [], color=GREY, marker="o", markersize=4, linestyle="", label="median"),
        Line2D([], [], color=GREY, linewidth=3, label="middle half"),
        Line2D([], [], color=GREY, linewidth=1, label="5% to 95%"),
        Line2D([], [], color=GREY, marker="|", markersize=6, linestyle="", label="longest"),
    ]
    if within_sight:
        handles.append(Line2D([], [], color=GREY, linewidth=0.9, linestyle="--", label="chunk"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), columnspacing=1.4)
    return figure, _named(side.name, "half-lives"), f"Distributions of half-lives{_of(side.name)} by layer"


@_picture
def position_biases(side: Side, cross_attention: bool = False) -> tuple[Figure, str, str]:
    """A panel for each layer: the bias of attention scores over the distance of the key."""
    biases: list[Bias] = []
    for layer in side.layers:
        bias = layer.cross_position_bias if cross_attention else layer.position_bias
        assert bias is not None
        biases.append(bias)
    figure, axes = _grid(len(biases), 1.5, sharey=True)
    for index, (axis, bias) in enumerate(zip(axes, biases)):
        axis.axhline(0, color=GREY, linewidth=0.6)
        axis.plot(bias.distances, bias.values, color=GREEN if cross_attention else BLUE, linewidth=1)
        axis.set_title(f"layer {index + 1}")
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4, integer=True))
    what = "cross-attention" if cross_attention else "attention"
    _label_outer(axes, f"position of the key {MINUS} of the query", "bias of the score")
    name = _named(side.name, "cross-position-biases" if cross_attention else "position-biases")
    return figure, name, f"Lines: position bias of {what}{_of(side.name)} by layer and distance"


@_picture
def gates(name: str, layers: Sequence[LayerReading]) -> tuple[Figure, str, str]:
    """Means and spreads of the gates, by layer."""
    cross = layers[0].cross_update is not None
    figure, (left, right) = _figure(0.95 + (0.3 if cross else 0.22) * len(layers), columns=2, sharey=True)
    for index, layer in enumerate(layers):
        offset = 0.16 if cross else 0.0
        _spread(left, index - offset, layer.update, BLUE)
        _spread(right, index - offset, layer.reset, BLUE)
        if layer.cross_update is not None and layer.cross_reset is not None:
            _spread(left, index + offset, layer.cross_update, GREEN)
            _spread(right, index + offset, layer.cross_reset, GREEN)
    left.set_xlim(-0.02, 1.02)
    left.set_xlabel("activation (sigmoid): share of what is new")
    right.set_xlabel("activation (silu): factor of the attention output")
    right.axvline(0, color=GREY, linewidth=0.6)
    for axis, title in ((left, "update gate"), (right, "reset gate")):
        axis.set_title(title)
        axis.grid(axis="x")
        _rows(axis, [f"layer {index + 1}" for index in range(len(layers))])
    handles = [
        Line2D([], [], color=GREY, marker="o", markersize=4, linestyle="", label="mean"),
        Line2D([], [], color=GREY, linewidth=2, label="10% to 90% of tokens and features"),
    ]
    if cross:
        for colour, what in ((BLUE, "self-attention"), (GREEN, "cross-attention")):
            handles.append(Line2D([], [], color=colour, marker="o", markersize=4, linewidth=2, label=what))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure, _named(name, "gates"), f"Intervals: activation of both gates{_of(name)} by layer"


@_picture
def attention(
    name: str,
    attentions: Sequence[Attention],
    queries: Sequence[str],
    keys: Sequence[str],
    chunk: int | None = None,
    cross_attention: bool = False,
) -> tuple[Figure, str, str]:
    """Heat maps of attention weights, one panel for each layer; lines mark chunk borders.

    Args:
        name: The side.
        attentions: The attention of each layer.
        queries, keys: The tokens, which label rows and columns if there are few.
        chunk: Tokens per chunk.
        cross_attention: Whether this is cross-attention.
    """
    few = max(len(queries), len(keys)) <= _FEW_TOKENS
    figure, axes = _grid(len(attentions), 2.3 if few else 1.6, columns=3 if few else 4)
    image = None
    for index, (axis, each) in enumerate(zip(axes, attentions)):
        shown = np.maximum(each.shares, 1e-9)
        image = axis.imshow(shown, norm=LogNorm(1e-4, 1), cmap="magma", interpolation="none")
        axis.set_title(f"layer {index + 1}")
        if few:
            axis.set_xticks(range(len(keys)), [_visible(token) for token in keys], rotation=90)
            axis.set_yticks(range(len(queries)), [_visible(token) for token in queries])
        elif chunk is not None:
            for border in range(chunk, len(keys), chunk):
                axis.axvline(border - 0.5, color=SKY, linewidth=0.7)
                axis.axhline(border - 0.5, color=SKY, linewidth=0.7)
    _label_outer(axes, "key", "query")
    assert image is not None
    _colourbar(figure, image, axes, "share of the query's weight")
    what = "cross-attention" if cross_attention else "attention"
    return figure, _named(name, what), f"Heat maps: {what}{_of(name)} by layer, query and key"


@_picture
def attention_distances(name: str, layers: Sequence[LayerReading]) -> tuple[Figure, str, str]:
    """The reach of attention: the share of weight within a distance, and the mean distance of each layer."""
    figure, (left, right) = _figure(max(2.1, 0.7 + 0.2 * len(layers)), columns=2)
    for layer, colour in zip(layers, _depth_colours(len(layers))):
        assert layer.attention.within is not None
        left.plot(range(1, len(layer.attention.within) + 1), layer.attention.within, color=colour)
    length = len(layers[0].attention.shares)
    left.set_xscale("log", base=2)
    _octaves(left.xaxis, 1, max(length, 2))
    left.set_ylim(0, 1.02)
    left.set_xlabel("tokens, the current one included")
    left.set_ylabel("share of attention within")
    left.grid()
    for index, (layer, colour) in enumerate(zip(layers, _depth_colours(len(layers)))):
        right.plot(layer.attention.even_distance, index, "o", markersize=5, fillstyle="none", color=GREY)
        right.plot(layer.attention.distance, index, "o", markersize=5, color=colour)
    right.set_xlim(0, 1.08 * max(right.get_xlim()[1], 1.0))
    right.set_xlabel("mean distance in tokens")
    right.grid(axis="x")
    _rows(right, [f"layer {index + 1}" for index in range(len(layers))])
    handles = [
        Line2D([], [], color=BLUE, marker="o", markersize=5, linestyle="", label="attention"),
        Line2D([], [], color=GREY, marker="o", markersize=5, fillstyle="none", linestyle="", label="if it were even"),
    ]
    right.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    _layer_key(figure, [left], len(layers))
    return figure, _named(name, "distances"), f"Lines and points: distance of attention{_of(name)} by layer"


@_picture
def costs(measured: Sequence[Cost]) -> tuple[Figure, str, str]:
    """Time and memory over length, with lines of linear and quadratic growth."""
    memory = [cost.memory for cost in measured]
    panels: list[tuple[str, list[float]]] = [("seconds", [cost.seconds for cost in measured])]
    if all(memory):
        panels.append(("MiB", [(value or 0) / 2**20 for value in memory]))
    lengths = np.array([cost.length for cost in measured], dtype=float)
    figure, axes = _figure(2.3, columns=len(panels))
    for axis, (unit, values) in zip([axes] if len(panels) == 1 else axes, panels):
        for power, style, label in ((1, "--", "linear"), (2, ":", "quadratic")):
            guide = values[-1] * (lengths / lengths[-1]) ** power
            axis.plot(lengths, guide, style, color=GREY, linewidth=0.9, label=f"{label} growth")
        axis.plot(lengths, values, "o-", color=BLUE, markersize=4, label="measured")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=10)
        _octaves(axis.xaxis, lengths[0], max(lengths[-1], 2 * lengths[0]))
        low, high = min(values) / 1.6, max(values) * 1.6
        axis.set_ylim(low, high)
        ticks = [digit * 10.0**power for power in range(-6, 9) for digit in (1, 2, 5)]
        axis.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(_number)
        axis.set_xlabel("tokens")
        axis.set_title("time, in seconds" if unit == "seconds" else "memory above the weights, in MiB")
        axis.grid()
        axis.legend(loc="upper left")
    return figure, "costs", "Lines: time and memory of a forward pass over the length"


def short_count(value: float) -> str:
    """A short form of a count: 950, 12.3k, 4.56M."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:g}"


def _figure(height: float, columns: int = 1, **arguments: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.subplots(1, columns, **arguments)


def _grid(count: int, height: float, columns: int = 4, **arguments: Any) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, `columns` or fewer in a row of this height."""
    width = _MARGIN + (_WIDTH - _MARGIN) * min(count, columns) / columns
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width, height * rows + 0.35), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **arguments).flat)
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]


def _label_outer(axes: Sequence[Axes], x: str, y: str) -> None:
    """Labels the axes once; panels that share y have its numbers only in the first column."""
    figure = axes[0].figure
    figure.supxlabel(x, fontsize=8)
    figure.supylabel(y, fontsize=8)


def _rows(axis: Axes, names: list[str]) -> None:
    """A row for each name, the first on top."""
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.45, -0.55)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)


def _octaves(axis: Any, low: float, high: float) -> None:
    """Ticks of a logarithmic axis at powers of 2, or of 4, 8 ... if these would be many."""
    first, last = math.floor(math.log2(low)), math.ceil(math.log2(high))
    step = math.ceil((last - first + 1) / 8)
    axis.set_major_locator(FixedLocator([2.0**power for power in range(first, last + 1, step)]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(_number))


def _distribution(axis: Axes, row: float, values: np.ndarray, colour: str) -> tuple[float, float]:
    """Median, middle half, 5% to 95% and maximum in a row; returns the least and the greatest number drawn."""
    finite = np.minimum(values[~np.isnan(values)], HORIZON)
    if not finite.size:
        return 1.0, 2.0
    low, first, middle, third, high, most = np.quantile(finite, (0.05, 0.25, 0.5, 0.75, 0.95, 1))
    axis.hlines(row, low, high, color=colour, linewidth=1)
    axis.hlines(row, first, third, color=colour, linewidth=3)
    axis.plot(middle, row, "o", color=colour, markersize=5, markeredgecolor="white", markeredgewidth=0.8, zorder=3)
    axis.plot(most, row, "|", color=colour, markersize=6)
    return low, most


def _spread(axis: Axes, row: float, spread: Spread, colour: str) -> None:
    axis.hlines(row, spread.low, spread.high, color=colour, linewidth=2)
    axis.plot(spread.mean, row, "o", color=colour, markersize=4.5, markeredgecolor="white", markeredgewidth=0.6)


def _depth_colours(layers: int) -> list[Any]:
    return [_DEPTH(index / max(layers - 1, 1)) for index in range(layers)]


def _layer_key(figure: Figure, axes: Sequence[Axes], layers: int) -> None:
    """Shows the colours of layers: a legend for few, a scale for many."""
    if layers <= _FEW_LAYERS:
        handles = [Line2D([], [], color=colour) for colour in _depth_colours(layers)]
        axes[-1].legend(handles, [f"layer {index + 1}" for index in range(layers)], loc="lower right")
        return
    scale = matplotlib.cm.ScalarMappable(Normalize(1, layers), _DEPTH)
    bar = figure.colorbar(scale, ax=axes, aspect=30, pad=0.02)
    bar.set_label("layer")
    bar.outline.set_visible(False)  # type: ignore[operator]


def _colourbar(figure: Figure, image: Any, axes: Sequence[Axes], label: str, ticks: list[float] | None = None) -> None:
    bar = figure.colorbar(image, ax=list(axes), aspect=30, pad=0.02, ticks=ticks)
    bar.set_label(label)
    bar.minorticks_off()
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.yaxis.set_major_formatter(_number)


def _named(side: str, what: str) -> str:
    return f"{side}-{what}" if side else what


def _of(side: str) -> str:
    return f" of the {side}" if side else ""


def _number(value: float, _: Any = None) -> str:
    """A number on an axis: 0.5, −32, 4k."""
    if abs(value) >= 1024 and value % 1024 == 0:
        return f"{value / 1024:g}k".replace("-", MINUS)
    return f"{value:g}".replace("-", MINUS)


def _visible(token: str) -> str:
    """A token with visible blanks and control characters, cut to a few characters."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in token).replace(" ", "␣")
    return shown if len(shown) <= 12 else shown[:11] + "…"
