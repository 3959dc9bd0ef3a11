"""The static cache of a causal Mega for compiled decoding steps: tensors of fixed shapes and addresses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import torch
from transformers.cache_utils import StaticLayer

from ...ops.ema import EMACoefficients
from ...ops.layout import AttentionLayout, cached_layout, dropped_if_full, is_readable, self_attention_layout
from ...ops.relative_bias import BiasTable, RelativeBias
from .cache_mega import MegaCacheState, first_true, last_inputs

T = TypeVar("T")


class _StaticStep(NamedTuple):
    """How a static cache stores the tokens of a forward pass.

    Attributes:
        slot: (B or 1, L) the slot of each token.
        order: (B, slots) the slots in the order of their columns, if new columns may overwrite columns that the first
            of them see; else None.
        mask: (B, L) bool, True at real tokens; None if all are.
        first: (B,) columns before the row's first real token, afterwards.
    """

    slot: torch.Tensor
    order: torch.Tensor | None
    mask: torch.Tensor | None
    first: torch.Tensor


class MegaStaticCacheLayer(MegaCacheState, StaticLayer):
    """What one block remembers, in tensors of fixed shapes and addresses, as a layer of transformers' `StaticCache`.

    It serves compiled decoding steps: one graph for all of them.

    `keys` (B, 1, slots, z) and `values` (B, 1, slots, h) hold `max_cache_len` columns in order; with chunks, those of
    the current chunk, also in order, so that the length is not limited. In the first layer of a cache
    `cumulative_length` (1,) counts the columns seen, `real` (B, slots) is False at padding, and `first` (B,) counts
    the columns before each row's first real token.
    """

    is_sliding = False
    is_croppable = False  # overwrites the earlier state
    supports_early_init = False
    record_past = False
    _layer_type = "mega"

    def __init__(self, max_cache_len: int, **kwargs: Any) -> None:
        super().__init__(max_cache_len)
        self.real: torch.Tensor | None = None
        self.first: torch.Tensor | None = None
        self._step: _StaticStep | None = None
        self._memory = {}

    @property
    def slots(self) -> int:
        """The number of columns that fit."""
        return self.max_cache_len if self.chunk_size is None else min(self.max_cache_len, self.chunk_size)

    @property
    def batch_size(self) -> int:  # type: ignore[override]
        """Rows, -1 before the first."""
        return -1 if self.keys is None else self.keys.shape[0]

    @property
    def first_real(self) -> torch.Tensor | None:
        """(B,) columns before each row's first real token, after the tokens that `begin` was last told of."""
        return self.first if self._step is None else self._step.first

    @property
    def seen(self) -> int | torch.Tensor:
        """Columns seen so far, as a tensor once there are any."""
        return self.cumulative_length if self.is_initialized else 0

    def begin(
        self,
        layers: Sequence[MegaStaticCacheLayer],
        mask: torch.Tensor | None,
        shape: tuple[int, int],
        chunk_size: int | None,
        device: torch.device,
    ) -> AttentionLayout:
        """See `MegaCacheLayer.begin`.

        Raises:
            ValueError: for more tokens than slots, without chunks (checked if reading the length is free).
        """
        seen, (batch, length) = self.seen, shape
        may_look = chunk_size is None and (isinstance(seen, int) or is_readable(seen))
        if may_look and int(seen) + length > self.max_cache_len:
            raise ValueError(
                f"the static cache has max_cache_len={self.max_cache_len}, but {int(seen)} + {length} tokens must be "
                "stored; make a longer cache"
            )
        if isinstance(seen, int):
            length_seen = torch.zeros(1, dtype=torch.int64, device=device)
            for layer in layers:
                layer.cumulative_length, layer.chunk_size = length_seen, chunk_size
            self.real = torch.ones(batch, self.slots, dtype=torch.bool, device=device)
            self.first = torch.zeros(batch, dtype=torch.int64, device=device)
            _fix_addresses(self.real, self.first, length_seen)
            step, layout = self._first_pass(mask, length)
        else:
            step, layout = self._later_pass(seen, mask, length)
        for layer in layers:
            layer._step = step
        return layout

    def _first_pass(self, mask: torch.Tensor | None, length: int) -> tuple[_StaticStep, AttentionLayout]:
        """How the first tokens are stored, and their layout."""
        real, first = cast(torch.Tensor, self.real), cast(torch.Tensor, self.first)
        column = torch.arange(length, device=real.device).unsqueeze(0)
        mask = dropped_if_full(mask)
        if mask is not None:
            first = first_true(mask)
        slot = column if self.chunk_size is None else (column - first.unsqueeze(1)) % real.shape[1]
        layout = self_attention_layout(mask, length, chunk_size=self.chunk_size, causal=True)
        return _StaticStep(slot, None, mask, first), layout

    def _later_pass(
        self, seen: torch.Tensor, mask: torch.Tensor | None, length: int
    ) -> tuple[_StaticStep, AttentionLayout]:
        """How tokens that follow others are stored, and their layout, without reading any value."""
        real, first = cast(torch.Tensor, self.real), cast(torch.Tensor, self.first)
        rows, slots = real.shape
        mask = real.new_ones(rows, length) if mask is None else mask.to(torch.bool)
        first = torch.where(first < seen, first, seen + first_true(mask))
        new = torch.arange(length, device=seen.device)
        order = None
        if self.chunk_size is None:
            slot = (seen + new).unsqueeze(0)
            offset = seen.clone()  # incremented in place
        else:
            position = seen - first
            slot = (position.unsqueeze(1) + new) % slots
            offset = slot[:, 0]
        if self.chunk_size is None or length == 1:
            written = real.scatter(1, slot.expand(rows, -1), mask)
            layout = AttentionLayout(length, slots, True, offset=offset, offset_bound=slots, real=written, tokens=mask)
        else:  # the cached columns of the current chunk come right before the new ones
            order = (position.unsqueeze(1) + torch.arange(slots, device=seen.device)) % slots
            window = torch.cat([real.gather(1, order), mask], dim=1)
            layout = cached_layout(window, length, slots, position, chunk_size=self.chunk_size, aligned=False)
        return _StaticStep(slot, order, mask, first), layout

    def update(  # type: ignore[override]
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores new columns and returns those of the layout: all slots, but in a first pass the new ones alone."""
        # what is left behind would be an output of a compiled step, which the next one overwrites
        step, self._step = self._step, None
        assert step is not None
        key_states, value_states, window = key_states.unsqueeze(1), value_states.unsqueeze(1), None
        if not self.is_initialized:
            self._allocate(key_states, value_states)
            window = key_states, value_states
        keys, values = cast(torch.Tensor, self.keys), cast(torch.Tensor, self.values)
        if step.order is not None:
            window = (
                torch.cat([keys.gather(2, _like(step.order.to(keys.device), keys)), key_states], dim=2),
                torch.cat([values.gather(2, _like(step.order.to(values.device), values)), value_states], dim=2),
            )
        written = min(keys.shape[2], key_states.shape[2])
        slot = step.slot[:, step.slot.shape[1] - written :].to(keys.device)
        for stored, new in ((keys, key_states), (values, value_states)):
            new = new[:, :, new.shape[2] - written :]
            stored.scatter_(2, _like(slot, new), new)
        if self.real is not None and self.first is not None:  # the first layer
            if step.mask is not None:
                mask = step.mask[:, step.mask.shape[1] - written :]
                self.real.scatter_(1, slot.expand_as(mask), mask)
            self.first.copy_(step.first)
            self.cumulative_length.add_(step.slot.shape[1])
        keys, values = (keys, values) if window is None else window
        return keys.squeeze(1), values.squeeze(1)

    def _allocate(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        batch = key_states.shape[0]
        self.keys = key_states.new_zeros(batch, 1, self.slots, key_states.shape[3])
        self.values = value_states.new_zeros(batch, 1, self.slots, value_states.shape[3])
        _fix_addresses(self.keys, self.values)
        self.is_initialized = True

    def remembered(self, name: str, make: Callable[[], T]) -> T:
        """As in `MegaCacheLayer`, at fixed addresses."""
        new = name not in self._memory
        made = super().remembered(name, make)
        if new and isinstance(made, tuple):
            _fix_addresses(*(x for x in made if torch.is_tensor(x)))
        return made

    def bias(self, bias: RelativeBias, layout: AttentionLayout) -> RelativeBias | BiasTable:
        """As `MegaCacheLayer.bias`; after a first pass, the table has one distance for each slot."""
        table = self.remembered("bias", lambda: bias.table(max(1 - self.slots, -bias.reach), 0))
        return table if self.is_initialized else bias

    def advance(
        self, x: torch.Tensor, state: torch.Tensor | None, coefficients: EMACoefficients, truncation: int | None
    ) -> None:
        """As `MegaCacheLayer.advance`."""
        assert state is not None
        history = None if truncation is None else last_inputs(self.history, x, truncation)
        if self.state is None:
            self.state = state.detach().clone()
            self.history = None if history is None else history.detach().clone()
            _fix_addresses(*(t for t in (self.state, self.history) if t is not None))
            return
        self.state.copy_(state)
        if history is not None:
            cast(torch.Tensor, self.history).copy_(history)

    def get_seq_length(self) -> int:
        """Columns seen so far, as a tensor once there are any."""
        return cast(int, self.seen)

    def reset(self) -> None:
        """Empties the cache, and keeps its memory allocated."""
        self._memory.clear()
        if self.is_initialized:
            for tensor in (self.keys, self.values, self.first, self.cumulative_length, self.state, self.history):
                if tensor is not None:
                    tensor.zero_()
            if self.real is not None:
                self.real.fill_(True)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Row i becomes the former row `beam_idx[i]`.

        Args:
            beam_idx: (B,) rows.
        """
        for tensor in (self.keys, self.values, self.real, self.first, self.state, self.history):
            if tensor is not None:
                tensor.copy_(tensor.index_select(0, beam_idx.to(tensor.device)))


def _like(index: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """An index (B or 1, T) of columns (B, 1, ., f) as `gather` and `scatter` take it: (B, 1, T, f)."""
    return index[:, None, :, None].expand(columns.shape[0], 1, -1, columns.shape[3])


def _fix_addresses(*tensors: torch.Tensor) -> None:
    """Marks a tensor's address as fixed for a compiler, for CUDA graphs."""
    if not torch.compiler.is_compiling():
        for tensor in tensors:
            torch._dynamo.mark_static_address(tensor)
