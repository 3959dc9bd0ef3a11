"""Attention in tiles as an operator that compilers call and do not look into: its memory stays linear in the length."""

from __future__ import annotations

from typing import Any

import torch

from ..layout import AttentionLayout
from .tiled import Call, backward_pass, forward_pass


def _call(
    q: torch.Tensor,
    k: torch.Tensor,
    tensors: list[torch.Tensor | None],
    offset: int,
    chunk: int | None,
    causal: bool,
    zero: int,
    activation: str,
    dropout: float,
    seed: torch.Tensor | None,
) -> Call:
    start, stop, real, offsets = tensors
    layout = AttentionLayout(
        q.shape[1], k.shape[1], causal, chunk, offset if offsets is None else offsets, start=start, stop=stop, real=real
    )
    return Call(layout, zero, activation, dropout, 0 if seed is None else int(seed))


@torch.library.custom_op("mega_transformers::attention", mutates_args=())
def tiled_operator(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    values: torch.Tensor | None,
    tensors: list[torch.Tensor | None],
    offset: int,
    chunk: int | None,
    causal: bool,
    zero: int,
    activation: str,
    dropout: float,
    seed: torch.Tensor | None,
) -> torch.Tensor:
    """`forward_pass` of plain arguments; `tensors` are start, stop, real and offset of an `AttentionLayout`."""
    call = _call(q, k, tensors, offset, chunk, causal, zero, activation, dropout, seed)
    return forward_pass(q, k, v, values, call)


@tiled_operator.register_fake
def _(q, k, v, values, tensors, offset, chunk, causal, zero, activation, dropout, seed):
    return v.new_empty(q.shape[0], q.shape[1], v.shape[2])


@torch.library.custom_op("mega_transformers::attention_backward", mutates_args=())
def _backward_operator(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    values: torch.Tensor | None,
    output: torch.Tensor,
    doutput: torch.Tensor,
    tensors: list[torch.Tensor | None],
    offset: int,
    chunk: int | None,
    causal: bool,
    zero: int,
    activation: str,
    dropout: float,
    seed: torch.Tensor | None,
) -> list[torch.Tensor]:
    call = _call(q, k, tensors, offset, chunk, causal, zero, activation, dropout, seed)
    return [g for g in backward_pass(q, k, v, values, output, doutput, call) if g is not None]


@_backward_operator.register_fake
def _(q, k, v, values, output, doutput, tensors, offset, chunk, causal, zero, activation, dropout, seed):
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v, values) if x is not None]


def _setup_context(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
    *saved, ctx.tensors, ctx.offset, ctx.chunk, ctx.causal, ctx.zero, ctx.activation, ctx.dropout, ctx.seed = inputs
    ctx.save_for_backward(*saved, output)


def _backward(ctx: Any, doutput: torch.Tensor) -> Any:
    rest = (ctx.tensors, ctx.offset, ctx.chunk, ctx.causal, ctx.zero, ctx.activation, ctx.dropout, ctx.seed)
    found = _backward_operator(*ctx.saved_tensors, doutput, *rest)
    return *found, *([None] * (4 - len(found))), [None] * 4, *([None] * 7)


tiled_operator.register_autograd(_backward, setup_context=_setup_context)
