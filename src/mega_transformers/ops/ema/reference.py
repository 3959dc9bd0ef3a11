"""The multi-dimensional damped EMA by its definition, step by step (paper section 3.1, authors' `MultiHeadEMA`)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch


class EMACoefficients(NamedTuple):
    """What the recurrence s_t = decay * s_{t-1} + input * x_t, y_t = <output, s_t> needs.

    Attributes:
        input: (D', N), p * ema_expansion_matrix, p = sigmoid(damping_factor).
        log_decay: (D', N), log(1 - p * sigmoid(decay_factor)).
        output: (D', N), kernel_projection_matrix / sqrt(N).
        decay: (D', N), 1 - p * sigmoid(decay_factor).

    D' is d, or 2d if bidirectional: the second half runs backwards in time. float32 or wider.
    """

    input: torch.Tensor
    log_decay: torch.Tensor
    output: torch.Tensor
    decay: torch.Tensor


def ema_coefficients(
    damping_factor: torch.Tensor,
    decay_factor: torch.Tensor,
    ema_expansion_matrix: torch.Tensor,
    kernel_projection_matrix: torch.Tensor,
) -> EMACoefficients:
    """Coefficients of the recurrence from Mega's parameters, computed in float32 at least.

    Args:
        damping_factor: (D', N, 1), p before the sigmoid.
        decay_factor: (D', N, 1), a before the sigmoid.
        ema_expansion_matrix: (D', N, 1).
        kernel_projection_matrix: (D', N).
    """
    dtype = torch.promote_types(damping_factor.dtype, torch.float32)
    damping = damping_factor.to(dtype).squeeze(-1).sigmoid()
    log_decay = torch.log1p(-damping * decay_factor.to(dtype).squeeze(-1).sigmoid())
    return EMACoefficients(
        input=damping * ema_expansion_matrix.to(dtype).squeeze(-1),
        log_decay=log_decay,
        output=kernel_projection_matrix.to(dtype) * math.sqrt(1.0 / kernel_projection_matrix.shape[-1]),
        decay=log_decay.exp(),
    )


def lag_input(coefficients: EMACoefficients, truncation: int) -> torch.Tensor:
    """What the input of `truncation` tokens ago adds to the states, so that they forget it: (D', N)."""
    return -coefficients.input * torch.exp(coefficients.log_decay * truncation)


def _one_direction(
    x: torch.Tensor,
    coefficients: EMACoefficients,
    truncation: int | None,
    reset: torch.Tensor | None,
    state: torch.Tensor | None,
    past: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x (B, L, d) -> y (B, L, d), state (B, d, N) after the last step."""
    batch, length, channels = x.shape
    decay = coefficients.decay
    states = x.new_zeros(batch, channels, decay.shape[-1]) if state is None else state
    history = [] if past is None else [coefficients.input * x_t.unsqueeze(-1) for x_t in past.unbind(1)]
    outputs = []
    for t in range(length):
        if reset is not None:
            keep = (~reset[:, t]).to(x.dtype).view(-1, 1, 1)
            states = states * keep
            history = [past * keep for past in history]
        drive = coefficients.input * x[:, t].unsqueeze(-1)
        states = decay * states + drive
        if truncation is not None:
            history.append(drive)
            if len(history) > truncation:
                states = states - decay**truncation * history.pop(0)
        outputs.append((coefficients.output * states).sum(-1))
    y = torch.stack(outputs, dim=1) if outputs else torch.zeros_like(x)
    return y, states


def ema_reference(
    x: torch.Tensor,
    coefficients: EMACoefficients,
    *,
    bidirectional: bool = False,
    truncation: int | None = None,
    reset: torch.Tensor | None = None,
    state: torch.Tensor | None = None,
    history: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """See `mega_transformers.ops.ema.ema`. Returns y and, unless bidirectional, the state after the last token."""
    if not bidirectional:
        return _one_direction(x, coefficients, truncation, reset, state, history)
    channels = x.shape[-1]
    forward = EMACoefficients(*(c[:channels] for c in coefficients))
    backward = EMACoefficients(*(c[channels:] for c in coefficients))
    # reversed in time, a document starts where it ended
    ends = None if reset is None else torch.cat([torch.ones_like(reset[:, :1]), reset.flip(1)[:, :-1]], dim=1)
    y_forward, _ = _one_direction(x, forward, truncation, reset, None)
    y_backward, _ = _one_direction(x.flip(1), backward, truncation, ends, None)
    return y_forward + y_backward.flip(1), None
