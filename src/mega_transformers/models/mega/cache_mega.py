"""What a causal Mega remembers between forward passes: keys and values that may still be seen, and the EMA's state.

Importing this registers the layers with transformers' caches: `DynamicCache(config=config)` and
`StaticCache(config=config, max_cache_len=...)` make them for a `MegaConfig`, and so does `generate`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from transformers.cache_utils import CacheLayerMixin, StaticLayer

from ...ops.autocast import no_autocast
from ...ops.continuation import Continuation, Past
from ...ops.crossing import Crossing
from ...ops.ema import EMACoefficients, ema_chunked
from ...ops.relative_bias import BiasTable, RelativeBias

if TYPE_CHECKING:
    from .configuration_mega import MegaConfig

SLACK = 64
"""Least number of columns by which a buffer grows."""


class _Columns:
    """A tensor (B, 1, T, features) that grows at its end and shrinks at both, in memory allocated ahead."""

    def __init__(self) -> None:
        self.buffer: torch.Tensor | None = None
        self.start = self.stop = 0

    @property
    def view(self) -> torch.Tensor | None:
        return None if self.buffer is None else self.buffer.narrow(2, self.start, self.stop - self.start)

    def append(self, new: torch.Tensor, limit: int | None) -> torch.Tensor:
        """The columns with `new` behind; `limit` is the most that will ever be kept, if there is one."""
        if self.buffer is None:
            self._set(new)
            return new
        if torch.is_grad_enabled() and (new.requires_grad or self.buffer.requires_grad):
            self._set(torch.cat([cast(torch.Tensor, self.view), new], dim=2))
        else:
            self._append_in_place(new, limit)
        return cast(torch.Tensor, self.view)

    def _set(self, columns: torch.Tensor) -> None:
        self.buffer, self.start, self.stop = columns, 0, columns.shape[2]

    def _append_in_place(self, new: torch.Tensor, limit: int | None) -> None:
        buffer = cast(torch.Tensor, self.buffer)
        kept, added = self.stop - self.start, new.shape[2]
        # a graph still needs its tensors, and what was made in inference mode cannot be written outside of it
        frozen = buffer.requires_grad or (buffer.is_inference() and not torch.is_inference_mode_enabled())
        if frozen or self.stop + added > buffer.shape[2]:
            grown = max(SLACK, (kept + added) // 4) if limit is None else max(SLACK, limit // 4)
            capacity = kept + added + grown if limit is None else max(limit, kept + added) + grown
            replacement = buffer.new_empty(*buffer.shape[:2], capacity, buffer.shape[3])
            replacement[:, :, :kept] = buffer[:, :, self.start : self.stop]
            self.buffer, self.start, self.stop = replacement, 0, kept
            buffer = replacement
        buffer.narrow(2, self.stop, added).copy_(new)
        self.stop += added

    def keep(self, start: int, stop: int) -> None:
        """Drops all columns but `start ... stop - 1`."""
        self.start, self.stop = self.start + start, self.start + stop
        if self.start == self.stop:
            self.start = self.stop = 0

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
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


class _Record(NamedTuple):
    """What it takes to go back to an earlier EMA state: the one at the start, and the inputs since."""

    state: torch.Tensor | None
    history: torch.Tensor | None
    inputs: list[torch.Tensor]
    coefficients: EMACoefficients
    truncation: int | None


class MegaCacheLayer(CacheLayerMixin):
    """One block's memory.

    `keys` (B, 1, T, z) and `values` (B, 1, T, h) hold the columns that a later token may still see: with chunks those
    of the current chunk only, so that memory does not grow. Beside them: `state` (B, d, N), the EMA's, float32 at
    least; with truncation K `history` (B, K, d), the EMA's last inputs; and what is known of padding (`past`).

    `owner` is the configuration it was last found to fit. Rolling back (`crop`) needs the inputs since, which are kept
    between `activate_past_recording()` and `crop(...)`.
    """

    is_compileable = False
    is_croppable = True
    is_sliding = False
    supports_early_init = False
    _layer_type = "mega"

    def __init__(self, **kwargs: Any) -> None:
        self.record_past = False
        self.chunk_size: int | None = None
        self.owner: MegaConfig | None = None
        self._clear()

    def _clear(self) -> None:
        self._keys, self._values = _Columns(), _Columns()
        self.state: torch.Tensor | None = None
        self.history: torch.Tensor | None = None
        self.past = Past()
        self._bias: BiasTable | None = None
        self._coefficients: EMACoefficients | None = None
        self._record: _Record | None = None

    @property
    def keys(self) -> torch.Tensor | None:  # type: ignore[override]
        """(B, 1, T, z)."""
        return self._keys.view

    @property
    def values(self) -> torch.Tensor | None:  # type: ignore[override]
        """(B, 1, T, h)."""
        return self._values.view

    @property
    def is_initialized(self) -> bool:  # type: ignore[override]
        """Whether anything is stored."""
        return self._keys.buffer is not None

    @property
    def batch_size(self) -> int:
        """Rows, -1 before the first."""
        return -1 if self._keys.buffer is None else self._keys.buffer.shape[0]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the first `update` allocates."""

    def rule(self, attention_mask: torch.Tensor | None, length: int, chunk_size: int | None) -> Continuation:
        """Who sees whom when `length` tokens follow; see `Continuation.build`."""
        return Continuation.build(self.past, attention_mask, length, chunk_size=chunk_size, keep_all=self.record_past)

    def update(  # type: ignore[override]
        self, key_states: torch.Tensor, value_states: torch.Tensor, rule: Continuation, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores new columns and returns the window of `rule`: what was kept of the cached ones, then the new ones.

        Args:
            key_states, value_states: (B, 1, n, z) and (B, 1, n, h); of a first pass the last columns are enough.
            rule: The rule of this forward pass.
        """
        self.chunk_size = rule.chunk_size
        limit = None if self.record_past or rule.chunk_size is None else rule.chunk_size
        keys = self._keys.append(key_states, limit)
        values = self._values.append(value_states, limit)
        window, kept = keys.shape[2], rule.after.kept
        self.past = rule.after
        for columns in (self._keys, self._values):
            if kept < window and window > 2 * max(kept, SLACK):
                # most of a long first pass is never seen again: let go of its memory
                columns._set(cast(torch.Tensor, columns.view)[:, :, window - kept :].clone())
            else:
                columns.keep(window - kept, window)
        return keys, values

    def coefficients(self, make: Callable[[], EMACoefficients]) -> EMACoefficients:
        """The EMA's coefficients, made once: what is cached belongs to the weights it was made with."""
        if torch.is_grad_enabled():
            return make()
        if self._coefficients is None:
            self._coefficients = make()
        return self._coefficients

    def past_bias(self, bias: RelativeBias, length: int) -> BiasTable:
        """The relative position bias at offsets ... -1, 0, at least `length` of them; computed rarely."""
        if torch.is_grad_enabled():
            return bias.table(1 - length, 0)
        if self._bias is None or self._bias.zero + 1 < length:
            self._bias = bias.table(1 - length - max(SLACK, length // 2), 0)
        return self._bias

    def advance(
        self,
        x: torch.Tensor,
        state: torch.Tensor,
        coefficients: EMACoefficients,
        truncation: int | None,
    ) -> None:
        """Stores the EMA's state after the inputs x (B, n, d), and of these what truncation or a roll-back needs."""
        if self.record_past:
            if self._record is None:
                detached = EMACoefficients(*(c.detach() for c in coefficients))
                self._record = _Record(self.state, self.history, [], detached, truncation)
            self._record.inputs.append(x.detach())
        self.state = state
        if truncation is not None:
            self.history = _last_inputs(self.history, x, truncation)

    def get_seq_length(self) -> int:
        """Columns seen so far, whether their keys are still stored or not."""
        return cast(int, self.past.seen)

    def get_max_length(self) -> int:
        """-1: there is no maximum."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length of an attention mask for the next tokens, and its first column."""
        return self.get_seq_length() + query_length, 0

    def activate_past_recording(self) -> None:
        """From now on keep what `crop` needs, until it is called."""
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last `-tokens_to_remove` columns: keys, values, EMA state and padding as if never seen.

        Args:
            tokens_to_remove: Zero or negative; 0 only lets go of what was recorded.

        Raises:
            ValueError: for a positive number, or one that goes back behind where recording began.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"crop({tokens_to_remove}): give minus the number of tokens to remove")
        count = -tokens_to_remove
        if count and count == self.past.seen:
            self.reset()
            return
        record, self._record = self._record, None
        if count:
            recorded = 0 if record is None else sum(x.shape[1] for x in record.inputs)
            if record is None or count > recorded:
                raise ValueError(
                    f"crop({tokens_to_remove}): of the last tokens {recorded} are recorded, and an EMA's state cannot "
                    "be reversed; call cache.activate_past_recording() before the forward passes to be undone"
                )
            self._roll_back(record, recorded - count)
        self._shrink(count)

    def _roll_back(self, record: _Record, tokens: int) -> None:
        """The EMA's state after the first `tokens` recorded ones."""
        self.state, self.history = record.state, record.history
        if not tokens:
            return
        x = torch.cat(record.inputs, dim=1)[:, :tokens]
        inputs = x.to(record.coefficients.input.dtype)
        history = None if record.history is None else record.history.to(inputs.dtype)
        with no_autocast(x.device.type):
            _, self.state = ema_chunked(
                inputs, record.coefficients, truncation=record.truncation, state=record.state, history=history
            )
        if record.truncation is not None:
            self.history = _last_inputs(record.history, x, record.truncation)

    def _shrink(self, count: int) -> None:
        """Drops the last `count` columns, and those at the front that no later token sees."""
        _, kept, mask, leading = self.past
        seen, stop = self.get_seq_length() - count, kept - count
        if leading is not None:
            leading = leading.clamp(max=seen)
        if self.chunk_size is None:
            start = 0
        else:
            needed = seen % self.chunk_size if leading is None else self.chunk_size - 1
            start = max(0, stop - needed)
        self._keys.keep(start, stop)
        self._values.keep(start, stop)
        self.past = Past(seen, stop - start, None if mask is None else mask[:, start:stop], leading)

    def reset(self) -> None:
        """Forgets everything."""
        self._clear()

    def _take_rows(self, index: torch.Tensor) -> None:
        """Row i of everything stored becomes the former row `index[i]`."""

        def taken(x: torch.Tensor | None) -> torch.Tensor | None:
            return None if x is None else x.index_select(0, index.to(x.device))

        for columns in (self._keys, self._values):
            columns.take_rows(index)
        self.state, self.history = taken(self.state), taken(self.history)
        self.past = self.past._replace(mask=taken(self.past.mask), leading=taken(self.past.leading))
        if self._record is not None:
            self._record = self._record._replace(
                state=taken(self._record.state),
                history=taken(self._record.history),
                inputs=[x.index_select(0, index.to(x.device)) for x in self._record.inputs],
            )

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Row i becomes the former row `beam_idx[i]`."""
        self._take_rows(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row."""
        self._take_rows(torch.arange(max(self.batch_size, 0)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps some rows."""
        self._take_rows(torch.arange(max(self.batch_size, 0), device=indices.device)[indices])

    def offload(self) -> None:
        """Moves keys and values, the large part, to the CPU."""
        self._move(torch.device("cpu"))

    def prefetch(self) -> None:
        """Moves them back to where the state is."""
        if self.state is not None:
            self._move(self.state.device)

    def _move(self, device: torch.device) -> None:
        for columns in (self._keys, self._values):
            columns.map(lambda x: x.to(device, non_blocking=True))


class MegaStaticCacheLayer(StaticLayer):
    """One block's memory in tensors of fixed shapes and addresses, for compiled decoding steps.

    `keys` (B, 1, slots, z) and `values` (B, 1, slots, h) hold column c in slot c % slots; there are `max_cache_len`
    slots, or a chunk's with chunks, where the length has no limit. The other attributes are `MegaCacheLayer`'s.
    """

    is_sliding = False
    is_croppable = False  # the state that was there before is overwritten
    supports_early_init = False
    record_past = False
    _layer_type = "mega"

    def __init__(self, max_cache_len: int, **kwargs: Any) -> None:
        super().__init__(max_cache_len)
        self.chunk_size: int | None = None
        self.owner: MegaConfig | None = None
        self.state: torch.Tensor | None = None
        self.history: torch.Tensor | None = None
        self.mask: torch.Tensor | None = None
        self.leading: torch.Tensor | None = None
        self._bias: BiasTable | None = None

    @property
    def past(self) -> Past:
        """What is known of the columns before."""
        if not self.is_initialized:
            return Past()
        return Past(self.cumulative_length, cast(torch.Tensor, self.keys).shape[2], self.mask, self.leading)

    @property
    def batch_size(self) -> int:  # type: ignore[override]
        """Rows, -1 before the first."""
        return -1 if self.keys is None else self.keys.shape[0]

    def rule(self, attention_mask: torch.Tensor | None, length: int, chunk_size: int | None) -> Continuation:
        """Who sees whom when `length` tokens follow; see `Continuation.build_in_ring`.

        Raises:
            ValueError: for more tokens than there are slots, without chunks (where a look at the length is free).
        """
        seen = self.cumulative_length if self.is_initialized else 0
        free_look = isinstance(seen, int) or (seen.device.type == "cpu" and not torch.compiler.is_compiling())
        if chunk_size is None and free_look and int(seen) + length > self.max_cache_len:
            raise ValueError(
                f"the static cache has max_cache_len={self.max_cache_len}, but {int(seen)} + {length} tokens are to "
                "be held; make a longer one"
            )
        if not self.is_initialized:
            return Continuation.build(Past(), attention_mask, length, chunk_size=chunk_size)
        return Continuation.build_in_ring(self.past, attention_mask, length, chunk_size=chunk_size)

    def update(  # type: ignore[override]
        self, key_states: torch.Tensor, value_states: torch.Tensor, rule: Continuation, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `MegaCacheLayer.update`; the first pass allocates."""
        first = not self.is_initialized
        window = (key_states, value_states)
        if first:
            self._allocate(key_states, value_states, rule)
            start = torch.full_like(self.cumulative_length, cast(int, rule.after.seen) - key_states.shape[2])
        else:
            window = (
                torch.cat([cast(torch.Tensor, self.keys), key_states], dim=2),
                torch.cat([cast(torch.Tensor, self.values), value_states], dim=2),
            )
            start = self.cumulative_length
        keys, values, mask, leading = (
            cast(torch.Tensor, x) for x in (self.keys, self.values, self.mask, self.leading)
        )
        slots, length = keys.shape[2], key_states.shape[2]
        written = min(slots, length)
        where = (start + torch.arange(length - written, length, device=start.device)) % slots
        keys.index_copy_(2, where, key_states[:, :, length - written :])
        values.index_copy_(2, where, value_states[:, :, length - written :])
        if rule.mask is not None:
            mask.index_copy_(1, where, rule.mask[:, rule.length - written :])
        if rule.after.leading is not None:
            leading.copy_(rule.after.leading)
        self.cumulative_length.add_(rule.length)
        return window

    def _allocate(self, key_states: torch.Tensor, value_states: torch.Tensor, rule: Continuation) -> None:
        self.chunk_size = rule.chunk_size
        slots = self.max_cache_len if rule.chunk_size is None else min(self.max_cache_len, rule.chunk_size)
        batch = key_states.shape[0]
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.new_zeros(batch, 1, slots, key_states.shape[3])
        self.values = value_states.new_zeros(batch, 1, slots, value_states.shape[3])
        self.mask = torch.ones(batch, slots, dtype=torch.bool, device=self.device)
        self.leading = torch.zeros(batch, dtype=torch.int64, device=self.device)
        self.cumulative_length = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._fix_addresses(self.keys, self.values, self.mask, self.leading, self.cumulative_length)
        self.is_initialized = True

    @staticmethod
    def _fix_addresses(*tensors: torch.Tensor) -> None:
        """Lets a compiler keep addresses, for CUDA graphs."""
        if not torch.compiler.is_compiling():
            for tensor in tensors:
                torch._dynamo.mark_static_address(tensor)

    def coefficients(self, make: Callable[[], EMACoefficients]) -> EMACoefficients:
        """The EMA's coefficients, made every time: a compiler folds them."""
        return make()

    def past_bias(self, bias: RelativeBias, length: int) -> BiasTable:
        """The relative position bias at as many offsets ... -1, 0 as there are slots."""
        if self._bias is None:
            values, zero = bias.table(1 - cast(torch.Tensor, self.keys).shape[2], 0)
            self._bias = BiasTable(values.detach().clone(), zero)
            self._fix_addresses(self._bias.values)
        return self._bias

    def advance(
        self,
        x: torch.Tensor,
        state: torch.Tensor,
        coefficients: EMACoefficients,
        truncation: int | None,
    ) -> None:
        """As `MegaCacheLayer.advance`."""
        history = None if truncation is None else _last_inputs(self.history, x, truncation)
        if self.state is None:
            self.state = state.detach().clone()
            self.history = None if history is None else history.detach().clone()
            self._fix_addresses(*(t for t in (self.state, self.history) if t is not None))
            return
        self.state.copy_(state)
        if history is not None:
            cast(torch.Tensor, self.history).copy_(history)

    def get_seq_length(self) -> int:
        """Columns seen so far, as a tensor once there are any."""
        return cast(int, self.cumulative_length) if self.is_initialized else 0

    def reset(self) -> None:
        """Forgets everything, and keeps the memory."""
        if self.is_initialized:
            for tensor in (self.keys, self.values, self.leading, self.cumulative_length, self.state, self.history):
                if tensor is not None:
                    tensor.zero_()
            cast(torch.Tensor, self.mask).fill_(True)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Row i becomes the former row `beam_idx[i]`."""
        for tensor in (self.keys, self.values, self.mask, self.leading, self.state, self.history):
            if tensor is not None:
                tensor.copy_(tensor.index_select(0, beam_idx.to(tensor.device)))


def _last_inputs(history: torch.Tensor | None, x: torch.Tensor, truncation: int) -> torch.Tensor:
    """(B, K, d): the last K inputs, zeros before the first."""
    if history is None:
        history = x.new_zeros(x.shape[0], truncation, x.shape[2])
    return torch.cat([history, x], dim=1)[:, -truncation:]


class MegaCrossCacheLayer(CacheLayerMixin):
    """One block's keys (B, 1, S, z) and values (B, 1, S, d) of an encoder's states, stored once.

    `mask` (B, S) bool is True at source tokens that are no padding; None if all are.
    """

    is_compileable = False
    is_croppable = True
    is_sliding = False
    supports_early_init = False

    def __init__(self) -> None:
        super().__init__()
        self.mask: torch.Tensor | None = None
        self._table: BiasTable | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the first `update` stores."""

    def update(  # type: ignore[override]
        self, key_states: torch.Tensor, value_states: torch.Tensor, crossing: Crossing, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores keys (B, 1, S, z) and values (B, 1, S, d) of a source, and its padding."""
        self.keys, self.values, self.mask = key_states, value_states, crossing.mask
        self.is_initialized = True
        return key_states, value_states

    @property
    def batch_size(self) -> int:
        """Rows, -1 while nothing is stored."""
        return -1 if self.keys is None else self.keys.shape[0]

    def bias(self, bias: RelativeBias, crossing: Crossing) -> RelativeBias | BiasTable:
        """The relative position bias at all offsets of the rule; a table of it is computed rarely."""
        if torch.is_grad_enabled() or not isinstance(crossing.start, int):
            return bias
        low, high = crossing.range
        table = self._table
        if table is None or low < -table.zero or high >= table.values.shape[0] - table.zero:
            more = max(SLACK, crossing.start // 2)
            self._table = table = bias.table(low - more, high + (0 if crossing.shift is None else more))
        return table

    def get_seq_length(self) -> int:
        """Source columns stored."""
        return 0 if self.keys is None else self.keys.shape[2]

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
        if self.keys is not None and self.values is not None:
            self.keys, self.values = (x.index_select(0, index.to(x.device)) for x in (self.keys, self.values))
            self.mask = None if self.mask is None else self.mask.index_select(0, index.to(self.mask.device))

    reorder_cache = MegaCacheLayer.reorder_cache
    batch_repeat_interleave = MegaCacheLayer.batch_repeat_interleave
    batch_select_indices = MegaCacheLayer.batch_select_indices
