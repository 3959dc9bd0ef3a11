"""Dropout of single elements, or of whole features of a sequence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..ops.dropout import dropout


class MegaDropout(nn.Module):
    """Dropout on (B, L, features).

    Args:
        p: Probability of dropping.
        featurewise: Whether a feature is dropped either at all positions of a sequence or at none (never by chunks).
    """

    def __init__(self, p: float, featurewise: bool = False) -> None:
        super().__init__()
        self.p = p
        self.featurewise = featurewise

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, L, f) -> (B, L, f)."""
        if not self.training or self.p == 0:
            return x
        if self.featurewise:
            return x * F.dropout(x.new_ones(x.shape[0], 1, x.shape[2]), self.p)
        return dropout(x, self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}, featurewise={self.featurewise}"
