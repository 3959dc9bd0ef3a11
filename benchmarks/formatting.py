"""Numbers as tables show them."""

from __future__ import annotations


def seconds(value: float | None, digits: int | None = None) -> str:
    """A time in a unit that suits it; with `digits` significant ones, in microseconds too."""
    if value is None:
        return "-"
    if digits is not None:
        unit, factor = ("s", 1.0) if value >= 1 else ("ms", 1e3) if value >= 1e-3 else ("µs", 1e6)
        return f"{value * factor:#.{digits}g}".rstrip(".") + f" {unit}"
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1e3:.0f} ms" if value >= 0.1 else f"{value * 1e3:.1f} ms"


def size(value: float | None) -> str:
    """A number of bytes in MiB."""
    return "-" if value is None else f"{mebibytes(value)} MiB"


def mebibytes(value: float | None) -> str:
    """A number of bytes as a number of MiB, small ones to a tenth."""
    if value is None:
        return "-"
    return f"{value / 2**20:.1f}" if 0 < value < 10 * 2**20 else f"{value / 2**20:.0f}"


def escape(text: str) -> str:
    """A text within a cell of a markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")
