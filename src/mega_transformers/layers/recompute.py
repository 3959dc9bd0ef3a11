"""Trades a little time for memory: recomputes work in the backward pass, or works piece by piece without one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint

MIN_ELEMENTS = 1 << 18
PIECE = 2048
"""Tokens per piece: intermediate results that stay in memory already mapped, which is faster than fresh pages."""


def takes_pieces(x: torch.Tensor) -> bool:
    """Whether to process x (B, L, d) piece by piece, if tokens (or chunks) do not depend on each other."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type != "cpu":
        return False
    return x.shape[0] * x.shape[1] >= 2 * PIECE


def tokens_per_piece(x: torch.Tensor) -> int:
    """Length of a piece of x (B, L, d)."""
    return max(1, PIECE // x.shape[0])


def recomputed(wanted: bool | None, function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    """`function(*tensors)`, which may keep only `tensors` for the backward pass.

    Random numbers are replayed. A compiler decides for itself.

    Args:
        wanted: Whether to recompute; None decides: on a CPU, for tensors large enough to be worth it.
        function: The function.
        tensors: Its arguments.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function(*tensors)
    if wanted is None:
        wanted = tensors[0].device.type == "cpu" and tensors[0].numel() >= MIN_ELEMENTS
    return checkpoint(function, *tensors, use_reentrant=False) if wanted else function(*tensors)
