"""Tables of scores and bars of probabilities, readable on narrow terminals too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.bar import Bar
    from rich.console import Console

JOINERS = "\u200c\u200d"  # the zero-width joiner of emoji and of Persian and Indian scripts


def print_scores(
    title: str, scores: Mapping[str, Mapping[str, float]], columns: Mapping[str, tuple[str, str]]
) -> None:
    """Prints one row for each name; if columns would be cut, one table of two columns for each name.

    Args:
        title: The title of the table.
        scores: Name -> key of a score -> its value.
        columns: Key of a score -> title and format, in order; columns without any score are left out.
    """
    from rich.console import Console
    from rich.table import Column, Table

    console = Console()
    columns = {key: column for key, column in columns.items() if any(key in score for score in scores.values())}
    numbers = [
        [format(score[key], form) if key in score else "" for key, (_, form) in columns.items()]
        for score in scores.values()
    ]
    headers = [name for name, _ in columns.values()]
    table = Table(Column("", overflow="fold"), *(Column(name, justify="right") for name in headers), title=title)
    for name, row in zip(scores, numbers):
        table.add_row(name, *row)
    if table.__rich_measure__(console, console.options.update(max_width=10_000)).minimum <= console.width:
        console.print(table)
        return
    console.print(title)
    for name, row in zip(scores, numbers):
        narrow = Table(Column(name, overflow="fold"), Column("", justify="right"))
        for header, number in zip(headers, row):
            narrow.add_row(header, number)
        console.print(narrow)


def visible(token: str, keep_spaces: bool = False) -> str:
    """A token for a table: control characters escaped, and quoted if it is only blanks."""
    shown = "".join(c if c.isprintable() or c in JOINERS else repr(c)[1:-1] for c in token)
    if keep_spaces:
        return shown
    return shown.strip() or repr(shown)


def bar_width(console: Console) -> int:
    """The width of a bar in a table, which depends on the width of the terminal."""
    return max(8, min(40, console.width // 8))


def probability_bar(probability: float, width: int) -> Bar:
    """A bar that is full at 1; any probability above 0 shows at least the thinnest block, an eighth of a column.

    Args:
        probability: From 0 to 1.
        width: Width of the bar, in columns.
    """
    from rich.bar import Bar

    eighth = 1 / (8 * width)
    end = max(probability, 1.01 * eighth) if probability > 0 else 0  # rich rounds down
    return Bar(size=1, begin=0, end=end, width=width, color="cyan", bgcolor="grey23")


def percent(probability: float) -> str:
    """A probability as "12.3%", or "<0.1%" for one that would round to zero."""
    return "<0.1%" if 0 < probability < 0.0005 else f"{probability:.1%}"
