"""Gated attention of a decoder to an encoder (authors' `GatedCrossAttention`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN

from ..ops.attention import attention
from ..ops.layout import AttentionLayout
from .dropout import MegaDropout
from .gate import gated_residual
from .linear import linear
from .norms import MegaSequenceNorm
from .position_bias import relative_positional_bias

if TYPE_CHECKING:
    from transformers.cache_utils import EncoderDecoderCache

    from ..models.mega.cache_mega import MegaCrossCacheLayer
    from ..models.mega.configuration_mega import MegaConfig


class MegaGatedCrossAttention(nn.Module):
    """Single-head attention over an encoder's hidden states, with a gate for its result and a gated residual.

    Args:
        config: The configuration of the decoder.
        layer_idx: Number of the block, from 0, by which it finds its layer of a cache.
    """

    def __init__(self, config: MegaConfig, layer_idx: int = 0) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.prenorm = config.normalize_before_mega
        d, z = config.hidden_size, config.shared_representation_size
        source_size = config.cross_attention_hidden_size or d
        self.split_sizes = [d, d, z]
        self.activation = ACT2FN[config.activation]
        self.dropout = MegaDropout(config.dropout_prob, config.use_feature_dropout)
        self.hidden_dropout = MegaDropout(config.hidden_dropout_prob, config.use_feature_dropout)
        self.norm = MegaSequenceNorm(config)
        self.k_proj = nn.Linear(source_size, z)
        self.v_proj = nn.Linear(source_size, d)
        self.q_proj = nn.Linear(d, 2 * d + z)
        self.h_proj = nn.Linear(d, d)
        self.rel_pos_bias = relative_positional_bias(config, cross_attention=True)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None,
        layout: AttentionLayout,
        output_attentions: bool = False,
        cache: EncoderDecoderCache | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Applies the layer.

        Args:
            hidden_states: (B, L, d) of the decoder.
            encoder_hidden_states: (B, S, d of the encoder); not needed if keys and values are cached.
            layout: Padding and positions.
            output_attentions: Whether to return the weights, with any implementation of attention.
            cache: Keys and values of the encoder's states, stored by the first forward pass.

        Returns:
            (B, L, d), and the attention weights (B, 1, L, S) or None.
        """
        x = self.norm(hidden_states) if self.prenorm else hidden_states
        update, gate, query = linear(self.q_proj, x).split(self.split_sizes, dim=-1)
        bias = self.rel_pos_bias()
        if cache is not None and cache.is_updated.get(self.layer_idx):
            stored = cast("MegaCrossCacheLayer", cache.cross_attention_cache.layers[self.layer_idx])
            key, value, bias = stored.keys.squeeze(1), stored.values.squeeze(1), stored.bias(bias, layout)
        else:
            assert encoder_hidden_states is not None
            key, value = self.keys_and_values(encoder_hidden_states)
            if cache is not None:
                cache.cross_attention_cache.update(key, value, self.layer_idx, layout.real)
                cache.is_updated[self.layer_idx] = True
        eager = self.config._attn_implementation == "eager"
        attended, weights = attention(
            query,
            key,
            self.hidden_dropout(value),
            bias,
            layout,
            activation=self.config.attention_activation,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            need_weights=output_attentions or eager,
            backend="reference" if eager else None,
        )
        candidate = self.dropout(self.activation(linear(self.h_proj, attended * F.silu(gate))))
        output = gated_residual(hidden_states, candidate, update)
        return output if self.prenorm else self.norm(output), weights

    def keys_and_values(self, encoder_hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys (B, S, z) and values (B, S, d) of an encoder's hidden states, which a cache stores.

        Args:
            encoder_hidden_states: (B, S, d of the encoder).
        """
        key = linear(self.k_proj, encoder_hidden_states)
        return key, self.activation(linear(self.v_proj, encoder_hidden_states))
