"""The EMA as a convolution in the frequency domain, O(L log L) for any length, truncated or not."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from .reference import EMACoefficients


def ema_kernel(coefficients: EMACoefficients, length: int) -> torch.Tensor:
    """Convolution kernel k_l = sum_n output_n * input_n * decay_n^l for l < length: (D', length).

    With l = i * m + j, decay^l = (decay^m)^i * decay^j, so the kernel is one batched product of two small matrices
    instead of a (D', N, length) tensor of exponentials.

    Args:
        coefficients: (D', N) each.
        length: Number of lags.
    """
    m = 64 if torch.compiler.is_compiling() else math.isqrt(length)  # an open length of a graph has no root
    rows = length // m + 2  # one more than needed: an exported graph must not be tied to a single row
    log_decay = coefficients.log_decay.unsqueeze(-1)
    fine = torch.exp(log_decay * torch.arange(m, device=log_decay.device))
    coarse = torch.exp(log_decay * (m * torch.arange(rows, device=log_decay.device)))
    weights = (coefficients.input * coefficients.output).unsqueeze(-1)
    kernel = (weights * coarse).transpose(1, 2) @ fine
    return kernel.flatten(1)[:, :length]


def ema_fft(
    x: torch.Tensor,
    coefficients: EMACoefficients,
    *,
    bidirectional: bool = False,
    truncation: int | None = None,
) -> torch.Tensor:
    """See `mega_transformers.ops.ema.ema`; takes no state and no documents. Returns y."""
    length, channels = x.shape[1:]
    lags = length if truncation is None else min(truncation, length)
    kernel = ema_kernel(coefficients, lags)
    if bidirectional:
        # lag 0 in the middle: negative lags look ahead
        ahead = kernel[channels:].flip(-1)
        kernel = F.pad(kernel[:channels], (lags - 1, 0)) + F.pad(ahead, (0, lags - 1))
        first = lags - 1
    else:
        first = 0
    size = length + kernel.shape[-1] - 1
    spectrum = torch.fft.rfft(x.transpose(1, 2), n=size) * torch.fft.rfft(kernel, n=size)
    y = torch.fft.irfft(spectrum, n=size)[..., first : first + length]
    return y.transpose(1, 2)
