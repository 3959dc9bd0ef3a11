"""One Mega block: gated attention, in a decoder gated cross-attention, then the feed-forward sub-layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer

from ..ops.layout import AttentionLayout
from .feed_forward import MegaNormalizedFeedForwardNetwork
from .gated_attention import MegaMovingAverageGatedAttention
from .gated_cross_attention import MegaGatedCrossAttention

if TYPE_CHECKING:
    from ..models.mega.configuration_mega import MegaConfig


class MegaBlock(GradientCheckpointingLayer):
    """A block of the model: gated attention, in some decoders gated cross-attention, and feed-forward.

    Args:
        config: The configuration.
        layer_idx: Number of the block, from 0, by which it finds its layer of a cache.
    """

    def __init__(self, config: MegaConfig, layer_idx: int = 0) -> None:
        super().__init__()
        self.mega_layer = MegaMovingAverageGatedAttention(config, layer_idx)
        self.cross_attn = MegaGatedCrossAttention(config, layer_idx) if config.add_cross_attention else None
        self.nffn = MegaNormalizedFeedForwardNetwork(config) if config.use_normalized_ffn else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        layout: AttentionLayout | None = None,
        cross_layout: AttentionLayout | None = None,
        output_attentions: bool = False,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """Applies the block.

        Args:
            hidden_states, layout, output_attentions: As in `MegaMovingAverageGatedAttention.forward`.
            encoder_hidden_states: (B, S, d of the encoder), for a block with cross-attention, unless they are cached.
                Pass them by position: gradient checkpointing differentiates only positional arguments.
            cross_layout: Padding and positions of cross-attention.
            cache: What is remembered of the tokens before; with cross-attention an `EncoderDecoderCache`.

        Returns:
            (B, L, d).
        """
        # gradient checkpointing recomputes the whole block, so no part of it recomputes again
        recompute = False if self.gradient_checkpointing and self.training else None
        pair = cache if isinstance(cache, EncoderDecoderCache) else None
        own = cache if pair is None else pair.self_attention_cache
        hidden_states, _ = self.mega_layer(hidden_states, layout, output_attentions, own, recompute)
        if self.cross_attn is not None:
            assert cross_layout is not None
            hidden_states, _ = self.cross_attn(
                hidden_states, encoder_hidden_states, cross_layout, output_attentions, pair
            )
        return hidden_states if self.nffn is None else self.nffn(hidden_states, recompute)
