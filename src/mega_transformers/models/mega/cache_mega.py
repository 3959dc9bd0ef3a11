"""The cache of a causal Mega: keys and values that later tokens may see, and the EMA's state.

Importing this registers the layers with transformers' caches: `DynamicCache(config=config)` and
`StaticCache(config=config, max_cache_len=...)` (`static_cache_mega`) make them for a `MegaConfig`, and so does
`generate`. A forward pass first calls `begin` of the cache's first layer, which alone stores the padding, and gets the
layout for all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from transformers.cache_utils import CacheLayerMixin

from ...ops.ema import EMACoefficients, ema
from ...ops.layout import (
    AttentionLayout,
    cached_layout,
    dropped_if_full,
    is_readable,
    self_attention_layout,
)
from ...ops.relative_bias import BiasTable, RelativeBias
from .columns_mega import Columns

if TYPE_CHECKING:
    from .configuration_mega import MegaConfig

T = TypeVar("T")
SLACK = 64
"""Least number of distances by which a cached bias grows."""


class Padding(NamedTuple):
    """The padding of cached tokens, stored once for all layers.

    Attributes:
        real: (B, T) bool, True at stored columns that are real; None if all are.
        first: (B,) columns before the row's first real token, all columns so far if there was none; None if always 0.
    """

    real: torch.Tensor | None = None
    first: torch.Tensor | None = None


class _Record(NamedTuple):
    """The data to restore an earlier EMA state: the state at the start and the inputs since."""

    state: torch.Tensor | None
    history: torch.Tensor | None
    inputs: list[torch.Tensor]
    coefficients: EMACoefficients
    truncation: int | None


class MegaCacheState:
    """Shared by both kinds of layers: the EMA's memory, and values computed from weights.

    `state` (B, d, N), float32 at least; with truncation K `history` (B, K, d), the EMA's last inputs. `owner` is the
    configuration that the cache was last checked against.
    """

    chunk_size: int | None = None
    owner: MegaConfig | None = None
    state: torch.Tensor | None = None
    history: torch.Tensor | None = None
    _memory: dict[str, Any]

    def remembered(self, name: str, make: Callable[[], T]) -> T:
        """The result of `make`, computed once: a cache belongs to the weights it was made with."""
        if torch.is_grad_enabled():
            return make()
        if name not in self._memory:
            self._memory[name] = make()
        return self._memory[name]


class MegaCacheLayer(MegaCacheState, CacheLayerMixin):
    """What one block of a causal model remembers, as a layer of transformers' `DynamicCache`.

    `keys` (B, 1, T, z) and `values` (B, 1, T, h) hold the columns that a later token may still see: with chunks those
    of the current chunk only, so that memory does not grow. `state` (B, d, N) is the EMA's state, and `seen` counts
    all columns. Rolling back (`crop`) needs the EMA's inputs since then, which are kept between
    `activate_past_recording()` and `crop(...)`.
    """

    is_compileable = False
    is_croppable = True
    is_sliding = False
    supports_early_init = False
    _layer_type = "mega"

    def __init__(self, **kwargs: Any) -> None:
        self.record_past = False
        self._clear()

    def _clear(self) -> None:
        self._keys, self._values = Columns(), Columns()
        self.state = self.history = None
        self.seen = 0
        self.padding = Padding()
        self._next: tuple[int, int | None, Padding] | None = None
        self._memory = {}
        self._record: _Record | None = None

    @property
    def keys(self) -> torch.Tensor | None:  # type: ignore[override]
        """(B, 1, T, z)."""
        return _with_head(self._keys.view)

    @property
    def values(self) -> torch.Tensor | None:  # type: ignore[override]
        """(B, 1, T, h)."""
        return _with_head(self._values.view)

    @property
    def is_initialized(self) -> bool:  # type: ignore[override]
        """Whether anything is stored."""
        return self._keys.buffer is not None

    @property
    def batch_size(self) -> int:
        """Rows, -1 before the first."""
        return -1 if self._keys.buffer is None else self._keys.buffer.shape[0]

    @property
    def first_real(self) -> torch.Tensor | None:
        """`Padding.first` after the tokens of the last `begin`."""
        return self.padding.first if self._next is None else self._next[2].first

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the first `update` allocates."""

    def begin(
        self,
        layers: Sequence[MegaCacheLayer],
        mask: torch.Tensor | None,
        shape: tuple[int, int],
        chunk_size: int | None,
        device: torch.device,
    ) -> AttentionLayout:
        """Prepares all layers of the cache, of which this is the first, for new tokens, and returns their layout.

        Args:
            layers: All layers of the cache.
            mask: (B, L), 1 or True at real new tokens; None if all are.
            shape: (B, L) of the new tokens.
            chunk_size: Tokens per chunk; None for attention over everything.
            device: The device of the layout.
        """
        length = shape[1]
        mask = dropped_if_full(mask)
        kept, seen = self._keys.length, self.seen
        real = self._window(mask, kept, length)
        first = first_real_after(self.padding.first, seen, mask, length)
        if first is not None and is_readable(first) and not bool(first.any()):
            first = None
        window, total = kept + length, seen + length
        aligned = first is None and (chunk_size is None or kept == seen % chunk_size)
        # this layout counts chunks from the first real token, and needs no earlier column
        prefill = kept == 0 and (seen == 0 or (mask is None and aligned))
        if prefill:
            layout = self_attention_layout(mask, length, chunk_size=chunk_size, causal=True)
        else:
            position = None
            if not aligned:
                position = torch.full((1,), seen, device=device)
                position = position if first is None else position - first
            layout = cached_layout(real, length, kept, position, chunk_size=chunk_size, aligned=aligned)
        if chunk_size is None or self.record_past:
            keep = window
        else:
            keep = total % chunk_size if first is None else min(window, chunk_size - 1)
        padding = Padding(None if real is None else real[:, window - keep :], first)
        for layer in layers:
            layer._next = (keep, chunk_size, padding if layer is self else Padding())
        return layout

    def _window(self, mask: torch.Tensor | None, kept: int, length: int) -> torch.Tensor | None:
        """(B, kept + L) bool, True at real columns; None if all are."""
        before = self.padding.real
        if mask is None and before is None:
            return None
        if mask is None:
            assert before is not None
            mask = before.new_ones(before.shape[0], length)
        if before is None:
            before = mask.new_ones(mask.shape[0], kept)
        return torch.cat([before, mask], dim=1)

    def update(  # type: ignore[override]
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores new columns and returns those of the layout: the kept cached columns, then the new ones.

        Args:
            key_states, value_states: (B, n, z) and (B, n, h); in a first pass the last columns are enough.
        """
        assert self._next is not None
        keep, self.chunk_size, self.padding = self._next
        limit = None if self.record_past else self.chunk_size
        keys, values = self._keys.append(key_states, limit), self._values.append(value_states, limit)
        window = keys.shape[1]
        self._keys.keep(window - keep, window)
        self._values.keep(window - keep, window)
        return keys, values

    def bias(self, bias: RelativeBias, layout: AttentionLayout) -> RelativeBias | BiasTable:
        """The relative position bias; for cached columns, a table that is rarely recomputed."""
        if torch.is_grad_enabled() or layout.offset == 0:
            return bias
        low, high = layout.distances
        table = self._memory.get("bias")
        if table is None or table.zero < -low:
            more = max(SLACK, -low // 2)
            table = self._memory["bias"] = bias.table(max(low - more, -bias.reach), high)
        return table

    def advance(
        self, x: torch.Tensor, state: torch.Tensor | None, coefficients: EMACoefficients, truncation: int | None
    ) -> None:
        """Stores the EMA's state after the inputs x (B, n, d), and the inputs that truncation or a rollback needs."""
        if self.record_past:
            if self._record is None:
                detached = EMACoefficients(*(c.detach() for c in coefficients))
                self._record = _Record(self.state, self.history, [], detached, truncation)
            self._record.inputs.append(x.detach())
        self.state = state
        self.seen += x.shape[1]
        if truncation is not None:
            self.history = last_inputs(self.history, x, truncation)

    def get_seq_length(self) -> int:
        """Columns seen so far, including those whose keys are no longer stored."""
        return self.seen

    def get_max_length(self) -> int:
        """-1: there is no maximum."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length of an attention mask for the next tokens, and its first column."""
        return self.seen + query_length, 0

    def activate_past_recording(self) -> None:
        """From now on keeps what `crop` needs, until it is called."""
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last `-tokens_to_remove` columns: keys, values, EMA state and padding as if never seen.

        Args:
            tokens_to_remove: Zero or negative; 0 only drops the recorded inputs.

        Raises:
            ValueError: for a positive number, or one that goes back beyond the start of the recording.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"crop({tokens_to_remove}): give minus the number of tokens to remove")
        count = -tokens_to_remove
        if count and count == self.seen:
            self.reset()
            return
        record, self._record = self._record, None
        if count:
            recorded = 0 if record is None else sum(x.shape[1] for x in record.inputs)
            if record is None or count > recorded:
                raise ValueError(
                    f"crop({tokens_to_remove}): only the last {recorded} tokens are recorded, and the EMA's state "
                    "cannot be computed backwards; call cache.activate_past_recording() before the forward passes "
                    "that you want to undo"
                )
            self._roll_back(record, recorded - count)
            self.seen -= count
        real, first = self.padding
        kept = self._keys.length - count
        self._keys.keep(0, kept)
        self._values.keep(0, kept)
        self.padding = Padding(
            None if real is None else real[:, :kept], None if first is None else first.clamp(max=self.seen)
        )

    def _roll_back(self, record: _Record, tokens: int) -> None:
        """The EMA's state after the first `tokens` recorded ones."""
        self.state, self.history = record.state, record.history
        if not tokens:
            return
        x = torch.cat(record.inputs, dim=1)[:, :tokens]
        options: Any = {"truncation": record.truncation, "state": record.state, "history": record.history}
        _, self.state = ema(x, record.coefficients, return_state=True, **options)
        if record.truncation is not None:
            self.history = last_inputs(record.history, x, record.truncation)

    def reset(self) -> None:
        """Forgets everything."""
        self._clear()

    def _take_rows(self, index: torch.Tensor) -> None:
        """Row i of all stored tensors becomes the former row `index[i]`."""

        def taken(x: torch.Tensor | None) -> torch.Tensor | None:
            return None if x is None else x.index_select(0, index.to(x.device))

        for columns in (self._keys, self._values):
            columns.take_rows(index)
        self.state, self.history = taken(self.state), taken(self.history)
        self.padding = Padding(*map(taken, self.padding))
        if self._record is not None:
            self._record = self._record._replace(
                state=taken(self._record.state),
                history=taken(self._record.history),
                inputs=[x.index_select(0, index.to(x.device)) for x in self._record.inputs],
            )

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Row i becomes the former row `beam_idx[i]`.

        Args:
            beam_idx: (B,) rows.
        """
        self._take_rows(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row.

        Args:
            repeats: How often.
        """
        self._take_rows(torch.arange(max(self.batch_size, 0)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps some rows.

        Args:
            indices: (rows,) rows to keep, or (B,) bool.
        """
        self._take_rows(torch.arange(max(self.batch_size, 0), device=indices.device)[indices])

    def offload(self) -> None:
        """Moves keys and values, the large part, to the CPU."""
        self._move(torch.device("cpu"))

    def prefetch(self) -> None:
        """Moves them back to the device of the state."""
        if self.state is not None:
            self._move(self.state.device)

    def _move(self, device: torch.device) -> None:
        for columns in (self._keys, self._values):
            columns.map(lambda x: x.to(device, non_blocking=True))


class MegaCrossCacheLayer(CacheLayerMixin):
    """One block's keys (B, 1, S, z) and values (B, 1, S, d) of an encoder's states, stored once.

    `real` (B, S) bool is True at real source tokens; None if all are.
    """

    is_compileable = False
    is_croppable = True
    is_sliding = False
    supports_early_init = False
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.real: torch.Tensor | None = None
        self._table: BiasTable | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the first `update` stores."""

    def update(  # type: ignore[override]
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        real: torch.Tensor | None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores keys (B, S, z) and values (B, S, d) of a source, and its padding."""
        self.keys, self.values, self.real = key_states.unsqueeze(1), value_states.unsqueeze(1), real
        self.is_initialized = True
        return key_states, value_states

    @property
    def batch_size(self) -> int:
        """Rows, -1 while nothing is stored."""
        return self.keys.shape[0] if self.is_initialized else -1

    def bias(self, bias: RelativeBias, layout: AttentionLayout) -> RelativeBias | BiasTable:
        """The relative position bias at all distances of the layout, from a table that is rarely recomputed."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return bias
        (low, high), table = layout.distances, self._table
        low, high = max(low, -bias.reach), min(high, bias.reach)
        if table is None or table.zero < -low or table.values.shape[0] - table.zero <= high:
            more = max(SLACK, -low // 2)
            self._table = table = bias.table(max(low - more, -bias.reach), high)
        return table

    def get_seq_length(self) -> int:
        """Source columns stored."""
        return self.keys.shape[2] if self.is_initialized else 0

    def get_max_length(self) -> int:
        """-1: there is no maximum."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Source columns, and the first of them."""
        return self.get_seq_length(), 0

    def crop(self, tokens_to_remove: int) -> None:
        """Nothing to do: the source stays when target tokens go."""

    def reset(self) -> None:
        """Forgets everything."""
        self.__init__()  # type: ignore[misc]

    def _take_rows(self, index: torch.Tensor) -> None:
        if self.is_initialized:
            self.keys, self.values = (x.index_select(0, index.to(x.device)) for x in (self.keys, self.values))
            self.real = None if self.real is None else self.real.index_select(0, index.to(self.real.device))

    reorder_cache = MegaCacheLayer.reorder_cache
    batch_repeat_interleave = MegaCacheLayer.batch_repeat_interleave
    batch_select_indices = MegaCacheLayer.batch_select_indices


def _with_head(columns: torch.Tensor | None) -> torch.Tensor | None:
    """(B, T, f) with the axis of heads that transformers' caches have."""
    return None if columns is None else columns.unsqueeze(1)


def first_true(mask: torch.Tensor) -> torch.Tensor:
    """(B,) the first column of a mask (B, L) that is True; L if none is."""
    return torch.where(mask.any(dim=1), mask.int().argmax(dim=1), mask.shape[1])


def first_real_after(
    before: torch.Tensor | None, seen: int, mask: torch.Tensor | None, length: int
) -> torch.Tensor | None:
    """`Padding.first` after `length` new tokens that follow `seen` others."""
    if mask is None:
        return before
    if before is None:
        before = torch.zeros(mask.shape[0], dtype=torch.int64, device=mask.device)
    return torch.where(before == seen, seen + first_true(mask), before)


def last_inputs(history: torch.Tensor | None, x: torch.Tensor, truncation: int) -> torch.Tensor:
    """(B, K, d): the last K inputs, zeros before the first."""
    if history is None:
        history = x.new_zeros(x.shape[0], truncation, x.shape[2])
    return torch.cat([history, x], dim=1)[:, -truncation:]
