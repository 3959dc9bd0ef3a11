"""Moving average equipped gated attention, the layer that gives Mega its name (paper section 3.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN

from ..ops.attention import attention, attention_rectangular
from ..ops.continuation import Continuation
from ..ops.visibility import Visibility
from .dropout import MegaDropout
from .ema import MegaMultiDimensionDampedEma
from .linear import project
from .norms import MegaSequenceNorm
from .position_bias import relative_positional_bias
from .recompute import recomputed, takes_pieces, tokens_per_piece

if TYPE_CHECKING:
    from transformers.cache_utils import Cache

    from ..models.mega.configuration_mega import MegaConfig

BACKEND_OF_IMPLEMENTATION = {"eager": "reference", "sdpa": None, "flex_attention": "flex"}
"""`attn_implementation` -> back end of `ops.attention`; None lets that choose the fastest."""


class MegaMovingAverageGatedAttention(nn.Module):
    """EMA, single-head attention over queries and keys made from it, and two gates (authors' class of this name)."""

    def __init__(self, config: MegaConfig, layer_idx: int = 0) -> None:
        super().__init__()
        self.config = config
        self.prenorm = config.normalize_before_mega
        self.attention_activation = config.attention_activation
        self.attention_dropout = config.attention_probs_dropout_prob
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
        visibility: Visibility | Continuation | None = None,
        output_attentions: bool = False,
        cache: Cache | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Applies the layer.

        Args:
            hidden_states: (B, L, d).
            visibility: Who sees whom; by default every token sees its chunk, or the past of it in a decoder. With
                `cache` a `Continuation`.
            output_attentions: Whether to return the weights, whatever the implementation.
            cache: What was remembered of the tokens before, brought up to date.

        Returns:
            (B, L, d), and the attention weights or None: (B, K, n, n) for K chunks of n tokens; (B, 1, L, T) where
            tokens continue cached ones, for the T columns that may be seen.
        """
        if visibility is None:
            visibility = default_visibility(self.config, hidden_states.shape[1])
        cache_layer = None if cache is None else cast(Any, cache.layers[self.layer_idx])
        residual = hidden_states
        x = self.norm(residual) if self.prenorm else residual
        averaged, weight = self.ema_gate(x, visibility.mask, visibility.starts, visibility.num_documents, cache_layer)
        rule = visibility.fresh if isinstance(visibility, Continuation) else visibility
        whole = self.training or output_attentions or (cache_layer is not None and cache_layer.record_past)
        if rule is not None and not whole and takes_pieces(x) and self.config._attn_implementation != "eager":
            output = torch.empty_like(residual)
            pieces = rule.pieces(tokens_per_piece(x))
            for where, part in pieces:
                # the last piece holds all that a later token may see
                remember = cache if where.stop == x.shape[1] else None
                output[:, where], _ = self._attend(
                    residual[:, where], x[:, where], averaged[:, where], weight, part, False, remember, visibility
                )
            weights = None
        else:
            output, weights = self._attend(residual, x, averaged, weight, rule, output_attentions, cache, visibility)
        if not self.prenorm:
            output = self.norm(output)
        return output, weights

    def _attend(
        self,
        residual: torch.Tensor,
        x: torch.Tensor,
        averaged: torch.Tensor,
        weight: torch.Tensor,
        rule: Visibility | None,
        output_attentions: bool,
        cache: Cache | None,
        continuation: Visibility | Continuation,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Everything between the EMA and a norm behind, which tokens of other chunks have no part in.

        The tokens see each other by `rule`, or, for None, the cached ones too, by `continuation`.
        """
        value = self.hidden_dropout(self.activation(project(self.v_proj, x)))
        update, shared, gate, intermediate = recomputed(self._base, averaged, x, weight).split(
            self.split_sizes, dim=-1
        )
        shared = F.silu(shared)
        query, key = (torch.addcmul(bias, shared, weight) for weight, bias in zip(self.qk_weight, self.qk_bias))

        keys, values, past_bias = key, value, None
        if cache is not None:
            window = cache.update(key.unsqueeze(1), value.unsqueeze(1), self.layer_idx, continuation)
            keys, values = (columns.squeeze(1) for columns in window)
            cache_layer = cast(Any, cache.layers[self.layer_idx])
            if rule is None or cache_layer.is_compileable:  # compiled steps find what the first pass made
                past_bias = cache_layer.past_bias(self.rel_pos_bias(), keys.shape[1])
        backend = BACKEND_OF_IMPLEMENTATION[self.config._attn_implementation or "sdpa"]
        if backend == "flex" and self.attention_activation != "softmax":
            backend = None
        activation = self.attention_activation
        dropout = self.attention_dropout if self.training else 0.0
        need_weights = output_attentions or backend == "reference"
        if rule is None:
            attended, weights = attention_rectangular(
                query,
                keys,
                values,
                past_bias,
                cast(Continuation, continuation),
                activation=activation,
                dropout=dropout,
                need_weights=need_weights,
            )
        else:
            attended, weights = attention(
                query,
                key,
                value,
                self.rel_pos_bias(),
                rule,
                activation=activation,
                dropout=dropout,
                need_weights=need_weights,
                backend=None if output_attentions else backend,
            )
        candidate = recomputed(self._candidate, attended, gate, intermediate)
        return recomputed(self._gated_residual, residual, update, candidate), weights

    def _base(self, averaged: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """What gates, queries and keys come from: (B, L, d + z + h + d)."""
        return project(self.mx_proj, self.dropout(self.ema_gate.activate(averaged, x, weight)))

    def _candidate(self, attended: torch.Tensor, gate: torch.Tensor, intermediate: torch.Tensor) -> torch.Tensor:
        """New hidden states before their activation, (B, L, d)."""
        return intermediate + project(self.h_proj, attended * F.silu(gate))

    def _gated_residual(self, residual: torch.Tensor, update: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
        """Old and new hidden states mixed by the update gate, (B, L, d)."""
        return torch.addcmul(residual, torch.sigmoid(update), self.dropout(self.activation(candidate)) - residual)


def default_visibility(config: MegaConfig, length: int) -> Visibility:
    """The rule for a batch without padding or packing."""
    chunk_size = config.chunk_size if config.use_chunking else None
    return Visibility.build(None, length, chunk_size=chunk_size, causal=config.is_decoder)
