"""The normalisations of Mega over the last dimension of (B, L, d), all with epsilon 1e-5 (authors' `SequenceNorm`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from ..ops.few_rows import are_few_rows

if TYPE_CHECKING:
    from ..models.mega.configuration_mega import MegaConfig

EPSILON = 1e-5


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """weight * x / sqrt(mean of squares + eps) over the last dimension, computed in float32 at least.

    Args:
        x: (..., d).
        weight: (d,), or (1,) for all; or None.
        eps: Added to the mean of squares.
    """
    size = x.shape[-1]
    if weight is not None and weight.dtype != x.dtype:
        weight = weight.to(x.dtype)
    if are_few_rows(x) and x.dtype in (torch.float32, torch.float64):
        # for a decoding step, this takes half as many calls as PyTorch's operator
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = torch.addcmul(torch.full_like(norm, eps), norm, norm, value=1.0 / size).rsqrt_()
        return x * scale if weight is None else x * (scale * weight)
    return F.rms_norm(x, (size,), None if weight is None else weight.expand(size), eps)


class MegaScaleNorm(nn.Module):
    """g * x / rms(x) with one learned number g, `scalar` (1,).

    Args:
        eps: Added to the mean of squares.
        affine: Whether there is a g.
    """

    def __init__(self, eps: float = EPSILON, affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.scalar = nn.Parameter(torch.ones(1)) if affine else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., d) -> (..., d)."""
        return rms_norm(x, self.scalar, self.eps)


class MegaRMSNorm(nn.Module):
    """w * x / rms(x) with a learned vector w, `weight` (d,).

    Args:
        size: Width d.
        eps: Added to the mean of squares.
        affine: Whether there is a w.
        normalize: Whether to divide by rms(x). transformers 4.40.2 did not.
    """

    def __init__(self, size: int, eps: float = EPSILON, affine: bool = True, normalize: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.normalize = normalize
        self.weight = nn.Parameter(torch.ones(size)) if affine else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., d) -> (..., d)."""
        if self.normalize:
            return rms_norm(x, self.weight, self.eps)
        return x if self.weight is None else x * self.weight


class MegaSequenceNorm(nn.Module):
    """The norm that `config.normalization_type` names.

    The batch norms take their statistics over all B * L positions, including padding, as the authors' do.

    Args:
        config: The configuration.
        affine: Overrides `config.norm_affine`.
    """

    def __init__(self, config: MegaConfig, affine: bool | None = None) -> None:
        super().__init__()
        size, affine = config.hidden_size, config.norm_affine if affine is None else affine
        # adapters may replace a batch norm by another module
        self.over_batch = config.normalization_type in ("batchnorm", "syncbatchnorm")
        self.norm: nn.Module
        if config.normalization_type == "layernorm":
            self.norm = nn.LayerNorm(size, eps=EPSILON, elementwise_affine=affine)
        elif config.normalization_type == "scalenorm":
            self.norm = MegaScaleNorm(affine=affine)
        elif config.normalization_type == "rmsnorm":
            self.norm = MegaRMSNorm(size, affine=affine, normalize=not config.legacy_unnormalized_rmsnorm)
        elif config.normalization_type == "batchnorm":
            self.norm = nn.BatchNorm1d(size, eps=EPSILON, affine=affine)
        else:
            self.norm = nn.SyncBatchNorm(size, eps=EPSILON, affine=affine)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, L, d) -> (B, L, d)."""
        if self.over_batch:
            return self.norm(x.flatten(0, 1)).view_as(x)
        return self.norm(x)
