"""Moving average equipped gated attention, the layer that gives Mega its name (paper section 3.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN

from ..ops.attention import attention
from ..ops.layout import AttentionLayout, self_attention_layout
from .dropout import MegaDropout
from .ema import MegaMultiDimensionDampedEma
from .gate import gated_residual
from .linear import linear
from .norms import MegaSequenceNorm
from .position_bias import relative_positional_bias
from .recompute import recomputed, takes_pieces, tokens_per_piece

if TYPE_CHECKING:
    from transformers.cache_utils import Cache

    from ..models.mega.cache_mega import MegaCacheLayer
    from ..models.mega.configuration_mega import MegaConfig

BACKEND_OF_IMPLEMENTATION = {"eager": "reference", "sdpa": None, "flex_attention": "flex"}
"""`attn_implementation` -> back end of `ops.attention`; None chooses the fastest."""


class MegaMovingAverageGatedAttention(nn.Module):
    """EMA, single-head attention with queries and keys made from it, and two gates (authors' class of this name).

    Args:
        config: The configuration.
        layer_idx: Number of the block, from 0, by which it finds its layer of a cache.
    """

    def __init__(self, config: MegaConfig, layer_idx: int = 0) -> None:
        super().__init__()
        self.config = config
        self.prenorm = config.normalize_before_mega
        self.attention_activation = config.attention_activation
        self.attention_dropout = config.attention_probs_dropout_prob
        self.recompute = config.recompute_activations
        self.layer_idx = layer_idx
        d, h, z = config.hidden_size, config.intermediate_size, config.shared_representation_size
        self.split_sizes = [d, z, h, d]
        self.activation = ACT2FN[config.activation]
        self.dropout = MegaDropout(config.dropout_prob, config.use_feature_dropout)
        self.hidden_dropout = MegaDropout(config.hidden_dropout_prob, config.use_feature_dropout)
        self.norm = MegaSequenceNorm(config)
        self.ema_gate = MegaMultiDimensionDampedEma(config)
        self.v_proj = nn.Linear(d, h)
        self.mx_proj = nn.Linear(d, z + h + 2 * d)
        self.h_proj = nn.Linear(h, d)
        self.qk_weight = nn.Parameter(torch.empty(2, z))
        self.qk_bias = nn.Parameter(torch.empty(2, z))
        self.rel_pos_bias = relative_positional_bias(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        layout: AttentionLayout | None = None,
        output_attentions: bool = False,
        cache: Cache | None = None,
        recompute: bool | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Applies the layer.

        Args:
            hidden_states: (B, L, d).
            layout: Who sees whom. Default: every token sees its chunk, in a decoder up to itself.
            output_attentions: Whether to return the weights, with any implementation of attention.
            cache: What is remembered of the tokens before, updated in place.
            recompute: Overrides `config.recompute_activations`.

        Returns:
            (B, L, d), and the attention weights or None: (B, K, n, n) for K chunks of n tokens; with a cache
            (B, 1, L, T) for the T columns that may be seen.
        """
        if layout is None:
            layout = default_layout(self.config, hidden_states.shape[1])
        cache_layer = None if cache is None else cast("MegaCacheLayer", cache.layers[self.layer_idx])
        recompute = self.recompute if recompute is None else recompute
        x = self.norm(hidden_states) if self.prenorm else hidden_states
        averaged = self.dropout(self.ema_gate(x, layout, cache_layer))
        pieces = None if output_attentions else self._pieces(x, layout, cache_layer)
        if pieces is None:
            output, weights = self._attend(hidden_states, x, averaged, layout, output_attentions, cache, recompute)
        else:
            output, weights = torch.empty_like(hidden_states), None
            for where, piece in pieces:
                # the last piece holds everything that a later token may see
                remember = cache if where.stop == x.shape[1] else None
                given = hidden_states[:, where], x[:, where], averaged[:, where]
                output[:, where], _ = self._attend(*given, piece, False, remember, recompute)
        return output if self.prenorm else self.norm(output), weights

    def _attend(
        self,
        residual: torch.Tensor,
        x: torch.Tensor,
        averaged: torch.Tensor,
        layout: AttentionLayout,
        output_attentions: bool,
        cache: Cache | None,
        recompute: bool | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Everything between the EMA and a norm after the residual, which tokens of other chunks do not affect."""
        value = self.hidden_dropout(self.activation(linear(self.v_proj, x)))
        update, shared, gate, intermediate = linear(self.mx_proj, averaged).split(self.split_sizes, dim=-1)
        query, key = torch.addcmul(self.qk_bias, F.silu(shared).unsqueeze(-2), self.qk_weight).unbind(-2)
        bias = self.rel_pos_bias()
        if cache is not None:
            bias = cast("MegaCacheLayer", cache.layers[self.layer_idx]).bias(bias, layout)
            key, value = cache.update(key, value, self.layer_idx)
        backend = BACKEND_OF_IMPLEMENTATION[self.config._attn_implementation or "sdpa"]
        if output_attentions or (backend == "flex" and self.attention_activation != "softmax"):
            backend = None
        attended, weights = attention(
            query,
            key,
            value,
            bias,
            layout,
            activation=self.attention_activation,
            dropout=self.attention_dropout if self.training else 0.0,
            need_weights=output_attentions or backend == "reference",
            backend=backend,
        )
        output = recomputed(recompute, self._gated, residual, attended, update, gate, intermediate)
        return output, weights

    def _gated(
        self,
        residual: torch.Tensor,
        attended: torch.Tensor,
        update: torch.Tensor,
        gate: torch.Tensor,
        intermediate: torch.Tensor,
    ) -> torch.Tensor:
        """The old hidden states and the new ones from the attention output, mixed by the update gate: (B, L, d)."""
        candidate = self.dropout(self.activation(intermediate + linear(self.h_proj, attended * F.silu(gate))))
        return gated_residual(residual, candidate, update)

    def _pieces(
        self, x: torch.Tensor, layout: AttentionLayout, cache_layer: MegaCacheLayer | None
    ) -> list[tuple[slice, AttentionLayout]] | None:
        """The tokens in pieces of whole chunks, for inference on a CPU; None if they should not be cut."""
        if self.training or not takes_pieces(x) or self.config._attn_implementation == "eager":
            return None
        if cache_layer is not None and (cache_layer.is_initialized or cache_layer.record_past):
            return None
        return layout.pieces(tokens_per_piece(x))


def default_layout(config: MegaConfig, length: int) -> AttentionLayout:
    """The layout of a batch without padding or packing."""
    chunk_size = config.chunk_size if config.use_chunking else None
    return self_attention_layout(None, length, chunk_size=chunk_size, causal=config.is_decoder)
