"""Draws the pictures of docs/how-it-works.md: `python docs/figures/make.py [FOLDER]`.

Everything in them is computed by the package, or read from benchmarks/results. They are SVG on white, so that they can
be read on light and dark pages, and their text stays text.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, PathPatch, Rectangle
from matplotlib.path import Path as Outline
from transformers import DynamicCache

from mega_transformers import MegaConfig, MegaForCausalLM
from mega_transformers.interpret.figures import BLUE, GREEN, GREY, INK, ORANGE, PINK, SKY, YELLOW
from mega_transformers.ops.ema import EMACoefficients, ema_kernel
from mega_transformers.ops.layout import AttentionLayout, self_attention_layout

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "benchmarks" / "results"
WIDTH = 7.2
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mega",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "grid.color": GREY,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


def coefficients(half_lives: list[float], weights: list[float]) -> EMACoefficients:
    """Of one channel that is a weighted sum of exponentials with these half-lives, in tokens."""
    decay = torch.tensor([[0.5 ** (1 / half_life) for half_life in half_lives]], dtype=torch.float64)
    return EMACoefficients(torch.tensor([weights], dtype=torch.float64), decay.log(), torch.ones_like(decay), decay)


def kernels() -> Figure:
    """What one exponential remembers, and what a sum of several does."""
    figure = Figure((WIDTH, 2.6), layout="constrained")
    one, several, both = figure.subplots(1, 3)
    for half_life, colour in ((2, ORANGE), (8, GREEN), (32, BLUE)):
        kernel = ema_kernel(coefficients([half_life], [1.0]), 65)[0]
        one.plot(kernel, color=colour, label=f"{half_life} tokens")
        one.plot(half_life, 0.5, "o", color=colour, markersize=4)
    one.set(title="One exponential", xlabel="lag (tokens ago)", ylabel="weight of the token", ylim=(0, 1.05))
    one.legend(title="half-life", title_fontsize=8.5)
    shapes = (
        ("recent tokens", [2, 8], [0.5, 0.5], ORANGE),
        ("near minus far", [3, 24], [1.0, -0.35], GREEN),
        ("long memory", [1, 60], [0.3, 0.7], BLUE),
    )
    for label, half_lives, weights, colour in shapes:
        several.plot(ema_kernel(coefficients(half_lives, weights), 65)[0], color=colour, label=label)
    several.axhline(0, color=GREY, linewidth=0.7)
    several.set(title="Sums of two (N = 2)", xlabel="lag (tokens ago)", ylim=(-0.35, 1.05))
    several.legend()
    past = ema_kernel(coefficients([3, 24], [0.8, 0.2]), 41)[0]
    future = ema_kernel(coefficients([2], [0.5]), 41)[0]
    both.plot(range(-40, 1), past.flip(0), color=BLUE, label="forward: the past")
    both.plot(range(41), future, color=ORANGE, label="backward: the future")
    both.set(title="Both directions", xlabel="distance to the token", ylim=(0, 1.05))
    both.set(ylim=(0, 1.45), yticks=(0, 0.5, 1))
    both.legend(loc="upper left")
    for axes in (one, several, both):
        axes.grid()
    return figure


def box(axes: Axes, x: float, y: float, text: str, colour: str, width: float = 1.7, height: float = 0.62) -> None:
    shape = FancyBboxPatch((x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0,rounding_size=0.12")
    shape.set(facecolor=matplotlib.colors.to_rgba(colour, 0.22), edgecolor=colour, linewidth=1.2)
    axes.add_patch(shape)
    axes.text(x, y, text, ha="center", va="center", linespacing=1.25)


def arrow(axes: Axes, *points: tuple[float, float], colour: str = INK) -> None:
    """Along right-angled lines from the first point to the last."""
    for start, end in pairwise(points[:-1]):
        axes.plot(*zip(start, end), color=colour, linewidth=1.1, solid_capstyle="round")
    axes.add_patch(
        FancyArrowPatch(
            *points[-2:], arrowstyle="-|>", mutation_scale=9, linewidth=1.1, color=colour, shrinkA=0, shrinkB=0
        )
    )


def canvas(width: float, height: float, inches: float) -> tuple[Figure, Axes]:
    figure = Figure((WIDTH, inches))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def block() -> Figure:
    """The data flow of a Mega block, from left to right."""
    figure, axes = canvas(16.2, 7.3, 3.5)
    box(axes, 1.05, 3.9, "norm", GREY, 1.1)
    box(axes, 2.85, 3.9, "EMA", ORANGE, 1.3)
    arrow(axes, (0.1, 3.9), (0.5, 3.9))
    arrow(axes, (1.6, 3.9), (2.2, 3.9))
    # what is made of the EMA's output
    rows = {"update gate u\n(d)": 6.2, "query, key\n(z)": 4.65, "reset gate r\n(h)": 3.15, "candidate part\n(d)": 1.65}
    for text, y in rows.items():
        box(axes, 5.3, y, text, SKY, 2.3, 0.9)
        arrow(axes, (3.5, 3.9), (3.82, 3.9), (3.82, y), (4.15, y))
    box(axes, 5.3, 0.55, "value v\n(h)", GREEN, 2.3, 0.9)
    arrow(axes, (1.9, 3.9), (1.9, 0.55), (4.15, 0.55))
    axes.text(2.05, 0.75, "without EMA")
    box(axes, 8.35, 3.15, "attention\n+ position bias", BLUE, 2.5, 0.98)
    arrow(axes, (6.45, 4.65), (8.35, 4.65), (8.35, 3.64))
    arrow(axes, (6.45, 0.55), (8.35, 0.55), (8.35, 2.66))
    box(axes, 10.25, 3.15, "\u00d7 r", YELLOW, 0.75)
    arrow(axes, (9.6, 3.15), (9.87, 3.15))
    arrow(axes, (6.45, 3.15), (6.75, 3.15), (6.75, 5.2), (10.25, 5.2), (10.25, 3.46))
    box(axes, 12.0, 2.2, "candidate\nact(W\u00b7 + part)", PINK, 2.3, 0.98)
    arrow(axes, (10.25, 2.84), (10.25, 2.35), (10.85, 2.35))
    arrow(axes, (6.45, 1.65), (10.25, 1.65), (10.25, 2.05), (10.85, 2.05))
    box(axes, 12.0, 6.2, "u \u00b7 candidate\n+ (1 \u2212 u) \u00b7 input", PINK, 2.4, 0.98)
    arrow(axes, (6.45, 6.2), (10.8, 6.2))
    arrow(axes, (12.0, 2.69), (12.0, 5.71))
    arrow(axes, (0.3, 3.9), (0.3, 7.0), (12.0, 7.0), (12.0, 6.69))
    axes.text(0.45, 6.62, "input (d)")
    box(axes, 14.8, 6.2, "feed-forward\nnorm, W, act, W", GREY, 2.5, 0.98)
    arrow(axes, (13.2, 6.2), (13.55, 6.2))
    arrow(axes, (14.8, 5.71), (14.8, 4.72))
    box(axes, 14.8, 4.4, "+", GREY, 0.6)
    arrow(axes, (13.36, 6.2), (13.36, 4.4), (14.5, 4.4))
    arrow(axes, (14.8, 4.09), (14.8, 3.5))
    axes.text(14.8, 3.15, "to the next block", ha="center")
    return figure


def cells(
    axes: Axes, corners: Iterable[tuple[float, float]], colour: str, alpha: float = 1.0, size: float = 1.0
) -> None:
    """Squares with these lower left corners, as one path."""
    square = [(0.0, 0.0), (size, 0.0), (size, size), (0.0, size), (0.0, 0.0)]
    vertices = [(x + dx, y + dy) for x, y in corners for dx, dy in square]
    codes = [Outline.MOVETO, Outline.LINETO, Outline.LINETO, Outline.LINETO, Outline.CLOSEPOLY] * (len(vertices) // 5)
    axes.add_patch(PathPatch(Outline(vertices, codes), facecolor=colour, alpha=alpha, linewidth=0))


def chunks() -> Figure:
    """Attention within chunks, and the EMA's states between them, over two blocks."""
    figure, axes = canvas(14.4, 6.0, 3.0)
    size, tokens, step = 4, 12, 0.95
    left = 2.1
    for layer, y in ((1, 0.75), (2, 3.55)):
        axes.text(0.1, y + 1.05, f"block {layer}", weight="bold", va="center")
        axes.text(0.1, y + 0.3, "EMA", color=ORANGE, va="center")
        axes.text(0.1, y + 1.75, "attention", color=BLUE, va="center")
        for chunk in range(tokens // size):
            x = left + chunk * size * step
            shape = FancyBboxPatch(
                (x + 0.08, y + 1.42), size * step - 0.3, 0.66, boxstyle="round,pad=0,rounding_size=0.1"
            )
            shape.set(facecolor=matplotlib.colors.to_rgba(BLUE, 0.18), edgecolor=BLUE, linewidth=1.1)
            axes.add_patch(shape)
            axes.text(x + (size * step - 0.15) / 2, y + 1.75, "all pairs of the chunk", ha="center", va="center")
        for token in range(tokens):
            x = left + token * step
            axes.add_patch(
                Rectangle(
                    (x + 0.08, y), step - 0.3, 0.6, facecolor=matplotlib.colors.to_rgba(ORANGE, 0.22), edgecolor=ORANGE
                )
            )
            axes.text(x + (step - 0.14) / 2, y + 0.3, f"s{token + 1}", ha="center", va="center")
            if token < tokens - 1:
                crosses = (token + 1) % size == 0
                arrow(axes, (x + step - 0.22, y + 0.3), (x + step + 0.08, y + 0.3), colour=ORANGE if crosses else GREY)
            arrow(axes, (x + (step - 0.14) / 2, y + 0.62), (x + (step - 0.14) / 2, y + 1.4), colour=GREY)
            if layer == 1:
                arrow(axes, (x + (step - 0.14) / 2, y + 2.1), (x + (step - 0.14) / 2, 3.53), colour=GREY)
    for chunk in (1, 2):
        x = left + chunk * size * step - 0.07
        axes.plot((x, x), (0.4, 5.85), color=GREY, linewidth=0.8, linestyle=(0, (3, 3)))
    axes.text(
        left + 6 * step, 0.12, "dashed: ends of chunks; only the EMA's states (orange arrows) cross them", ha="center"
    )
    return figure


def matrices() -> Figure:
    """Who sees whom, as `AttentionLayout.visible` computes it."""
    length, chunk = 12, 4
    starts = torch.zeros(1, length, dtype=torch.bool)
    starts[0, [0, 5, 9]] = True
    padding = torch.ones(1, length, dtype=torch.bool)
    padding[0, :3] = False
    examples: list[tuple[str, AttentionLayout]] = [
        ("Encoder", self_attention_layout(None, length)),
        ("Encoder, chunks of 4", self_attention_layout(None, length, chunk_size=chunk)),
        ("3 tokens of padding, chunks", self_attention_layout(padding, length, chunk_size=chunk)),
        ("Decoder", self_attention_layout(None, length, causal=True)),
        ("Decoder, chunks of 4", self_attention_layout(None, length, chunk_size=chunk, causal=True)),
        ("Decoder, 3 packed documents", self_attention_layout(None, length, causal=True, reset=starts)),
    ]
    figure = Figure((WIDTH, 5.0), layout="constrained")
    for axes, (title, layout) in zip(figure.subplots(2, 3).flat, examples):
        seen = layout.visible(torch.device("cpu"))
        seen = torch.ones(1, length, length) if seen is None else seen.expand(-1, length, length)
        # what padding sees affects nothing
        real = (seen if layout.tokens is None else seen * layout.tokens.unsqueeze(-1)).int()
        for query, row in enumerate(real[0].tolist()):
            axes.add_patch(
                Rectangle((row.index(1) if 1 in row else 0, query), sum(row), 1, facecolor=BLUE, linewidth=0)
            )
        axes.hlines(range(1, length), 0, length, color="#c8ccd2", linewidth=0.6)
        axes.vlines(range(1, length), 0, length, color="#c8ccd2", linewidth=0.6)
        axes.set(title=title, aspect="equal", xticks=(), yticks=(), xlabel="key", ylabel="query")
        axes.set(xlim=(0, length), ylim=(0, length))
        axes.invert_yaxis()
        axes.spines[:].set_visible(True)
    return figure


def cache() -> Figure:
    """What is kept while decoding, and how much that is."""
    figure = Figure((WIDTH, 2.9), layout="constrained")
    kept, size = figure.subplots(1, 2, width_ratios=(1.25, 1))
    length, chunk = 12, 4
    steps = range(1, length + 1)
    seen = [(token + 0.06, done - 0.44) for done in steps for token in range(done - done % chunk)]
    held = [(token + 0.06, done - 0.44) for done in steps for token in range(done - done % chunk, done)]
    for corners, colour, alpha in (
        (seen, GREY, 0.18),
        (held, BLUE, 0.75),
        ([(-1.6, y - 0.44) for y in steps], ORANGE, 0.75),
    ):
        cells(kept, corners, colour, alpha, 0.88)
    kept.set(xlim=(-2, length), ylim=(length + 0.7, 0.3), yticks=range(1, length + 1), ylabel="tokens read so far")
    kept.set(xticks=(-1.16, *(token + 0.5 for token in range(length))), xticklabels=("state", *range(1, length + 1)))
    kept.set(title="Kept between steps, chunks of 4", xlabel="EMA's state, and keys and values of tokens")
    lengths = [(16 << power) - 1 for power in range(9)]  # where most of a chunk is kept
    for label, options, colour in (
        ("chunks of 64", {"use_chunking": True, "chunk_size": 64}, BLUE),
        ("full attention", {}, ORANGE),
    ):
        size.plot(
            lengths,
            [cache_bytes(tokens, options) / 1024 for tokens in lengths],
            "o-",
            color=colour,
            label=label,
            markersize=3.5,
        )
    size.set(xscale="log", yscale="log", title="Size of the cache", xlabel="tokens read so far", ylabel="KiB a block")
    size.set(
        xticks=[16, 128, 1024],
        xticklabels=["16", "128", "1k"],
        yticks=[10, 100, 1000],
        yticklabels=["10", "100", "1000"],
    )
    size.minorticks_off()
    size.grid()
    size.legend()
    return figure


@torch.no_grad()
def cache_bytes(tokens: int, options: dict[str, Any]) -> int:
    """Bytes of one block's cache (d 64, h 128, z 32, N 16) after that many tokens, without spare room of buffers."""
    sizes = {"vocab_size": 50, "hidden_size": 64, "intermediate_size": 128, "shared_representation_size": 32}
    config = MegaConfig(**sizes, num_hidden_layers=1, is_decoder=True, bidirectional=False, **options)
    model, kept = MegaForCausalLM(config).eval(), DynamicCache(config=config)
    model(torch.zeros(1, tokens - 1, dtype=torch.long), cache=kept, logits_to_keep=1)
    model(torch.zeros(1, 1, dtype=torch.long), cache=kept)
    (layer,) = kept.layers
    return sum(x.numel() * x.element_size() for x in (layer.keys, layer.values, layer.state))


def times() -> Figure:
    """Measured times by length."""
    figure = Figure((WIDTH, 2.8), layout="constrained")
    forms, scaling, decoding = figure.subplots(1, 3)
    dispatch = json.loads((RESULTS / "dispatch" / "2026-11-28-amd-epyc.json").read_text())
    table = dispatch["tables"]["ema, inference, 32 rows"]
    for form, label, colour in (
        ("direct", "one matrix", GREEN),
        ("fft", "transform", ORANGE),
        ("chunked", "blocks", BLUE),
    ):
        points = [(int(length), row[form] / 1000) for length, row in table.items() if form in row]
        forms.plot(*zip(*points), "o-", color=colour, label=label, markersize=3.5)
    forms.set(xscale="log", yscale="log", title="EMA alone, 32 rows", xlabel="tokens", ylabel="processor time, ms")
    forms.set(xticks=[16, 32, 64, 128], xticklabels=["16", "32", "64", "128"])
    forms.set(yticks=[1, 3, 10, 30], yticklabels=["1", "3", "10", "30"])
    forms.minorticks_off()
    forms.legend()
    run = json.loads((RESULTS / "2026-11-25-amd-epyc-2c.json").read_text())
    cases = {case["name"]: case["measurements"] for case in run["cases"]}
    for axes, name, scale in ((scaling, "infer-scaling", 1.0), (decoding, "decode-scaling", 1000.0)):
        found = [
            (each["workload"]["length"], sorted(each["seconds"])[len(each["seconds"]) // 2] * scale)
            for each in cases[name]
        ]
        axes.plot(*zip(*found), "o-", color=BLUE, markersize=3.5)
        axes.set(xscale="log", xlabel="tokens")
    scaling.set(yscale="log", title="Encoder, chunks of 512", ylabel="time, s")
    scaling.set(
        xticks=[4096, 16384, 65536],
        xticklabels=["4k", "16k", "64k"],
        yticks=[0.3, 1, 3],
        yticklabels=["0.3", "1", "3"],
    )
    decoding.set(title="A decoding step", xlabel="tokens before it", ylabel="time, ms", ylim=(0, 5))
    decoding.set(xticks=[1024, 16384, 262144], xticklabels=["1k", "16k", "256k"])
    for axes in (scaling, decoding):
        axes.minorticks_off()
    for axes in (forms, scaling, decoding):
        axes.grid()
    return figure


PICTURES: dict[str, tuple[Callable[[], Figure], str]] = {
    "kernels": (kernels, "Three plots of EMA kernels: single exponentials, sums of two, and both directions"),
    "block": (block, "Block diagram of a Mega block, from its input to the next block"),
    "chunks": (chunks, "Two blocks over three chunks: attention stays within a chunk, states of the EMA cross"),
    "matrices": (matrices, "Six matrices of queries and keys that show who sees whom"),
    "cache": (cache, "What a cache keeps at every step, and its size by the number of tokens"),
    "times": (times, "Times of forms of the EMA, of an encoder, and of a decoding step, by length"),
}


def svg(figure: Figure, description: str) -> str:
    """A figure as SVG on a white card, the same at every run."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", facecolor="none", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{description}"', 1)
    end = text.index(">") + 1
    return f'{text[:end]}<rect width="100%" height="100%" rx="6" fill="#ffffff"/>{text[end:].strip()}\n'


def main(folder: Path) -> None:
    torch.manual_seed(0)
    with matplotlib.rc_context(STYLE):
        for name, (draw, description) in PICTURES.items():
            (folder / f"{name}.svg").write_text(svg(draw(), description), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
