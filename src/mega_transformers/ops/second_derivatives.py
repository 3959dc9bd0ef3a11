"""Gradients that can be differentiated again, of operators whose backward pass is written out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


def gradients_with_graph(
    function: Callable[..., Sequence[torch.Tensor]],
    inputs: Sequence[torch.Tensor | None],
    output_grads: Sequence[torch.Tensor | None],
) -> list[torch.Tensor | None]:
    """The gradients of `function` in `inputs`, by autograd and with a graph of their own.

    For a `backward` that runs under `create_graph=True`. A written-out one would take what it saved for constants.

    Args:
        function: What the operator computes, of differentiable operations.
        inputs: What it is called with; None, and what needs no gradient, gets None.
        output_grads: For each output the gradient that came in, or None.
    """
    # aliases, since inputs may depend on each other
    inputs = [None if x is None else x.view_as(x) for x in inputs]
    given = [(y, grad) for y, grad in zip(function(*inputs), output_grads) if grad is not None]
    wanted = [x for x in inputs if x is not None and x.requires_grad]
    outputs, grads = zip(*given)
    found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=True, allow_unused=True))
    return [next(found) if x is not None and x.requires_grad else None for x in inputs]
