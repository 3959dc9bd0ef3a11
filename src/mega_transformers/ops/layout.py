"""Attention layouts: the range of key columns that each query may see.

A token at position m sees one at position n if all of these hold: n is not padding; same packed document; same chunk,
floor(position / chunk_size) with positions counted from the document's first real token; n <= m in a causal model.
Each condition bounds n by a half-open range of columns, except padding in the middle of a row, which needs a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

ALL = slice(None)


def is_readable(x: torch.Tensor) -> bool:
    """Whether values can be read without synchronising with a device or breaking a graph."""
    transformed = torch._C._functorch.maybe_current_level() is not None  # torch.vmap has no values
    return x.device.type == "cpu" and not transformed and not torch.compiler.is_compiling()


def is_open(size: int) -> bool:
    """Whether a graph is being made for other sizes too, which so must not depend on this one."""
    if not torch.compiler.is_compiling():
        return False
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return not has_static_value(size)


def is_open_export(size: int) -> bool:
    """The same, for exported graphs only."""
    return torch.compiler.is_exporting() and is_open(size)


def first_tokens(x: torch.Tensor, length: int) -> torch.Tensor:
    """The first `length` tokens of x (B, n, d); by index in exports, where PyTorch cannot prove a slice valid."""
    if is_open_export(length):
        return x.index_select(1, torch.arange(length, device=x.device))
    return x[:, :length]


def dropped_if_full(mask: torch.Tensor | None) -> torch.Tensor | None:
    """A mask (B, L) of real tokens as bools; None if all are known to be real."""
    if mask is None:
        return None
    mask = mask.to(torch.bool)
    return None if is_readable(mask) and bool(mask.all()) else mask


def first_real_column(mask: torch.Tensor | None) -> torch.Tensor | None:
    """(B,) the column of each row's first real token in a mask (B, L), 0 in a row of padding; None if 0 everywhere."""
    if mask is None or (is_readable(mask) and bool(mask[:, 0].all())):
        return None
    return mask.int().argmax(dim=1)


def positions_in_documents(reset: torch.Tensor) -> torch.Tensor:
    """Positions counted from the latest document start.

    Args:
        reset: (B, L) bool, True at the first token of every document; column 0 always counts as a start.

    Returns:
        (B, L) int64.
    """
    column = torch.arange(reset.shape[1], device=reset.device).expand_as(reset)
    return column - torch.where(reset, column, 0).cummax(dim=1).values


@dataclass(frozen=True)
class AttentionLayout:
    """Which key columns each query sees. It is made once in a forward pass and shared by all layers.

    Query i sees key column j if `start[i] <= j < stop[i]` and `real[j]`. Without `start` and `stop` the ranges follow
    from the other fields: the query at column `i + offset` sees its chunk, or everything; in a causal layout only up
        to
    itself.

    Attributes:
        queries: Query tokens L in a row.
        keys: Key columns S in a row.
        causal: Whether keys after a query are hidden.
        chunk: Tokens per chunk; None if chunks hide nothing. Without `start`, chunks begin at multiples of it.
        offset: Column of query 0 among the keys, which the position bias depends on: the number of cached columns. A
            tensor (1,) or (B,) if its value is not known on the host, or differs between rows.
        offset_bound: Upper bound of `offset`, if it is a tensor.
        start, stop: (B or 1, L) int64.
        real: (B, S) bool, False at padding; None if there is none.
        tokens: (B, L) bool, False at queries that are padding; None if there are none.
        reset: (B, L) bool, True at the first token of every packed document, where the EMA starts afresh.
        documents: Upper bound of the documents in a row, if it is known on the host.
        exchange: For a row that is one piece of a longer row: a function of the EMA's inputs (B, L, d) and
            coefficients that returns the states (B, D', N) that enter the piece from its neighbours.
    """

    queries: int
    keys: int
    causal: bool = False
    chunk: int | None = None
    offset: int | torch.Tensor = 0
    offset_bound: int = 0
    start: torch.Tensor | None = None
    stop: torch.Tensor | None = None
    real: torch.Tensor | None = None
    tokens: torch.Tensor | None = None
    reset: torch.Tensor | None = None
    documents: int | None = None
    exchange: Callable[[torch.Tensor, Any], torch.Tensor] | None = None
    plans: ClassVar[dict[Any, Any]]
    """Values that a form computes once for all layers; not a field, so that copies of the layout start empty."""

    def __post_init__(self) -> None:
        self.__dict__["plans"] = {}

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> AttentionLayout:
        """The layout on another device. accelerate calls this for a model that is spread over several devices.

        Args:
            device: Where the tensors are to be.
            non_blocking: As in `torch.Tensor.to`.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: Any = {k: x.to(device, non_blocking=non_blocking) for k, x in values.items() if torch.is_tensor(x)}
        return replace(self, **moved) if moved else self

    @property
    def has_gaps(self) -> bool:
        """Whether some queries may see no key."""
        return self.real is not None or self.start is not None

    @property
    def is_dense(self) -> bool:
        """Whether every query sees every real column."""
        if self.start is not None or self.chunk is not None:
            return False
        return not self.causal or (self.queries == 1 and isinstance(self.offset, int) and self.offset == self.keys - 1)

    @property
    def distances(self) -> tuple[int, int]:
        """Least and greatest distance (column of the key - column of the query) at which a query may see a key."""
        low, high = 1 - self.queries, self.keys - 1
        if isinstance(self.offset, int):
            low, high = low - self.offset, high - self.offset
        else:
            low -= self.offset_bound
        if self.causal:
            low, high = max(low, 1 - self.keys), 0
        if self.chunk is not None:
            low, high = max(low, 1 - self.chunk), min(high, self.chunk - 1)
        return low, high

    def ranges(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """`start` and `stop`, (B or 1, L) each, given or computed from the other fields.

        Args:
            device: Where they are to be.
        """
        if self.start is not None and self.stop is not None:
            return self.start, self.stop
        column = torch.arange(self.queries, device=device).unsqueeze(0)
        column = column + (self.offset if isinstance(self.offset, int) else self.offset.to(device).unsqueeze(1))
        start, stop = torch.zeros_like(column), torch.full_like(column, self.keys)
        if self.chunk is not None:
            start = column - column % self.chunk
            stop = (start + self.chunk).clamp(max=self.keys)
        return start, column + 1 if self.causal else stop

    def visible(
        self, device: torch.device, rows: slice = ALL, queries: slice = ALL, keys: slice = ALL
    ) -> torch.Tensor | None:
        """The layout as a matrix (B or 1, L or 1, S) bool, True where a query sees a key; None if all do.

        Args:
            device: Where the matrix is to be.
            rows, queries, keys: Which part of it. Default: everything.
        """
        real = None if self.real is None else self.real[rows, None, keys]
        if self.is_dense:
            return real
        start, stop = ((x if x.shape[0] == 1 else x[rows])[:, queries].unsqueeze(2) for x in self.ranges(device))
        column = torch.arange(self.keys, device=device)[keys]
        visible = column < stop
        if self.start is not None or self.chunk is not None:
            visible = visible & (column >= start)
        return visible if real is None else visible & real

    def counts(self, device: torch.device) -> int | torch.Tensor:
        """How many keys each query sees: (B or 1, L or 1), or an integer if the number is the same for all.

        Args:
            device: Where the tensor is to be.
        """
        if self.is_dense:
            every = torch.full((1, 1), self.keys, device=device) if is_open(self.keys) else self.keys
            return every if self.real is None else self.real.sum(dim=1, keepdim=True)
        start, stop = self.ranges(device)
        if self.real is None:
            return stop - start
        before = F.pad(self.real.cumsum(dim=1), (1, 0))
        rows = max(before.shape[0], start.shape[0])
        before, start, stop = (x.expand(rows, -1) for x in (before, start, stop))
        return before.gather(1, stop) - before.gather(1, start)

    def parts(self) -> list[Part]:
        """The layout as independent parts: groups of chunks if these are views, otherwise the whole layout."""
        if "parts" not in self.plans:
            self.plans["parts"] = self._parts()
        return self.plans["parts"]

    def _parts(self) -> list[Part]:
        size = self.chunk
        if size is None or self.start is not None:
            return [Part(0, self.queries, 0, self.keys, 1, self)]
        assert isinstance(self.offset, int)
        parts = []
        query, key = 0, 0
        if self.offset:  # the rest of a partly cached chunk
            query = min(self.queries, size - self.offset)
            parts.append(self._part(0, query, 0, self.offset + query, 1))
            key = self.offset + query
        whole = (self.queries - query) // size
        if whole:
            parts.append(self._part(query, query + whole * size, key, key + whole * size, whole))
        done = query + whole * size
        if done < self.queries:
            parts.append(self._part(done, self.queries, key + whole * size, self.keys, 1))
        return parts

    def pieces(self, tokens: int) -> list[tuple[slice, AttentionLayout]] | None:
        """The tokens in pieces of whole chunks; None if chunks are not views, or there would be one piece.

        Args:
            tokens: Tokens of a piece, about.
        """
        if self.chunk is None or self.start is not None or self.reset is not None or self.keys != self.queries:
            return None
        step = max(1, tokens // self.chunk) * self.chunk
        if self.queries <= step:
            return None
        pieces = []
        for start in range(0, self.queries, step):
            stop = min(start + step, self.queries)
            real = None if self.real is None else self.real[:, start:stop]
            piece = replace(self, queries=stop - start, keys=stop - start, real=real, tokens=None)
            pieces.append((slice(start, stop), piece))
        return pieces

    def _part(self, query: int, stop: int, key: int, key_stop: int, chunks: int) -> Part:
        real = None if self.real is None else dropped_if_full(self.real[:, key:key_stop])
        if real is not None and chunks > 1:
            real = real.reshape(-1, self.chunk or 0)
        length, keys = (stop - query) // chunks, (key_stop - key) // chunks
        offset = keys - length if self.causal else 0
        layout = replace(self, queries=length, keys=keys, chunk=None, offset=offset, real=real, tokens=None)
        return Part(query, stop, key, key_stop, chunks, layout)


@dataclass(frozen=True)
class Part:
    """Queries `start ... stop - 1` over key columns `key_start ... key_stop - 1`, as `chunks` chunks of a layout."""

    start: int
    stop: int
    key_start: int
    key_stop: int
    chunks: int
    layout: AttentionLayout

    def queries_of(self, x: torch.Tensor) -> torch.Tensor:
        """The part's tokens of x (B, L, ...): (B * chunks, L / chunks, ...)."""
        return _folded(x, self.start, self.stop, self.chunks)

    def keys_of(self, x: torch.Tensor) -> torch.Tensor:
        """The part's columns of x (B, S, ...): (B * chunks, S / chunks, ...)."""
        return _folded(x, self.key_start, self.key_stop, self.chunks)


def _folded(x: torch.Tensor, start: int, stop: int, chunks: int) -> torch.Tensor:
    if start or stop < x.shape[1]:
        x = x[:, start:stop]
    return x if chunks == 1 else x.reshape(-1, (stop - start) // chunks, *x.shape[2:])


def self_attention_layout(
    attention_mask: torch.Tensor | None,
    length: int,
    *,
    chunk_size: int | None = None,
    causal: bool = False,
    reset: torch.Tensor | None = None,
    documents: int | None = None,
) -> AttentionLayout:
    """The layout of tokens among themselves.

    Args:
        attention_mask: (B, L), 1 or True at real tokens; None if all are.
        length: Tokens L in a row.
        chunk_size: Tokens per chunk; None for attention over the whole document.
        causal: Whether keys after the query are hidden.
        reset: (B, L) bool, True at the first token of every packed document; None for one document a row.
        documents: Upper bound of the documents in a row, if it is known on the host.
    """
    mask = dropped_if_full(attention_mask)
    if chunk_size is not None and not is_open(length) and length <= chunk_size and reset is None:
        chunk_size = None
    layout = AttentionLayout(
        length, length, causal, chunk_size, real=mask, tokens=mask, reset=reset, documents=documents
    )
    first = None if chunk_size is None and reset is None else first_real_column(mask)
    if first is None and reset is None:
        return layout
    device = (mask if reset is None else reset).device  # type: ignore[union-attr]
    column = torch.arange(length, device=device).unsqueeze(0)
    begin, end = torch.zeros_like(column), torch.full_like(column, length)
    if first is not None:  # chunks are counted from the first real token
        begin = torch.where(column < first.unsqueeze(1), 0, first.unsqueeze(1))
    if reset is not None:
        begin = torch.maximum(column - positions_in_documents(reset), begin)
        following = F.pad(torch.where(reset, column, length)[:, 1:], (0, 1), value=length)
        end = following.flip(1).cummin(dim=1).values.flip(1)
    if first is not None:
        end = torch.where(column < first.unsqueeze(1), torch.minimum(end, first.unsqueeze(1)), end)
    if chunk_size is not None:
        begin = column - (column - begin) % chunk_size
        end = torch.minimum(begin + chunk_size, end)
    return replace(layout, start=begin, stop=(column + 1 if causal else end).expand_as(begin))


def cached_layout(
    attention_mask: torch.Tensor | None,
    length: int,
    kept: int,
    position: torch.Tensor | None,
    *,
    chunk_size: int | None = None,
    aligned: bool = True,
) -> AttentionLayout:
    """The layout of tokens that follow `kept` cached columns, over a window of these and of themselves.

    Args:
        attention_mask: (B, kept + L) bool, True at real columns of the window; None if all are.
        length: New tokens L in a row.
        kept: Cached columns in the window.
        position: (B or 1,) positions of the first new token, counted from the row's first real one; may be None if
            `aligned`.
        chunk_size: Tokens per chunk; None for attention over everything.
        aligned: Whether the window begins where a chunk begins, in every row.
    """
    keys = kept + length
    if chunk_size is not None and aligned and keys <= chunk_size:
        chunk_size = None
    tokens = None if attention_mask is None else dropped_if_full(attention_mask[:, kept:])
    layout = AttentionLayout(length, keys, True, chunk_size, kept, real=attention_mask, tokens=tokens)
    if chunk_size is None or aligned:
        return layout
    assert position is not None
    new = torch.arange(length, device=position.device)
    column = (kept + new).unsqueeze(0)
    start = column - (position.unsqueeze(1) + new) % chunk_size
    return replace(layout, start=start.clamp(min=0), stop=(column + 1).expand_as(start))


def cross_attention_layout(
    source_mask: torch.Tensor | None,
    keys: int,
    length: int,
    *,
    start: int | torch.Tensor = 0,
    start_bound: int = 0,
    first_target: torch.Tensor | None = None,
    count_padding: bool = False,
) -> AttentionLayout:
    """The layout of a target over the columns of a source. Every target token sees all real columns.

    The position bias depends on the absolute positions of both (authors' `GatedCrossAttention`).

    Args:
        source_mask: (B, S), 1 or True at real source tokens; None if all are.
        keys: Source columns S.
        length: Target tokens L in a row.
        start: Column of the first target token, counting those of earlier forward passes: an integer, or a tensor
            (1,).
        start_bound: Upper bound of `start`, if it is a tensor.
        first_target: (B,) padding columns on the left of the target; None for 0.
        count_padding: Whether positions are columns, including padding. Otherwise the first real token of source and
            target has position 0, so that padding on the left changes nothing.
    """
    mask = dropped_if_full(source_mask)
    offset = start
    if not count_padding:
        first_source = first_real_column(mask)
        if first_source is not None:
            offset = first_source + offset
        if first_target is not None:
            offset = offset - first_target
    bound = 0
    if torch.is_tensor(offset):
        offset = offset.clone()  # a cache increments its counter in place
        bound = (start if isinstance(start, int) else start_bound) + keys - 1
    return AttentionLayout(length, keys, offset=offset, offset_bound=bound, real=mask)
