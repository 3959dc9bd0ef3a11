"""Batches of inputs of similar lengths, and their results in the order of the inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from .progress import LateBar

Result = TypeVar("Result")
Advance = Callable[[int], None]


def batches_by_length(lengths: Sequence[int], max_tokens: int, max_rows: int | None = None) -> Iterator[list[int]]:
    """Batches of the inputs' indices, the longest inputs first, so that a lack of memory shows at the start.

    Args:
        lengths: Tokens of each input.
        max_tokens: Most tokens of a batch, padding included; a longer input is a batch of its own.
        max_rows: Most inputs of a batch, or None.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    start = 0
    while start < len(order):
        size = max(1, max_tokens // max(lengths[order[start]], 1))
        batch = order[start : start + min(size, max_rows or size)]
        yield batch
        start += len(batch)


def by_length(
    compute: Callable[[list[int], Advance], Sequence[Result]],
    lengths: Sequence[int],
    max_tokens: int,
    max_rows: int | None = None,
    description: str = "Reading",
) -> list[Result]:
    """The results of `compute`, in the order of the inputs.

    Args:
        compute: Takes indices of inputs and a function to report finished tokens; returns one result for each input.
        lengths, max_tokens, max_rows: See `batches_by_length`.
        description: The label of the progress bar.
    """
    results: dict[int, Result] = {}
    with LateBar(description, sum(lengths)) as bar:
        for batch in batches_by_length(lengths, max_tokens, max_rows):
            results.update(zip(batch, compute(batch, bar.advance)))
    return [results[index] for index in range(len(lengths))]
