"""One step of the EMA's recurrence, O(d N) a token."""

from __future__ import annotations

import torch

from .reference import EMACoefficients, lag_input


def ema_step(
    x: torch.Tensor,
    coefficients: EMACoefficients,
    *,
    truncation: int | None = None,
    state: torch.Tensor | None = None,
    history: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token x (B, 1, d) -> y (B, 1, d) and the new state (B, d, N). See `ema` for the other arguments."""
    batch, _, channels = x.shape
    states = coefficients.input * x.reshape(batch, channels, 1)
    if state is not None:
        states = torch.addcmul(states, coefficients.decay, state)
    if truncation is not None and history is not None:
        states = torch.addcmul(states, lag_input(coefficients, truncation), history[:, 0].unsqueeze(-1))
    return (coefficients.output * states).sum(-1).view(batch, 1, channels), states
