"""Texts of a recipe's sources, as blocks of token ids."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from .cleaning import documents_of
from .pair_recipe import PairSource
from .reading import read_text
from .recipe import ROLES, Source
from .schema import RecipeError
from .tokenizer import encode_documents

CHARACTERS_PER_BATCH = 1 << 20


def find_files(sources: list[Source], data_dir: Path) -> dict[str, list[Path]]:
    """The files of each role below `data_dir`.

    Raises:
        RecipeError: for a pattern that matches no file.
    """
    found: dict[str, list[Path]] = {role: [] for role in ROLES}
    for source in sources:
        for role in ROLES:
            if source.dataset is None:
                found[role] += source_files(source, role, data_dir)
    return found


def source_files(source: Source | PairSource, role: str, data_dir: Path) -> list[Path]:
    """The files of a source that play a role, sorted within a pattern."""
    files: list[Path] = []
    for pattern in getattr(source, role):
        matches = [Path(name) for name in sorted(glob.glob(str(data_dir / pattern), recursive=True))]
        if not any(match.is_file() for match in matches):
            raise RecipeError(
                f"{source.name}: no file matches {pattern!r} in {data_dir}; say where the data is with --data-dir or "
                "MEGA_DATA_DIR"
            )
        files += [match for match in matches if match.is_file()]
    return files


def iterate_documents(sources: list[Source], role: str, data_dir: Path) -> Iterator[str]:
    """All documents that play a role, in the recipe's order."""
    for source in sources:
        for text in _texts(source, role, data_dir):
            yield from documents_of(text, source.clean, source.documents)


def _texts(source: Source, role: str, data_dir: Path) -> Iterable[str]:
    if source.dataset is None:
        return map(read_text, source_files(source, role, data_dir))
    return _rows(source, role)


@dataclass
class TextSize:
    """How long texts are.

    Args:
        characters: Unicode characters of the documents, cleaned.
        words: Their words, parted by white space.
        raw_words: The words of the texts before cleaning.
    """

    characters: int = 0
    words: int = 0
    raw_words: int = 0

    def add(self, text: str, documents: Iterable[str]) -> None:
        """Adds a text and its documents."""
        self.raw_words += len(text.split())
        for document in documents:
            self.characters += len(document)
            self.words += len(document.split())

    def __add__(self, other: TextSize) -> TextSize:
        return TextSize(self.characters + other.characters, self.words + other.words, self.raw_words + other.raw_words)

    def scores(self, nats: float, tokens: int) -> dict[str, float]:
        """What a model's total cross entropy at so many tokens means per token, character and word."""
        return {
            "cross_entropy": nats / tokens,
            "perplexity": _exp(nats / tokens),
            "bits_per_character": nats / math.log(2) / self.characters,
            "word_perplexity": _exp(nats / self.words),
            "raw_word_perplexity": _exp(nats / self.raw_words),
            "tokens": tokens,
            "characters": self.characters,
            "words": self.words,
            "raw_words": self.raw_words,
        }


def _exp(value: float) -> float:
    """exp, infinite where floats end: a text without blanks is one word."""
    return math.exp(value) if value < 700 else math.inf


def text_size(sources: list[Source], role: str, data_dir: Path) -> TextSize:
    """How long the texts are that play a role."""
    size = TextSize()
    for source in sources:
        for text in _texts(source, role, data_dir):
            size.add(text, documents_of(text, source.clean, source.documents))
    return size


def _rows(source: Source, role: str) -> Iterator[str]:
    assert source.dataset is not None
    for split in getattr(source, role):
        for row in load_split(source.dataset, source.config, split, [source.text_column]):
            yield row[source.text_column]


def load_split(dataset: str, config: str | None, split: str, columns: list[str]) -> Any:
    """Rows of a split of a Hugging Face data set, with these columns only.

    Raises:
        RecipeError: if it cannot be loaded, or lacks a column.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise RecipeError(
            f"dataset={dataset!r} needs the package datasets: pip install 'mega-transformers[train]'"
        ) from None
    try:
        rows = load_dataset(dataset, config, split=split)
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(f"dataset={dataset!r}, split {split!r} cannot be loaded: {error}") from None
    for column in columns:
        if column not in rows.column_names:
            raise RecipeError(f"dataset={dataset!r} has no column {column!r}; it has {', '.join(rows.column_names)}")
    return rows.select_columns(columns)


def tokenize(documents: Iterable[str], tokenizer: Any, description: str) -> np.ndarray:
    """One line of ids (tokens,): `<s>` and `</s>` around every document. Shows a progress bar."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    pieces = [np.empty(0, dtype=_id_type(tokenizer))]
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[tokens]}"))
    with Progress(*columns) as progress:
        task = progress.add_task(description, total=None, tokens="")
        total = 0
        for piece in encoded(documents, tokenizer, [tokenizer.cls_token_id], [tokenizer.sep_token_id]):
            pieces.append(piece)
            total += len(piece)
            progress.update(task, tokens=f"{total:,} tokens")
        progress.update(task, total=1, completed=1)
    return np.concatenate(pieces)


def encoded(documents: Iterable[str], tokenizer: Any, start: list[int], end: list[int]) -> Iterator[np.ndarray]:
    """Ids (tokens,) of about a million characters of documents at a time, `start` and `end` around each document."""
    for batch in _batches(documents):
        ids = (token for ids in encode_documents(tokenizer, batch) for token in (*start, *ids, *end))
        yield np.fromiter(ids, dtype=_id_type(tokenizer))


def _id_type(tokenizer: Any) -> type[np.integer]:
    return np.uint16 if len(tokenizer) <= 1 << 16 else np.int32


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= CHARACTERS_PER_BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def to_blocks(tokens: np.ndarray, length: int) -> np.ndarray:
    """A line of ids (tokens,) cut into (blocks, length); the tokens left over at the end are not used."""
    count = len(tokens) // length
    return tokens[: count * length].reshape(count, length)


def cached_tokens(
    sources: list[Source], role: str, tokenizer: Any, data_dir: Path, cache_dir: Path, description: str
) -> np.ndarray:
    """As `tokenize`, read from `cache_dir` if the same texts were tokenised alike before."""
    key = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    for source in sources:
        key.update(
            json.dumps([source.clean, source.documents, source.dataset, source.config, source.text_column]).encode()
        )
        key.update(json.dumps(getattr(source, role)).encode())
        if source.dataset is None:
            for file in source_files(source, role, data_dir):
                key.update(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}".encode())
    path = cache_dir / f"{role}-{key.hexdigest()[:16]}.npy"
    if not path.exists():
        tokens = tokenize(iterate_documents(sources, role, data_dir), tokenizer, description)
        cache_dir.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        with partial.open("wb") as stream:
            np.save(stream, tokens)
        partial.replace(path)
    return np.load(path, mmap_mode="r")


class Blocks(Dataset):
    """Blocks of ids, each with a seed that depends on the recipe's seed, the epoch and its index alone.

    What a task draws at random for a block (its masks) it draws from that seed: the same in every evaluation, new in
    every epoch, and unchanged by the batch size, by worker processes and by interruptions.
    """

    def __init__(self, blocks: np.ndarray, seed: int) -> None:
        self.blocks = blocks
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called at the start of every epoch; epochs only go up."""
        self.epoch = max(self.epoch, epoch)

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`{"input_ids": (length,) int64 array, "seed": int}`."""
        seed = np.random.SeedSequence((self.seed, self.epoch, int(index))).generate_state(2, np.uint32)
        return {"input_ids": self.blocks[index].astype(np.int64), "seed": int(seed[0]) << 31 | int(seed[1]) >> 1}
