"""Columns of keys or values, in memory allocated ahead."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch

SLACK = 64
"""Least number of columns by which a buffer grows."""


class Columns:
    """A tensor (B, T, features) that grows at its end and shrinks at both."""

    def __init__(self) -> None:
        self.buffer: torch.Tensor | None = None
        self.start = self.stop = 0

    @property
    def length(self) -> int:
        """Columns T."""
        return self.stop - self.start

    @property
    def view(self) -> torch.Tensor | None:
        """(B, T, features), None before the first."""
        return None if self.buffer is None else self.buffer[:, self.start : self.stop]

    def append(self, new: torch.Tensor, limit: int | None) -> torch.Tensor:
        """The columns with `new` at their end; `limit` is the most columns that will ever be kept, or None."""
        if self.buffer is None:
            self._set(new)
            return new
        differentiated = torch.is_grad_enabled() and (new.requires_grad or self.buffer.requires_grad)
        if differentiated or torch.compiler.is_compiling():
            self._set(torch.cat([cast(torch.Tensor, self.view), new], dim=1))
        else:
            self._append_in_place(new, limit)
        return cast(torch.Tensor, self.view)

    def _set(self, columns: torch.Tensor) -> None:
        self.buffer, self.start, self.stop = columns, 0, columns.shape[1]

    def _append_in_place(self, new: torch.Tensor, limit: int | None) -> None:
        buffer = cast(torch.Tensor, self.buffer)
        kept, added = self.length, new.shape[1]
        # a graph still needs its tensors, and tensors of inference mode cannot be written outside of it
        frozen = buffer.requires_grad or (buffer.is_inference() and not torch.is_inference_mode_enabled())
        if frozen or self.stop + added > buffer.shape[1]:
            grown = max(SLACK, (kept + added) // 4) if limit is None else max(SLACK, limit // 4)
            capacity = kept + added + grown if limit is None else max(limit, kept + added) + grown
            replacement = buffer.new_empty(buffer.shape[0], capacity, buffer.shape[2])
            replacement[:, :kept] = buffer[:, self.start : self.stop]
            self.buffer, self.start, self.stop = replacement, 0, kept
            buffer = replacement
        buffer[:, self.stop : self.stop + added].copy_(new)
        self.stop += added

    def keep(self, start: int, stop: int) -> None:
        """Drops all columns except `start ... stop - 1`, and reallocates if most of the memory would be unused."""
        kept, length = stop - start, self.length
        if kept < length and length > 2 * max(kept, SLACK):
            self._set(cast(torch.Tensor, self.view)[:, start:stop].clone())
        else:
            self.start, self.stop = self.start + start, self.start + stop
        if self.start == self.stop:
            self.start = self.stop = 0

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Replaces the memory, spare columns included."""
        if self.buffer is not None:
            self.buffer = function(self.buffer)

    def take_rows(self, index: torch.Tensor) -> None:
        """Row i becomes the former row `index[i]`; spare memory is neither read nor written."""
        view, buffer = self.view, self.buffer
        if view is None or buffer is None:
            return
        rows = view.index_select(0, index.to(buffer.device))
        if buffer.requires_grad:
            self._set(rows)
            return
        self.buffer = buffer.new_empty(rows.shape[0], *buffer.shape[1:])
        cast(torch.Tensor, self.view).copy_(rows)
