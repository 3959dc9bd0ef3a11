"""The feed-forward sub-layer (authors' `NormalizedFeedForwardNetwork`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.activations import ACT2FN

from .dropout import MegaDropout
from .linear import linear
from .norms import MegaSequenceNorm
from .recompute import recomputed, takes_pieces, tokens_per_piece

if TYPE_CHECKING:
    from ..models.mega.configuration_mega import MegaConfig


class MegaNormalizedFeedForwardNetwork(nn.Module):
    """The feed-forward sub-layer: x + fc2(activation(fc1(norm(x)))), or with the norm after the sum.

    Args:
        config: The configuration.
    """

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.prenorm = config.normalize_before_ffn
        self.recompute = config.recompute_activations
        self.activation = ACT2FN[config.activation]
        self.dropout = MegaDropout(config.dropout_prob, config.use_feature_dropout)
        self.hidden_dropout = MegaDropout(config.nffn_activation_dropout_prob, config.use_feature_dropout)
        self.norm = MegaSequenceNorm(config)
        self.fc1 = nn.Linear(config.hidden_size, config.nffn_hidden_size)
        self.fc2 = nn.Linear(config.nffn_hidden_size, config.hidden_size)

    def forward(self, x: torch.Tensor, recompute: bool | None = None) -> torch.Tensor:
        """Applies the layer.

        Args:
            x: (B, L, d).
            recompute: Overrides `config.recompute_activations`.

        Returns:
            (B, L, d).
        """
        if not self.training and takes_pieces(x):
            return torch.cat([self._feed(piece, False) for piece in x.split(tokens_per_piece(x), dim=1)], dim=1)
        return self._feed(x, self.recompute if recompute is None else recompute)

    def _feed(self, x: torch.Tensor, recompute: bool | None) -> torch.Tensor:
        hidden = linear(self.fc1, self.norm(x) if self.prenorm else x)
        output = x + self.dropout(recomputed(recompute, self._contract, hidden))
        return output if self.prenorm else self.norm(output)

    def _contract(self, hidden: torch.Tensor) -> torch.Tensor:
        return linear(self.fc2, self.hidden_dropout(self.activation(hidden)))
