"""Operators that compilers call and do not look into, so that their memory stays linear in the length.

A graph would otherwise keep what the written-out backward passes compute again.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from .attention.tiled import Call
from .attention.tiled import backward_pass as attention_backward
from .attention.tiled import forward_pass as attention_forward
from .cross_entropy import backward_pass as cross_entropy_backward
from .cross_entropy import forward_pass as cross_entropy_forward
from .layout import AttentionLayout

Optional = torch.Tensor | None
# a model may bring a copy of this code along, whose operators are its own
NAMESPACE = re.sub(r"\W", "_", __name__)


def _call(q: torch.Tensor, k: torch.Tensor, tensors: list[Optional], options: tuple[Any, ...]) -> Call:
    """What `attention_operator` is given as start, stop, real, offsets and seed, and after these."""
    start, stop, real, offsets, seed = tensors
    offset, chunk, causal, zero, activation, dropout = options
    offset = offset if offsets is None else offsets
    layout = AttentionLayout(q.shape[1], k.shape[1], causal, chunk, offset, start=start, stop=stop, real=real)
    return Call(layout, zero, activation, dropout, 0 if seed is None else int(seed))


@torch.library.custom_op(f"{NAMESPACE}::attention", mutates_args=())
def attention_operator(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    values: Optional,
    start: Optional,
    stop: Optional,
    real: Optional,
    offsets: Optional,
    seed: Optional,
    offset: int,
    chunk: int | None,
    causal: bool,
    zero: int,
    activation: str,
    dropout: float,
) -> torch.Tensor:
    """`forward_pass` of plain arguments, those of an `AttentionLayout` and of a `Call`."""
    options = (offset, chunk, causal, zero, activation, dropout)
    return attention_forward(q, k, v, values, _call(q, k, [start, stop, real, offsets, seed], options))


@attention_operator.register_fake
def _(q, k, v, *rest):
    return v.new_empty(q.shape[0], q.shape[1], v.shape[2])


@torch.library.custom_op(f"{NAMESPACE}::attention_backward", mutates_args=())
def attention_backward_operator(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    values: Optional,
    start: Optional,
    stop: Optional,
    real: Optional,
    offsets: Optional,
    seed: Optional,
    output: torch.Tensor,
    doutput: torch.Tensor,
    offset: int,
    chunk: int | None,
    causal: bool,
    zero: int,
    activation: str,
    dropout: float,
    needs: list[bool],
) -> list[torch.Tensor]:
    """Its backward pass; the gradients that are needed."""
    call = _call(q, k, [start, stop, real, offsets, seed], (offset, chunk, causal, zero, activation, dropout))
    return [g for g in attention_backward(q, k, v, values, output, doutput, call, needs) if g is not None]


@attention_backward_operator.register_fake
def _(q, k, v, values, start, stop, real, offsets, seed, output, doutput, *rest):
    return [x.new_empty(x.shape) for x, needed in zip((q, k, v, values), rest[-1]) if needed and x is not None]


def _keep_for_attention(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
    ctx.options = inputs[9:]
    ctx.save_for_backward(*inputs[:9], output)


def _attention_gradients(ctx: Any, doutput: torch.Tensor) -> Any:
    needs = list(ctx.needs_input_grad[:4])
    found = iter(attention_backward_operator(*ctx.saved_tensors, doutput, *ctx.options, needs))
    return *(next(found) if needed else None for needed in needs), *([None] * 11)


attention_operator.register_autograd(_attention_gradients, setup_context=_keep_for_attention)


@torch.library.custom_op(f"{NAMESPACE}::linear_cross_entropy", mutates_args=())
def linear_cross_entropy_operator(
    hidden: torch.Tensor, weight: torch.Tensor, bias: Optional, labels: torch.Tensor, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The forward pass of `ops.cross_entropy`."""
    return cross_entropy_forward(hidden, weight, bias, labels, ignore_index)


@linear_cross_entropy_operator.register_fake
def _(hidden, weight, bias, labels, ignore_index):
    wide = torch.promote_types(hidden.dtype, torch.float32)
    total, normalizer = (hidden.new_empty(shape, dtype=wide) for shape in ((), labels.shape))
    return total, hidden.new_empty(hidden.shape[0], weight.shape[0]), normalizer


@torch.library.custom_op(f"{NAMESPACE}::linear_cross_entropy_backward", mutates_args=())
def linear_cross_entropy_backward_operator(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional,
    labels: torch.Tensor,
    logits: torch.Tensor,
    normalizer: torch.Tensor,
    dtotal: Optional,
    dlogits: Optional,
    ignore_index: int,
    needs: list[bool],
) -> list[torch.Tensor]:
    """Its backward pass; the gradients that are needed."""
    found = cross_entropy_backward(
        hidden, weight, bias, labels, logits, normalizer, dtotal, dlogits, ignore_index, needs
    )
    return [g for g in found if g is not None]


@linear_cross_entropy_backward_operator.register_fake
def _(hidden, weight, bias, labels, *rest):
    return [x.new_empty(x.shape) for x, needed in zip((hidden, weight, bias), rest[-1]) if needed and x is not None]


def _keep_for_cross_entropy(ctx: Any, inputs: Any, output: Any) -> None:
    *tensors, ctx.ignore_index = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output[1:])


def _cross_entropy_gradients(ctx: Any, dtotal: Optional, dlogits: Optional, _: Optional) -> Any:
    needs = list(ctx.needs_input_grad[:3])
    found = iter(linear_cross_entropy_backward_operator(*ctx.saved_tensors, dtotal, dlogits, ctx.ignore_index, needs))
    return *(next(found) if needed else None for needed in needs), None, None


linear_cross_entropy_operator.register_autograd(_cross_entropy_gradients, setup_context=_keep_for_cross_entropy)
