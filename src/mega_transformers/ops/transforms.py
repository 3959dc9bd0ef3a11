"""What operators with a written-out backward pass need to behave as PyTorch's own under torch.func and twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

Tensors = Sequence[torch.Tensor | None]


def second_derivatives(
    function: Callable[..., Any], inputs: Tensors, output_grads: Tensors, grads: Tensors
) -> tuple[list[torch.Tensor | None], list[torch.Tensor | None]]:
    """The vector-Jacobian product of an operator's backward pass.

    Args:
        function: What the operator computes, of differentiable operations: inputs to one output or a tuple of them.
        inputs: What it is called with; None stays None.
        output_grads: For each output the gradient that the backward pass was given, or None.
        grads: For each input the gradient in what the backward pass returned for it, or None.

    Returns:
        Gradients of `inputs`, and of `output_grads`.
    """
    places = [i for i, x in enumerate(inputs) if x is not None]
    outs = [i for i, g in enumerate(output_grads) if g is not None]
    vjp: Any = torch.func.vjp

    def run(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        full: list[torch.Tensor | None] = [None] * len(inputs)
        for place, x in zip(places, given):
            full[place] = x
        result = function(*full)
        result = (result,) if torch.is_tensor(result) else tuple(result)
        return tuple(result[i] for i in outs)

    def backward(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return vjp(run, *given[: len(places)])[1](tuple(given[len(places) :]))

    given = [inputs[i] for i in places] + [output_grads[i] for i in outs]
    results, pull = vjp(backward, *given)
    found = pull(tuple(torch.zeros_like(r) if grads[i] is None else grads[i] for i, r in zip(places, results)))
    of_inputs, of_grads = dict(zip(places, found)), dict(zip(outs, found[len(places) :]))
    return [of_inputs.get(i) for i in range(len(inputs))], [of_grads.get(i) for i in range(len(output_grads))]


def loop_over_vmapped(function: Callable[..., Any], info: Any, in_dims: Any, inputs: Any) -> Any:
    """A rule for `torch.vmap`: calls `function` for each element, and stacks what it returns."""
    results = []
    for i in range(info.batch_size):
        given = [x.select(dim, i) if isinstance(dim, int) else x for x, dim in zip(inputs, in_dims)]
        results.append(function(*given))
    if torch.is_tensor(results[0]):
        return torch.stack(results), 0
    stacked = tuple(None if parts[0] is None else torch.stack(parts) for parts in zip(*results))
    return stacked, tuple(None if x is None else 0 for x in stacked)
