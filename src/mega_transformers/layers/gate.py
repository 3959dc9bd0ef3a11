"""The gated residual of attention."""

from __future__ import annotations

import torch


def gated_residual(residual: torch.Tensor, candidate: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
    """residual + sigmoid(update) * (candidate - residual), of any equal shapes, in the dtype of the residual."""
    update = torch.sigmoid(update)
    if not residual.dtype == candidate.dtype == update.dtype:
        candidate, update = candidate.to(residual.dtype), update.to(residual.dtype)
    return torch.lerp(residual, candidate, update)
