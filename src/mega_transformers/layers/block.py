"""One Mega block: gated attention, then the feed-forward sub-layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from ..ops.continuation import Continuation
from ..ops.visibility import Visibility
from .feed_forward import MegaNormalizedFeedForwardNetwork
from .gated_attention import MegaMovingAverageGatedAttention

if TYPE_CHECKING:
    from transformers.cache_utils import Cache

    from ..models.mega.configuration_mega import MegaConfig


class MegaBlock(GradientCheckpointingLayer):
    """A layer of the model."""

    def __init__(self, config: MegaConfig, layer_idx: int = 0) -> None:
        super().__init__()
        self.mega_layer = MegaMovingAverageGatedAttention(config, layer_idx)
        self.nffn = MegaNormalizedFeedForwardNetwork(config) if config.use_normalized_ffn else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        visibility: Visibility | Continuation | None = None,
        output_attentions: bool = False,
        past_key_values: Cache | None = None,
    ) -> torch.Tensor:
        """(B, L, d) -> (B, L, d); arguments as in `MegaMovingAverageGatedAttention.forward`."""
        hidden_states, _ = self.mega_layer(hidden_states, visibility, output_attentions, past_key_values)
        return hidden_states if self.nffn is None else self.nffn(hidden_states)
