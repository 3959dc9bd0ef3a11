"""A whole book read: time and memory against length."""

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
    CAUSAL: "Each point is a piece of the text, which the model reads with what it kept of the pieces before.",
    MASKED: "Each point is a beginning of the text, read as a whole, since the model looks both ways.",
}


@dataclass(frozen=True)
class Point:
    """Tokens that were read, the seconds they took, and the most bytes in use at the last piece, beside the model."""

    tokens: int
    seconds: float
    memory: int


@dataclass(frozen=True)
class Reading:
    """How far a text is read.

    Args:
        total: Tokens to read.
        points: By length.
        notes: Sentences about what is shown.
    """

    total: int
    points: tuple[Point, ...]
    notes: tuple[str, ...]

    @property
    def finished(self) -> bool:
        """Whether the text is read."""
        return self.points[-1].tokens == self.total

    def doublings(self) -> list[Point]:
        """The points about twice as long as the one before, and the last."""
        chosen = [self.points[0]]
        for point in self.points[1:]:
            if point.tokens >= 2 * chosen[-1].tokens or point is self.points[-1]:
                chosen.append(point)
        return chosen


def example() -> str:
    """The text that comes with the package."""
    folder = RECIPES / "sample"
    return "\n".join((folder / f"{name}.txt").read_text("utf-8") for name in ("train", "validation", "test"))


def text_of(file: str) -> str:
    """The text of an uploaded file.

    Raises:
        UserError: if it is not UTF-8.
    """
    try:
        return read_text(Path(file))
    except RecipeError:
        raise UserError(f"the file {Path(file).name} is not a text in UTF-8") from None


def read(served: Served, text: str) -> Iterator[Reading]:
    """Reads a text, and says after each piece how far it is.

    A causal model reads on from piece to piece, in memory that does not grow. A masked one, which looks both ways,
    reads beginnings of the text of doubling length, each at once.

    Raises:
        UserError: for a text that is empty or too long.
    """
    check_text(text, MAX_CHARACTERS)
    if not served.ready.tokenizer.is_fast:
        raise UserError(f"the tokenizer of {served.name} has no tokenizer.json; save it with a fast tokenizer")
    with served.lock:
        tokens, _ = read_tokens(text, served.ready.tokenizer, [], "lines")
    first = int(served.kind == CAUSAL)  # which is not predicted
    length = len(tokens) - first
    limit = min(served.limit or length, length)
    notes = [_HOW[served.kind]]
    if limit < length:
        notes.append(f"{served.name} takes at most {limit:,} tokens at once, so it reads these and no more.")
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
        reset_peak_memory(model.device)  # what is drawn in between takes memory and time too
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
