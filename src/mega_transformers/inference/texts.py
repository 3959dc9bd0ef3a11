"""Reads texts or pairs of texts from files: whole files, lines, or columns of tables. Imports nothing heavy."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RecipeError, did_you_mean
from ..evaluation.texts import read_text

TABLES = (".csv", ".tsv", ".jsonl")
COLUMNS = ("text", "text_pair")
"""The default columns of a table."""


@dataclass(frozen=True)
class Text:
    """A text, or a pair of texts.

    Args:
        id: Its origin: "3", "book.txt", "rows.csv:7".
        text: The text, or the first one of a pair.
        pair: The second one of a pair.
        whole: Whether it is a whole file, which is not repeated in the output.
    """

    id: str
    text: str
    pair: str | None = None
    whole: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        """The text, or both texts of a pair."""
        return (self.text,) if self.pair is None else (self.text, self.pair)


def is_table(path: Path) -> bool:
    """Whether a file's name is that of a table, compressed or not."""
    return _ending(path) in TABLES


def read_file(path: Path, columns: Sequence[str] = COLUMNS[:1], lines: bool = False) -> list[Text]:
    """The texts of a file: the columns of a table, else the whole file, or its lines without blank ones.

    Args:
        path: A .csv, .tsv or .jsonl file, or plain text; with a final .gz, compressed. In a .tsv file, quotes are
            ordinary characters.
        columns: Names of one column, or of two for pairs; in .csv and .tsv files without a header, their numbers,
            counted from "1". In plain text, two columns mean that each line is a pair, separated by a tab.
        lines: Whether each line of plain text is a text.

    Raises:
        RecipeError: names the file, and the line if there is one; for a file that cannot be read, is damaged, has no
        such column or holds no text.
    """
    content = read_text(path)
    pairs = len(columns) == 2
    if is_table(path):
        rows = _json_rows(path, content, columns) if _ending(path) == ".jsonl" else _csv_rows(path, content, columns)
        texts = [_row_text(f"{path}:{line}", path, line, columns, values) for line, values in rows]
    elif lines or pairs:
        numbered = enumerate(map(str.strip, io.StringIO(content, newline=None)), start=1)
        texts = [line_text(f"{path}:{line}", text, pairs) for line, text in numbered if text]
    else:
        texts = [Text(str(path), content, whole=True)] if content.strip() else []
    if not texts:
        raise RecipeError(f"{path} holds no text")
    return texts


def line_text(id: str, line: str, pair: bool) -> Text:
    """The text of a line, or its pair of texts separated by a tab.

    Raises:
        RecipeError: if a pair does not have exactly two texts, or one is empty.
    """
    if not pair:
        return Text(id, line)
    parts = [part.strip() for part in line.split("\t")]
    if len(parts) != 2 or not all(parts):
        raise RecipeError(f"{id}: expected two texts separated by a tab, got {len(list(filter(None, parts)))}")
    return Text(id, parts[0], parts[1])


def _ending(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix


def _row_text(id: str, path: Path, line: int, columns: Sequence[str], values: Sequence[Any]) -> Text:
    for column, value in zip(columns, values):
        if not isinstance(value, str):
            raise RecipeError(f"{path}, line {line}: the column {column!r} holds {value!r}, which is not a text")
        if not value.strip():
            raise RecipeError(f"{path}, line {line}: the column {column!r} is empty")
    return Text(id, *values)


def _json_rows(path: Path, content: str, columns: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise RecipeError(f"{path}, line {number}: not valid JSON: {error.msg}") from None
        if not isinstance(row, dict):
            raise RecipeError(f'{path}, line {number}: expected an object such as {{"text": ...}}, got {line[:40]}')
        for column in columns:
            if column not in row:
                raise RecipeError(f"{path}, line {number}: {_missing(column, list(row))}")
        yield number, [row[column] for column in columns]


def _csv_rows(path: Path, content: str, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    # the default limit of a field, 131,072 characters, is too small for a book
    # the limit is shared by the whole process, so it is only ever raised
    csv.field_size_limit(max(csv.field_size_limit(), min(len(content), 2**31 - 1)))
    form: dict[str, Any] = {"delimiter": ",", "strict": True}
    if _ending(path) == ".tsv":
        form = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    reader = csv.reader(io.StringIO(content, newline=""), **form)
    try:
        if all(column.isdecimal() and int(column) for column in columns):
            places = [int(column) - 1 for column in columns]
        else:
            header = next(reader, [])
            for column in columns:
                if column not in header:
                    raise RecipeError(f"{path}: {_missing(column, header)}")
            places = list(map(header.index, columns))
        end = reader.line_num
        for row in reader:
            first, end = end + 1, reader.line_num
            if not row:  # a blank line
                continue
            if len(row) <= max(places):
                raise RecipeError(
                    f"{path}, line {first}: there is no column {max(places) + 1}; the row has {len(row)}"
                )
            yield first, [row[place] for place in places]
    except csv.Error as error:
        raise RecipeError(f"{path}, line {reader.line_num}: {error}") from None


def _missing(column: str, known: list[str]) -> str:
    hint = did_you_mean(column, known, f"there are {', '.join(map(repr, known)) or 'none'}")
    return f"there is no column {column!r}; {hint}"
