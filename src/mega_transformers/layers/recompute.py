"""Recomputing cheap things in the backward pass instead of keeping them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint

MIN_ELEMENTS = 1 << 18


def recomputed(function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    """`function(*tensors)`, keeping only `tensors` for the backward pass.

    Meant for element-wise work that ends in at most one matrix product: recomputation stops before that product,
    since autograd saves a product's operands and not its result. Random numbers are replayed. Small tensors are not
    worth the bookkeeping, and a compiler decides for itself.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or tensors[0].numel() < MIN_ELEMENTS:
        return function(*tensors)
    return checkpoint(function, *tensors, use_reentrant=False)
