"""The activations of Mega's attention (paper section 3.3; authors' `mega/modules`)."""

from __future__ import annotations

import math

import torch

LAPLACE_MU = math.sqrt(0.5)
LAPLACE_SIGMA = math.sqrt(0.25 / math.pi)


def laplace(x: torch.Tensor) -> torch.Tensor:
    """0.5 * (1 + erf((x - mu) / (sigma * sqrt(2)))) with mu = sqrt(1/2), sigma = sqrt(1/(4 pi)); any shape."""
    return 0.5 * (1.0 + torch.erf((x - LAPLACE_MU) * (1.0 / (LAPLACE_SIGMA * math.sqrt(2.0)))))


def laplace_derivative(x: torch.Tensor) -> torch.Tensor:
    """Derivative of `laplace`: the normal density of mean mu and deviation sigma."""
    z = (x - LAPLACE_MU) / LAPLACE_SIGMA
    return torch.exp(-0.5 * z * z) * (1.0 / (LAPLACE_SIGMA * math.sqrt(2.0 * math.pi)))


def relu2(x: torch.Tensor) -> torch.Tensor:
    """max(x, 0) squared; any shape."""
    return torch.relu(x).square()


def relu2_derivative(x: torch.Tensor) -> torch.Tensor:
    """Derivative of `relu2`."""
    return torch.relu(x).mul(2.0)


ELEMENTWISE = {"laplace": (laplace, laplace_derivative), "relu2": (relu2, relu2_derivative)}
"""Element-wise attention activations: name -> (function, derivative)."""
