"""The activations of Mega's attention (paper section 3.3; authors' `mega/modules`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

LAPLACE_MU = math.sqrt(0.5)
LAPLACE_SIGMA = math.sqrt(0.25 / math.pi)


def laplace(x: torch.Tensor) -> torch.Tensor:
    """0.5 * (1 + erf((x - mu) / (sigma * sqrt(2)))) with mu = sqrt(1/2), sigma = sqrt(1/(4 pi)); any shape."""
    return 0.5 * (1.0 + torch.erf((x - LAPLACE_MU) * (1.0 / (LAPLACE_SIGMA * math.sqrt(2.0)))))


def relu2(x: torch.Tensor) -> torch.Tensor:
    """max(x, 0) squared; any shape."""
    return torch.relu(x).square()


def _laplace_core_(t: torch.Tensor) -> torch.Tensor:
    return t.erf_().add_(1.0)


def _laplace_core_derivative(t: torch.Tensor) -> torch.Tensor:
    return t.square().neg_().exp_().mul_(2.0 / math.sqrt(math.pi))


def _relu2_core_(t: torch.Tensor) -> torch.Tensor:
    return t.relu_().square_()


def _relu2_core_derivative(t: torch.Tensor) -> torch.Tensor:
    return t.relu().mul_(2.0)


class ElementwiseActivation(NamedTuple):
    """An activation f, and its parts: f(x) = factor * core(t) with t = slope * (x - shift).

    Slope and shift can be folded into what computes x, and the factor into what uses f(x), which leaves only the core
    for the n x n numbers.

    Attributes:
        function: f.
        slope, shift, factor: See above.
        core_: The core, in place.
        core_derivative: Its derivative at t.
    """

    function: Callable[[torch.Tensor], torch.Tensor]
    slope: float
    shift: float
    factor: float
    core_: Callable[[torch.Tensor], torch.Tensor]
    core_derivative: Callable[[torch.Tensor], torch.Tensor]


ELEMENTWISE = {
    "laplace": ElementwiseActivation(
        laplace,
        1.0 / (LAPLACE_SIGMA * math.sqrt(2.0)),
        LAPLACE_MU,
        0.5,
        _laplace_core_,
        _laplace_core_derivative,
    ),
    "relu2": ElementwiseActivation(relu2, 1.0, 0.0, 1.0, _relu2_core_, _relu2_core_derivative),
}
"""The element-wise activations of attention by name."""
