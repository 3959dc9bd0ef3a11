"""The EMA of short inputs as one product with a Toeplitz matrix per channel: quadratic in the length, in few steps."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..relative_bias import toeplitz
from .reference import EMACoefficients


def ema_direct(
    x: torch.Tensor,
    coefficients: EMACoefficients,
    *,
    bidirectional: bool = False,
    truncation: int | None = None,
) -> torch.Tensor:
    """See `mega_transformers.ops.ema.ema`; takes no state and no documents. Returns y."""
    length, channels = x.shape[1:]
    lags = length if truncation is None else min(truncation, length)
    powers = torch.exp(coefficients.log_decay.unsqueeze(-1) * torch.arange(lags, device=x.device))
    kernel = torch.einsum("dn,dnl->dl", coefficients.input * coefficients.output, powers)
    # entry (past token, token) of the matrix has the lag of the token behind the past one
    diagonals = F.pad(kernel[:channels], (length - 1, length - lags))
    if bidirectional:
        diagonals = diagonals + F.pad(kernel[channels:].flip(-1), (length - lags, length - 1))
    # small products of strided operands are several times as slow
    return torch.bmm(x.permute(2, 0, 1).contiguous(), toeplitz(diagonals, length, length)).permute(1, 2, 0)
