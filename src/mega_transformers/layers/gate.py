"""The gated residual of attention."""

from __future__ import annotations

import torch


def gated_residual(residual: torch.Tensor, candidate: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
    """residual + sigmoid(update) * (candidate - residual), of any equal shapes, in the dtype of the residual."""
    return torch.lerp(residual, candidate.to(residual.dtype), torch.sigmoid(update).to(residual.dtype))
