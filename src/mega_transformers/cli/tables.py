"""Tables of scores that can be read on a narrow terminal too."""

from __future__ import annotations

from collections.abc import Mapping

JOINERS = "\u200c\u200d"  # what makes one character of several: a part of emoji and of Persian and Indian scripts


def print_scores(
    title: str, scores: Mapping[str, Mapping[str, float]], columns: Mapping[str, tuple[str, str]]
) -> None:
    """Shows a row for each scored thing; where columns would be cut, a table of two columns for each.

    Args:
        title: What the numbers are of.
        scores: Name -> key of a score -> its value.
        columns: Key of a score -> title and format, in their order; those that no score has are left out.
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
    """A token as it can stand in a table: control characters escaped, blanks alone quoted."""
    shown = "".join(c if c.isprintable() or c in JOINERS else repr(c)[1:-1] for c in token)
    if keep_spaces:
        return shown
    return shown.strip() or repr(shown)
