"""Reads a whole book and measures time and memory against length."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..assets import RECIPES
from ..cli.loading import CAUSAL, MASKED
from ..cli.runtime import UserError
from ..errors import RecipeError
from ..evaluation.memory import peak_memory, reset_peak_memory
from ..evaluation.reading import Reading as Pieces
from ..evaluation.streaming import read_tokens, score_pieces
from ..evaluation.texts import read_text
from .answers import check_text
from .models import Served

MAX_CHARACTERS = 1_000_000
PIECE = 1024  # tokens
_HOW = {
    CAUSAL: "Each point is a piece of the text. The model reads it with the state carried from the pieces before.",
    MASKED: "Each point is a beginning of the text, read as a whole, since the model reads in both directions.",
}


@dataclass(frozen=True)
class Point:
    """The tokens read so far, their seconds, and the peak bytes of the last piece above the model."""

    tokens: int
    seconds: float
    memory: int


@dataclass(frozen=True)
class Reading:
    """The progress of reading a text.

    Args:
        total: Tokens to read.
        points: The measurements, by length.
        notes: Sentences about the result.
    """

    total: int
    points: tuple[Point, ...]
    notes: tuple[str, ...]

    @property
    def finished(self) -> bool:
        """Whether the whole text is read."""
        return self.points[-1].tokens == self.total

    def doublings(self) -> list[Point]:
        """The points that are about twice as long as the one before, and the last point."""
        chosen = [self.points[0]]
        for point in self.points[1:]:
            if point.tokens >= 2 * chosen[-1].tokens or point is self.points[-1]:
                chosen.append(point)
        return chosen


def example() -> str:
    """The bundled text."""
    folder = RECIPES / "sample"
    return "\n".join((folder / f"{name}.txt").read_text("utf-8") for name in ("train", "validation", "test"))


def text_of(file: str) -> str:
    """The text of an uploaded file.

    Raises:
        UserError: if it is not valid UTF-8.
    """
    try:
        return read_text(Path(file))
    except RecipeError:
        raise UserError(f"the file {Path(file).name} is not valid UTF-8 text") from None


def read(served: Served, text: str) -> Iterator[Reading]:
    """Reads a text and reports the progress after each piece.

    A causal model reads piece by piece in constant memory. A masked model, which reads in both directions, reads
    beginnings of the text of doubling length, each as a whole.

    Raises:
        UserError: for a text that is empty or too long.
    """
    check_text(text, MAX_CHARACTERS)
    if not served.ready.tokenizer.is_fast:
        raise UserError(f"the tokenizer of {served.name} has no tokenizer.json; save it with a fast tokenizer")
    with served.lock:
        tokens, _ = read_tokens(text, served.ready.tokenizer, [], "lines")
    first = int(served.kind == CAUSAL)  # the first token is not predicted
    length = len(tokens) - first
    limit = min(served.limit or length, length)
    notes = [_HOW[served.kind]]
    if limit < length:
        notes.append(f"{served.name} takes at most {limit:,} tokens at once, so it reads only these.")
    steps = _continued if served.kind == CAUSAL else _beginnings
    points: tuple[Point, ...] = ()
    for point in steps(served.model, tokens[: limit + first]):
        points += (point,)
        yield Reading(limit, points, tuple(notes))


def _continued(model: Any, tokens: np.ndarray) -> Iterator[Point]:
    before, done, seconds = reset_peak_memory(model.device), 0, 0.0
    began = time.perf_counter()
    for new, _ in score_pieces(model, tokens, Pieces(piece=PIECE)):
        done, seconds = done + new, seconds + time.perf_counter() - began
        yield Point(done, seconds, max(0, peak_memory(model.device) - before))
        reset_peak_memory(model.device)  # drawing in between takes memory and time too
        began = time.perf_counter()


def _beginnings(model: Any, tokens: np.ndarray) -> Iterator[Point]:
    total = len(tokens)
    shorter = (PIECE << step for step in range(total.bit_length()))
    for length in (*(length for length in shorter if length < total), total):
        ids = torch.from_numpy(tokens[:length].astype(np.int64)).to(model.device)[None]
        before, began = reset_peak_memory(model.device), time.perf_counter()
        with torch.inference_mode():
            model.base_model(input_ids=ids)
            if ids.is_cuda:
                torch.cuda.synchronize()
        yield Point(length, time.perf_counter() - began, max(0, peak_memory(model.device) - before))
