"""A decoder's cache as input and output tensors of a graph.

`MegaCacheLayer` keeps a number of columns that depends on values, and `MegaStaticCacheLayer` writes in place: an
exported graph can do neither. Here everything is a function of tensors. With chunks, the cache always has the chunk's
length minus one columns, and a mask hides those that are not filled yet. Without chunks, it has one column per token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from transformers.cache_utils import CacheLayerMixin

from ..models.mega.cache_mega import MegaCacheState, MegaCrossCacheLayer, first_true
from ..models.mega.configuration_mega import MegaConfig
from ..ops.ema import EMACoefficients
from ..ops.layout import AttentionLayout, self_attention_layout
from ..ops.relative_bias import BiasTable, RelativeBias

T = TypeVar("T")


class BiasMatrix(BiasTable):
    """A bias whose `tiles` always returns `values` (B or 1, L, S), for any distance."""

    def tiles(self, distance: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """The values."""
        return self.values


class OpenCacheLayer(MegaCacheState, CacheLayerMixin):
    """The cache of one block in a graph: for any number of first tokens, or for one token after others.

    Args:
        config: The decoder's configuration.
        past: `keys` (B, T, z), `values` (B, T, h), `state` (B, d, N) and, with truncation K, `history` (B, K, d) of
            the earlier tokens; None for first tokens. In the first layer also `mask` (B, T), False at columns that are
            padding or not filled yet, and `position` (B,), the columns since the row's first real token.
    """

    is_initialized = True
    is_compileable = False
    is_croppable = False
    is_sliding = False
    record_past = False
    batch_size = -1  # a graph does not depend on the number of rows

    def __init__(self, config: MegaConfig, past: dict[str, torch.Tensor] | None) -> None:
        self.owner = config
        self.chunk_size = config.chunk_size if config.use_chunking else None
        self.past = past
        self.present: dict[str, torch.Tensor] = {}
        self.first_real = None
        self.state = None if past is None else past["state"]
        self.history = None if past is None else past.get("history")

    @property
    def seen(self) -> int | torch.Tensor:  # type: ignore[override]
        """Columns before the new ones: (B,), counted from the first real token."""
        return 0 if self.past is None else self.past["position"]

    def remembered(self, name: str, make: Callable[[], T]) -> T:
        """The result of `make`, in every graph."""
        return make()

    def begin(
        self,
        layers: Sequence[OpenCacheLayer],
        mask: torch.Tensor | None,
        shape: tuple[int, int],
        chunk_size: int | None,
        device: torch.device,
    ) -> AttentionLayout:
        """As `MegaCacheLayer.begin`; the mask is that of first tokens; a later token has none."""
        length = shape[1]
        if self.past is None:
            assert mask is not None
            real = mask.to(torch.bool)
            self.present["position"] = length - first_true(real)
            self.present["mask"] = self._kept(real, None)
            return self_attention_layout(mask, length, chunk_size=chunk_size, causal=True)
        position, before = self.past["position"], self.past["mask"]
        window = torch.cat([before, before.new_ones(before.shape[0], 1)], dim=1)
        self.present["position"] = position + 1
        self.present["mask"] = self._kept(window[:, -1:], before)
        kept = before.shape[1]
        start = None
        if chunk_size is not None:
            start = (kept - position % chunk_size).unsqueeze(1)
        offset = torch.full((1,), kept, device=device)
        stop = None if start is None else torch.full_like(start, kept + 1)
        return AttentionLayout(1, kept + 1, True, offset=offset, start=start, stop=stop, real=window)

    def _kept(self, new: torch.Tensor, before: torch.Tensor | None) -> torch.Tensor:
        """The columns that a later token may see, of cached (B, T, ...) and new ones (B, L, ...)."""
        if self.chunk_size is None:
            return new if before is None else torch.cat([before, new], dim=1)
        if before is None:
            before = new.new_zeros(new.shape[0], self.chunk_size - 1, *new.shape[2:])
        return torch.cat([before, new], dim=1)[:, new.shape[1] :]

    def update(  # type: ignore[override]
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `MegaCacheLayer.update`."""
        if self.past is None:
            self.present |= {"keys": self._kept(key_states, None), "values": self._kept(value_states, None)}
            return key_states, value_states
        keys, values = self.past["keys"], self.past["values"]
        self.present |= {"keys": self._kept(key_states, keys), "values": self._kept(value_states, values)}
        return torch.cat([keys, key_states], dim=1), torch.cat([values, value_states], dim=1)

    def bias(self, bias: RelativeBias, layout: AttentionLayout) -> RelativeBias | BiasTable:
        """The bias itself for first tokens; for a later token, the numbers at its distances."""
        if self.past is None:
            return bias
        distances = torch.arange(layout.keys) - (layout.keys - 1)
        return BiasMatrix(bias.at(distances).view(1, 1, -1), 0)

    def advance(
        self, x: torch.Tensor, state: torch.Tensor | None, coefficients: EMACoefficients, truncation: int | None
    ) -> None:
        """As `MegaCacheLayer.advance`."""
        assert state is not None
        self.present["state"] = state
        if truncation is not None:
            history = self.history
            if history is None:
                history = x.new_zeros(x.shape[0], truncation, x.shape[2])
            self.present["history"] = torch.cat([history, x], dim=1)[:, x.shape[1] :]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do."""

    def get_seq_length(self) -> int:
        """0: only `past` describes earlier tokens."""
        return 0

    def get_max_length(self) -> int:
        """-1: there is no maximum."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length of an attention mask for the next tokens, and its first column."""
        return query_length, 0


class OpenCrossCacheLayer(MegaCrossCacheLayer):
    """Keys (B, S, z), values (B, S, d) and `real` (B, S), True at tokens, of a source, as inputs of a graph."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, real: torch.Tensor) -> None:
        super().__init__()
        self.update(keys, values, real)

    def bias(self, bias: RelativeBias, layout: AttentionLayout) -> RelativeBias | BiasTable:
        """The numbers at the distances of the source's tokens from the new one."""
        offset = layout.offset
        assert torch.is_tensor(offset)
        distances = torch.arange(layout.keys) - offset.unsqueeze(1)
        return BiasMatrix(bias.at(distances).unsqueeze(1), 0)
