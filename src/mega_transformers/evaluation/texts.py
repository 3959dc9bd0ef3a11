"""Texts: read from files, cleaned, cut into documents, measured and turned into ids."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RecipeError

CHARACTERS_PER_BATCH = 1 << 20
_QUOTED = re.compile(r'" ([^"\n]+?) "')


def wikitext(text: str) -> str:
    """Undoes WikiText's tokenisation: no `@-@`, no spaces around punctuation and inside brackets."""
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = _QUOTED.sub(r'"\1"', text)
    text = re.sub(r" ([,.;:!?%)\]}]|n't\b|'(?:s|re|ve|ll|d|m|t)\b)", r"\1", text)
    text = re.sub(r"([(\[{$£€#]) ", r"\1", text)
    text = text.replace("s ' ", "s' ").replace(" / ", "/").replace(" ° ", "° ")
    return re.sub(r"^ (?:= )+(.+?)(?: =)+ *$", r"\1", text, flags=re.MULTILINE)


def unwrap(text: str) -> str:
    """Joins lines that were broken at a fixed width: one line per paragraph, blank lines between paragraphs."""
    paragraphs = re.split(r"\n\s*\n", text)
    return "\n\n".join(re.sub(r"\s*\n\s*", " ", paragraph).strip() for paragraph in paragraphs)


def emphasis(text: str) -> str:
    """Removes the marks of plain-text emphasis: `_word_` and ` * words * `."""
    text = re.sub(r"(?<!\w)_([^_\n]+)_(?!\w)", r"\1", text)
    return re.sub(r" ?\*(?= |$|[.,;:!?])", "", re.sub(r"(^|\s)\* ", r"\1", text))


CLEANERS: dict[str, Callable[[str], str]] = {"wikitext": wikitext, "unwrap": unwrap, "emphasis": emphasis}

# how to cut a file or row into documents; None does not cut
SPLITTERS: dict[str, str | None] = {
    "whole": None,
    "lines": r"\n",
    "paragraphs": r"\n[ \t]*\n\s*",
    "sections": r"\n[ \t]*\n[ \t]*\n\s*",
    # WikiText: an article begins with a heading of the first level
    "articles": r"\n(?= = [^=\n]+ = *\n)",
}


def check_names(clean: list[str], documents: str) -> None:
    """Refuses unknown values of `--clean` and `--documents`.

    Raises:
        RecipeError: with the known names.
    """
    for name in clean:
        if name not in CLEANERS:
            raise RecipeError(f"--clean {name} is unknown; the known values are {', '.join(CLEANERS)}")
    if documents not in SPLITTERS:
        raise RecipeError(f"--documents {documents} is unknown; the known values are {', '.join(SPLITTERS)}")


def documents_of(text: str, clean: list[str], documents: str) -> list[str]:
    """The documents of a text: cut, cleaned and stripped; empty ones are left out."""
    text = text.replace("\r\n", "\n")
    # cut first into articles, since cleaning removes their headings; it keeps or makes all other separators
    pieces = re.split(str(SPLITTERS[documents]), text) if documents == "articles" else [text]
    for name in clean:
        pieces = [CLEANERS[name](piece) for piece in pieces]
    splitter = SPLITTERS[documents]
    if splitter is not None and documents != "articles":
        pieces = re.split(splitter, pieces[0])
    return [piece for piece in map(str.strip, pieces) if piece]


def read_text(path: Path) -> str:
    """The text of a file, which may be compressed with gzip (`.gz`).

    Raises:
        RecipeError: if it cannot be read, is damaged or not UTF-8.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return data.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read {path}: {error}") from None


@dataclass
class TextSize:
    """The size of texts.

    Args:
        characters: Unicode characters of the documents, cleaned.
        words: Their words, separated by white space.
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
        """A model's total cross entropy over `tokens` tokens, per token, character and word."""
        return {
            "cross_entropy": nats / tokens,
            "perplexity": safe_exp(nats / tokens),
            "bits_per_character": nats / math.log(2) / self.characters,
            "word_perplexity": safe_exp(nats / self.words),
            "raw_word_perplexity": safe_exp(nats / self.raw_words),
            "tokens": tokens,
            "characters": self.characters,
            "words": self.words,
            "raw_words": self.raw_words,
        }


def safe_exp(value: float) -> float:
    """exp, infinite beyond the range of floats (a text without blanks is one word)."""
    return math.exp(value) if value < 700 else math.inf


def encode_documents(tokenizer: Any, documents: list[str]) -> list[list[int]]:
    """Ids of each document, without special tokens; special tokens in the text are ordinary text."""
    backend = tokenizer.backend_tokenizer
    before = backend.encode_special_tokens
    backend.encode_special_tokens = True
    try:
        return [encoding.ids for encoding in backend.encode_batch_fast(documents, add_special_tokens=False)]
    finally:
        backend.encode_special_tokens = before


def encoded_batches(documents: Iterable[str], tokenizer: Any) -> Iterator[list[list[int]]]:
    """Like `encode_documents`, for about a million characters at a time."""
    batch: list[str] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= CHARACTERS_PER_BATCH:
            yield encode_documents(tokenizer, batch)
            batch, size = [], 0
    if batch:
        yield encode_documents(tokenizer, batch)
