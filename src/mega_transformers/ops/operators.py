"""Operators with their own backward pass that work like PyTorch's: with torch.func, second derivatives and graphs.

Tensors come first, beginning with those that may get gradients; a missing gradient or tensor is None.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

Outputs = Sequence[torch.Tensor]
Gradients = Sequence[torch.Tensor | None]
# a model may bring a copy of this code, which registers operators of its own
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
    """Makes an operator from its two passes: a function of tensors and a tuple of options.

    Args:
        forward: (*tensors, *options) to outputs.
        backward: (needs, *tensors, *kept outputs, *gradients of outputs, *options) to the gradients of inputs, where
            `needs` says which are needed.
        definition: `forward` in differentiable operations, for second and forward-mode derivatives.
        inputs: The number of tensors that may get gradients.
        outputs: The number of outputs, from the first, that have gradients.
        keeps: The outputs that the backward pass gets.
    """

    class Forward(torch.autograd.Function):
        @staticmethod
        def forward(options: Any, *tensors: Any) -> Any:
            return tuple(forward(*tensors, *options))

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.options, *tensors = inputs
            ctx.extra = len(output) - outputs
            ctx.mark_non_differentiable(*output[outputs:])
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(*tensors, *(output[i] for i in keeps))
            ctx.save_for_forward(*tensors)

        @staticmethod
        def jvp(ctx: Any, _: Any, *tangents: Any) -> Any:
            def defined(*given: Any) -> Outputs:
                return tuple(definition(*given, *ctx.options)[:outputs])

            return *directional(defined, ctx.saved_tensors, tangents), *_nothing(ctx.extra)

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
            kept = *tensors[: len(tensors) - outputs - len(keeps)], *tensors[-outputs:]
            ctx.save_for_backward(*kept)
            ctx.save_for_forward(*kept)

        @staticmethod
        def definition(ctx: Any) -> tuple[Any, Gradients]:
            """The pass in differentiable operations, with its arguments: the inputs and the outputs' gradients."""
            tensors, others = ctx.saved_tensors[:inputs], ctx.saved_tensors[inputs:-outputs]

            def defined(*given: Any) -> Gradients:
                def forward(*given: Any) -> Outputs:
                    return tuple(definition(*given, *others, *ctx.options)[:outputs])

                return pulled(forward, given[:inputs], given[inputs:])

            return defined, (*tensors, *ctx.saved_tensors[-outputs:])

        @staticmethod
        def jvp(ctx: Any, _: Any, *tangents: Any) -> Any:
            defined, given = Backward.definition(ctx)
            return directional(defined, given, (*tangents[:inputs], *tangents[-outputs:]))

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            defined, given = Backward.definition(ctx)
            found = pulled(defined, given, grads)
            return None, *found[:inputs], *_nothing(len(ctx.saved_tensors) - len(given) + len(keeps)), *found[inputs:]

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
    """Makes the operator a single node of a compiled graph; otherwise the compiler would store what `backward`
    recomputes.

    Args:
        name: The name of the node.
        schema: Types and names of the options, as PyTorch writes them.
        fake: Makes empty tensors like those of `forward`.
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

    # no optional tensors in the list: with them, PyTorch silently gives no gradients to the others
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
    """The given values in the places that are `there`, and None in the others."""
    rest = iter(given)
    return [next(rest) if some else None for some in there]


def pulled(function: Callable[..., Gradients], inputs: Gradients, grads: Gradients) -> Gradients:
    """The gradients of inputs, from those of a function's outputs: a vector-Jacobian product, differentiable too."""
    places = [i for i, x in enumerate(inputs) if x is not None]
    outs = [i for i, grad in enumerate(grads) if grad is not None]
    if not outs:
        return [None] * len(inputs)

    def run(*given: torch.Tensor) -> tuple[Any, ...]:
        full = dict(zip(places, given))
        results = function(*(full.get(i) for i in range(len(inputs))))
        return tuple(results[i] for i in outs)

    vjp: Any = torch.func.vjp
    _, pull = vjp(run, *(inputs[i] for i in places))
    found = dict(zip(places, pull(tuple(grads[i] for i in outs))))
    return [found.get(i) for i in range(len(inputs))]


def directional(function: Callable[..., Gradients], inputs: Gradients, tangents: Gradients) -> tuple[Any, ...]:
    """The tangents of a function's outputs, from those of its inputs: a Jacobian-vector product."""
    places = [i for i, tangent in enumerate(tangents[: len(inputs)]) if tangent is not None]
    exists: list[bool] = []

    def run(*given: torch.Tensor) -> tuple[Any, ...]:
        full = {**dict(enumerate(inputs)), **dict(zip(places, given))}
        results = function(*full.values())
        exists[:] = [result is not None for result in results]
        return tuple(result for result in results if result is not None)

    # forward mode through reverse mode twice, since levels of forward mode do not nest
    vjp: Any = torch.func.vjp
    outputs, pull = vjp(run, *(inputs[i] for i in places))
    _, pull_back = vjp(pull, tuple(torch.zeros_like(output) for output in outputs))
    found = iter(pull_back(tuple(tangents[i] for i in places))[0])
    return tuple(next(found) if there else None for there in exists)


def _one_by_one(function: Callable[..., Any], info: Any, in_dims: Any, inputs: Any) -> Any:
    """A rule for `torch.vmap`: calls `function` for each element, and stacks what it returns."""
    results = []
    for i in range(info.batch_size):
        results.append(function(*(x.select(dim, i) if isinstance(dim, int) else x for x, dim in zip(inputs, in_dims))))
    stacked = tuple(None if parts[0] is None else torch.stack(parts) for parts in zip(*results))
    return stacked, tuple(None if x is None else 0 for x in stacked)


def _nothing(count: int) -> tuple[None, ...]:
    return (None,) * count
