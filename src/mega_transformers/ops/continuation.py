"""Who sees whom when tokens continue a sequence whose keys are cached.

The rule is that of `visibility`. Its columns are those of a window: the cached columns that a new token may still see,
then the new tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from .visibility import Visibility

BUDGET = 1 << 21
"""Scores per row of the batch that are computed at a time."""


class Past(NamedTuple):
    """What a cache knows of the columns before.

    Attributes:
        seen: Number of columns; a tensor (1,) where its value is not to be looked at.
        kept: How many of the last ones have their keys stored.
        mask: (B, kept) bool, True at real tokens; None if all are.
        leading: (B,) columns before the row's first real token, all so far if there was none; None if always 0.
    """

    seen: int | torch.Tensor = 0
    kept: int = 0
    mask: torch.Tensor | None = None
    leading: torch.Tensor | None = None


class QueryBlock(NamedTuple):
    """Queries `start ... stop - 1` against the columns `low ... high - 1`.

    `visible` is (B or 1, stop - start or 1, high - low) bool, None if all is visible. `offset` is the position of the
    first key less that of the first query; where the columns are not in order, `offsets`, (B or 1, stop - start,
    high - low), holds that for each pair.
    """

    start: int
    stop: int
    low: int
    high: int
    visible: torch.Tensor | None
    offset: int
    offsets: torch.Tensor | None = None


@dataclass(frozen=True)
class Continuation:
    """The rule for new tokens behind cached ones; made once per forward pass by `build`, shared by all layers.

    Attributes:
        length: New tokens n per row.
        kept: Cached columns in the window.
        chunk_size: Tokens per chunk, None without chunks.
        mask: (B, n) bool, True at new tokens that are no padding; None if all are.
        window_mask: (B, kept + n) bool, the same for the window.
        chunks: (B or 1, kept + n) numbers of chunks where the window does not start at a chunk's border in every row.
        after: What the cache is to know afterwards.
        fresh: The rule among the new tokens alone, where they see nothing of the past.
        shared: The blocks of `blocks`, where they are made once for all layers.
    """

    length: int
    kept: int
    chunk_size: int | None
    mask: torch.Tensor | None
    window_mask: torch.Tensor | None
    chunks: torch.Tensor | None
    after: Past
    fresh: Visibility | None
    shared: list[QueryBlock] = field(default_factory=list)

    # packed documents are not continued
    starts = None
    num_documents = None

    @property
    def leading(self) -> torch.Tensor | None:
        """(B,) columns before each row's first real token; None if 0 everywhere."""
        return self.after.leading

    @classmethod
    def build(
        cls,
        past: Past,
        attention_mask: torch.Tensor | None,
        length: int,
        *,
        chunk_size: int | None = None,
        keep_all: bool = False,
    ) -> Continuation:
        """Makes the rule.

        Args:
            past: What the cache knows.
            attention_mask: (B, n), 1 or True at new tokens that are no padding; None if all are.
            length: New tokens n.
            chunk_size: Tokens per chunk; None for attention over everything.
            keep_all: Whether the cache is to keep columns that no later token sees.
        """
        assert isinstance(past.seen, int)
        mask = None if attention_mask is None else attention_mask.to(torch.bool)
        can_look = not torch.compiler.is_compiling() and (mask is None or mask.device.type == "cpu")
        if mask is not None and can_look and bool(mask.all()):
            mask = None
        leading = _leading(past, mask, length)
        if leading is not None and leading.device.type == "cpu" and can_look and not bool(leading.any()):
            leading = None
        total = past.seen + length
        window = past.kept + length

        window_mask = None
        if mask is not None or past.mask is not None:
            window_mask = torch.cat([_columns(past.mask, past.kept, mask), _columns(mask, length, past.mask)], dim=1)
        chunks = None
        if chunk_size is not None and (leading is not None or past.kept != past.seen % chunk_size):
            like = leading if leading is not None else window_mask
            columns = torch.arange(total - window, total, device=None if like is None else like.device).unsqueeze(0)
            positions = columns if leading is None else columns - leading.unsqueeze(1)
            chunks = torch.div(positions, chunk_size, rounding_mode="floor")

        if keep_all or chunk_size is None:
            kept_after = window
        elif leading is not None:
            kept_after = min(window, chunk_size - 1)
        else:
            kept_after = total % chunk_size
        mask_after = None if window_mask is None else window_mask[:, window - kept_after :]
        after = Past(total, kept_after, mask_after, leading)
        fresh = None
        # a rule of its own counts chunks from the first real token
        if length > 1 and past.kept == 0 and (past.seen == 0 or (mask is None and leading is None)):
            fresh = Visibility.build(mask, length, chunk_size=chunk_size, causal=True)
        return cls(length, past.kept, chunk_size, mask, window_mask, chunks, after, fresh)

    @classmethod
    def build_in_ring(
        cls, past: Past, attention_mask: torch.Tensor | None, length: int, *, chunk_size: int | None = None
    ) -> Continuation:
        """The same for a cache of fixed shape, column c in slot c % slots, without a look at any value.

        Args:
            past: `seen` as a tensor, `mask` (B, slots) and `leading` (B,).
            attention_mask, length, chunk_size: As in `build`. The window is all slots, then the new tokens.
        """
        seen, slots, mask_before, leading = past
        assert torch.is_tensor(seen) and mask_before is not None and leading is not None
        device = seen.device
        mask = mask_before.new_ones(mask_before.shape[0], length)
        if attention_mask is not None:
            mask = attention_mask.to(torch.bool)
        latest = seen - 1
        columns = torch.cat(
            [
                latest - (latest - torch.arange(slots, device=device)) % slots,
                seen + torch.arange(length, device=device),
            ]
        )
        offsets = columns - columns[slots:].unsqueeze(1)
        visible = ((offsets <= 0) & (columns >= 0)) & torch.cat([mask_before, mask], dim=1).unsqueeze(1)
        leading = _leading(past, mask, length)
        assert leading is not None
        if chunk_size is not None:
            chunks = torch.div(columns - leading.unsqueeze(1), chunk_size, rounding_mode="floor")
            visible = visible & (chunks[:, slots:].unsqueeze(2) == chunks.unsqueeze(1))
        block = QueryBlock(0, length, 0, slots + length, visible, 0, offsets.unsqueeze(0))
        after = Past(seen + length, slots, mask, leading)
        return cls(length, slots, chunk_size, mask, None, None, after, None, [block])

    def blocks(self, device: torch.device) -> Iterator[QueryBlock]:
        """The new tokens in blocks whose scores fit into `BUDGET`."""
        if self.length > 1 and not self.shared:
            yield from self._blocks(device)
            return
        if not self.shared:  # a decoding step: the same block for all layers
            self.shared.extend(self._blocks(device))
        yield from self.shared

    def _blocks(self, device: torch.device) -> Iterator[QueryBlock]:
        window = self.kept + self.length
        start = 0
        while start < self.length:
            low = 0
            if self.chunk_size is None:
                stop = min(self.length, start + max(1, BUDGET // window))
            elif self.chunks is None:  # the window starts at a border: blocks are chunks
                low = (self.kept + start) // self.chunk_size * self.chunk_size
                stop = min(self.length, low + self.chunk_size - self.kept)
            else:
                low = max(0, self.kept + start - self.chunk_size + 1)
                stop = min(self.length, start + self.chunk_size)
            high = self.kept + stop
            visible = self._visible(start, stop, low, high, device)
            yield QueryBlock(start, stop, low, high, visible, low - self.kept - start)
            start = stop

    def _visible(self, start: int, stop: int, low: int, high: int, device: torch.device) -> torch.Tensor | None:
        visible = None
        if stop - start > 1:
            visible = torch.ones(1, stop - start, high - low, dtype=torch.bool, device=device)
            visible = visible.tril_(self.kept + start - low)
        for part in (self._same_chunk(start, stop, low, high), self._real(low, high)):
            if part is not None:
                part = part.to(device)
                visible = part if visible is None else visible & part
        return visible

    def _same_chunk(self, start: int, stop: int, low: int, high: int) -> torch.Tensor | None:
        if self.chunks is None:
            return None
        of_query = self.chunks[:, self.kept + start : self.kept + stop]
        return of_query.unsqueeze(2) == self.chunks[:, low:high].unsqueeze(1)

    def _real(self, low: int, high: int) -> torch.Tensor | None:
        return None if self.window_mask is None else self.window_mask[:, low:high].unsqueeze(1)


def _columns(mask: torch.Tensor | None, count: int, like: torch.Tensor | None) -> torch.Tensor:
    """`mask`, or `count` columns of real tokens for as many rows as `like` has."""
    if mask is not None:
        return mask
    assert like is not None
    return like.new_ones(like.shape[0], count)


def _leading(past: Past, mask: torch.Tensor | None, length: int) -> torch.Tensor | None:
    """`Past.leading` after the new tokens."""
    if mask is None:
        return past.leading
    before = past.leading
    if before is None:
        before = torch.zeros(mask.shape[0], dtype=torch.int64, device=mask.device)
    only_padding = before == past.seen
    real = mask.any(dim=1)
    first = torch.where(real, mask.int().argmax(dim=1), length)
    return torch.where(only_padding, past.seen + first, before)
