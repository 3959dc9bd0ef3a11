"""The parameters of the relative position biases (authors' `RelativePositionalBias` modules)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from ..ops.relative_bias import RotaryBias, SimpleBias

if TYPE_CHECKING:
    from ..models.mega.configuration_mega import MegaConfig


class MegaSimpleRelativePositionalBias(nn.Module):
    """A learned number for each distance, `rel_pos_bias` (2 * max_positions - 1,).

    As in transformers 4.40.2, the entry for distance 0 has index `chunk_size - 1` if `chunk_size` is positive (the
    rest of the vector is then unused), and `max_positions - 1` otherwise. In cross-attention it has index
    `cross_attention_max_positions - 1` if that is given, and the vector is longer if necessary.

    Args:
        config: The configuration.
        cross_attention: Whether it is for cross-attention.
    """

    def __init__(self, config: MegaConfig, cross_attention: bool = False) -> None:
        super().__init__()
        served = config.positions_of_simple_bias(cross_attention)
        self.centre = served - 1
        size = max(served, config.max_positions)
        self.rel_pos_bias = nn.Parameter(torch.empty(2 * size - 1))

    def forward(self) -> SimpleBias:
        """The bias, for any length up to `centre + 1`."""
        return SimpleBias(self.rel_pos_bias, self.centre)


class MegaRotaryRelativePositionalBias(nn.Module):
    """<R_i alpha, R_j b_param> with R_p the rotation to position p; two vectors (1, z). Serves any length.

    Args:
        config: The configuration.
    """

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(1, config.shared_representation_size))
        self.b_param = nn.Parameter(torch.empty(1, config.shared_representation_size))

    def forward(self) -> RotaryBias:
        """The bias, for any length."""
        return RotaryBias(self.alpha, self.b_param)


def relative_positional_bias(
    config: MegaConfig, cross_attention: bool = False
) -> MegaSimpleRelativePositionalBias | MegaRotaryRelativePositionalBias:
    """The module named by `config.relative_positional_bias`, of self-attention or of cross-attention."""
    if config.relative_positional_bias == "simple":
        return MegaSimpleRelativePositionalBias(config, cross_attention)
    return MegaRotaryRelativePositionalBias(config)
