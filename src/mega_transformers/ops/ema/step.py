"""One step of the EMA's recurrence, O(d N) a token."""

from __future__ import annotations

import torch

from .reference import EMACoefficients


def ema_step(
    x: torch.Tensor, coefficients: EMACoefficients, state: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """x (B, 1, d) and state (B, d, N), None for zeros -> y (B, 1, d) and the new state. See `ema`."""
    states = coefficients.input * x.squeeze(1).unsqueeze(-1)
    if state is not None:
        states = torch.addcmul(states, coefficients.log_decay.exp(), state)
    return (coefficients.output * states).sum(-1).unsqueeze(1), states
