"""Draws time and memory against length, as SVG."""

from __future__ import annotations

import io
import re
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from .reading import Reading

INK, TIME, MEMORY = "#64748b", "#0d9488", "#c2620e"  # readable on light and dark pages
SETTINGS: Any = {"svg.fonttype": "none", "svg.hashsalt": "mega", "font.family": "sans-serif", "font.size": 11}


def draw(reading: Reading) -> str:
    """Two pictures side by side, or one below the other on narrow screens; they load nothing from elsewhere."""
    seconds = [point.seconds for point in reading.points]
    memory = [point.memory / 2**20 for point in reading.points]
    pictures = _picture(reading, "seconds", seconds, TIME) + _picture(reading, "memory in MB", memory, MEMORY)
    return f'<div class="charts">{pictures}</div>'


def _picture(reading: Reading, title: str, values: list[float], colour: str) -> str:
    with rc_context(SETTINGS):
        figure = Figure(figsize=(4.8, 2.9), layout="constrained")
        axis = figure.subplots()
        axis.plot([point.tokens for point in reading.points], values, color=colour, marker="o", markersize=4)
        axis.set(xlim=(0, reading.total * 1.05), ylim=(0, max(*values, 0.1) * 1.15))
        axis.set_xlabel("tokens read", color=INK)
        axis.set_title(title, color=colour, loc="left", fontsize=12)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")
        axis.locator_params(nbins=6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(INK)
        axis.tick_params(colors=INK)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    return f'<figure role="img" aria-label="{title} against tokens read">{svg}</figure>'
