"""Operators with a backward pass of their own that behave as PyTorch's do: under torch.func, twice, and in graphs.

Tensors come first, of them those that may get gradients; a gradient or tensor that there is not is None.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

Outputs = Sequence[torch.Tensor]
Gradients = Sequence[torch.Tensor | None]
# a model may bring a copy of this code along, whose operators are its own
NAMESPACE = re.sub(r"\W", "_", __name__)


def operator(
    forward: Callable[..., Outputs],
    backward: Callable[..., Gradients],
    definition: Callable[..., Outputs],
    *,
    inputs: int,
    outputs: int = 1,
    keeps: Sequence[int] = (),
) -> Callable[..., Outputs]:
    """Makes an operator of its two passes: a function of tensors, and options as a tuple.

    Args:
        forward: (*tensors, *options) to outputs.
        backward: (needs, *tensors, *kept outputs, *gradients of outputs, *options) to the gradients of inputs, where
            `needs` says which are wanted.
        definition: As `forward`, in differentiable operations: what second derivatives are those of.
        inputs: How many tensors may get gradients.
        outputs: How many outputs, the first ones, have gradients.
        keeps: Which outputs the backward pass is given.
    """

    class Forward(torch.autograd.Function):
        @staticmethod
        def forward(options: Any, *tensors: Any) -> Any:
            return tuple(forward(*tensors, *options))

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.options, *tensors = inputs
            ctx.mark_non_differentiable(*output[outputs:])
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(*tensors, *(output[i] for i in keeps))

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            needs = ctx.needs_input_grad[1 : 1 + inputs]
            if all(grad is None for grad in grads[:outputs]):
                return _nothing(len(ctx.needs_input_grad))
            found = Backward.apply((needs, ctx.options), *ctx.saved_tensors, *grads[:outputs])
            return None, *found, *_nothing(len(ctx.needs_input_grad) - 1 - inputs)

        @staticmethod
        def vmap(info: Any, in_dims: Any, *given: Any) -> Any:
            return _one_by_one(Forward.apply, info, in_dims, given)

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(options: Any, *tensors: Any) -> Any:
            needs, options = options
            return tuple(backward(needs, *tensors, *options))

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            (_, ctx.options), *tensors = inputs
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(*tensors[: len(tensors) - outputs - len(keeps)], *tensors[-outputs:])

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            tensors, output_grads = ctx.saved_tensors[:-outputs], ctx.saved_tensors[-outputs:]

            def defined(*given: Any) -> Outputs:
                return definition(*given, *tensors[inputs:], *ctx.options)

            found, of_grads = second_derivatives(defined, tensors[:inputs], output_grads, grads)
            return None, *found, *_nothing(len(tensors) - inputs + len(keeps)), *of_grads

        @staticmethod
        def vmap(info: Any, in_dims: Any, *given: Any) -> Any:
            return _one_by_one(Backward.apply, info, in_dims, given)

    return lambda *tensors, options=(): Forward.apply(options, *tensors)


def graph_operator(
    name: str,
    schema: str,
    forward: Callable[..., Outputs],
    backward: Callable[..., Gradients],
    fake: Callable[..., Outputs],
    *,
    inputs: int,
    outputs: int = 1,
    keeps: Sequence[int] = (),
) -> Callable[..., Outputs]:
    """Makes the same one node of a compiled graph: a compiler that looked in would keep what `backward` recomputes.

    Args:
        name: Of the node.
        schema: Types and names of the options, as PyTorch writes them.
        fake: Empty tensors like those of `forward`.
        forward, backward, inputs, outputs, keeps: As in `operator`.
    """

    def run(given: Any, there: Any, *options: Any) -> list[torch.Tensor]:
        return list(forward(*_filled(given, there), *options))

    def run_backward(tensors: Any, needs: Any, *options: Any) -> list[torch.Tensor]:
        return [grad for grad in backward(needs, *tensors, *options) if grad is not None]

    def keep(ctx: Any, inputs: Any, output: Any) -> None:
        given, ctx.there, *ctx.options = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*_filled(given, ctx.there), *(output[i] for i in keeps))

    def gradients(ctx: Any, grads: Any) -> Any:
        needs = [bool(need) for need in _filled(ctx.needs_input_grad[0], ctx.there)[:inputs]]
        found = iter(backward_node([*ctx.saved_tensors, *grads[:outputs]], needs, *ctx.options))
        all_needs = needs + [False] * (len(ctx.there) - inputs)
        of_given = [next(found) if need else None for need, there in zip(all_needs, ctx.there) if there]
        return of_given, None, *_nothing(len(ctx.options))

    # no optional tensors in the list: PyTorch gives no gradients to the others then, and does not say so
    signature = f"(Tensor[] given, bool[] there, {schema}) -> Tensor[]"
    node: Any = torch.library.custom_op(f"{NAMESPACE}::{name}", run, mutates_args=(), schema=signature)
    signature = f"(Tensor?[] tensors, bool[] needs, {schema}) -> Tensor[]"
    name = f"{NAMESPACE}::{name}_backward"
    backward_node: Any = torch.library.custom_op(name, run_backward, mutates_args=(), schema=signature)
    node.register_fake(lambda given, there, *options: list(fake(*_filled(given, there), *options)))
    backward_node.register_fake(
        lambda tensors, needs, *_: [x.new_empty(x.shape) for x, need in zip(tensors, needs) if need]
    )
    node.register_autograd(gradients, setup_context=keep)

    def apply(*tensors: Any, options: Sequence[Any] = ()) -> Outputs:
        return node([x for x in tensors if x is not None], [x is not None for x in tensors], *options)

    return apply


def _filled(given: Sequence[Any], there: Sequence[bool]) -> list[Any]:
    """What is given, in the places where something is `there`, and None in the others."""
    rest = iter(given)
    return [next(rest) if some else None for some in there]


def second_derivatives(
    function: Callable[..., Any], inputs: Gradients, output_grads: Gradients, grads: Gradients
) -> tuple[list[torch.Tensor | None], list[torch.Tensor | None]]:
    """The vector-Jacobian product of an operator's backward pass.

    Args:
        function: What the operator computes, of differentiable operations: inputs to a tuple of outputs.
        inputs: What it is called with.
        output_grads: For each output the gradient that the backward pass was given.
        grads: For each input the gradient in what the backward pass returned for it.

    Returns:
        Gradients of `inputs`, and of `output_grads`.
    """
    places = [i for i, x in enumerate(inputs) if x is not None]
    outs = [i for i, g in enumerate(output_grads) if g is not None]
    vjp: Any = torch.func.vjp

    def run(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        full = dict(zip(places, given))
        results = function(*(full.get(i) for i in range(len(inputs))))
        return tuple(results[i] for i in outs)

    def backward(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return vjp(run, *given[: len(places)])[1](tuple(given[len(places) :]))

    results, pull = vjp(backward, *(inputs[i] for i in places), *(output_grads[i] for i in outs))
    found = pull(tuple(torch.zeros_like(r) if grads[i] is None else grads[i] for i, r in zip(places, results)))
    of_inputs, of_grads = dict(zip(places, found)), dict(zip(outs, found[len(places) :]))
    return [of_inputs.get(i) for i in range(len(inputs))], [of_grads.get(i) for i in range(len(output_grads))]


def _one_by_one(function: Callable[..., Any], info: Any, in_dims: Any, inputs: Any) -> Any:
    """A rule for `torch.vmap`: calls `function` for each element, and stacks what it returns."""
    results = []
    for i in range(info.batch_size):
        results.append(function(*(x.select(dim, i) if isinstance(dim, int) else x for x, dim in zip(inputs, in_dims))))
    stacked = tuple(None if parts[0] is None else torch.stack(parts) for parts in zip(*results))
    return stacked, tuple(None if x is None else 0 for x in stacked)


def _nothing(count: int) -> tuple[None, ...]:
    return (None,) * count
