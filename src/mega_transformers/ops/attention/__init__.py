"""Mega's single-head attention: one definition, several exact forms, one function that chooses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from ..activations import ELEMENTWISE
from ..autocast import autocast_dtype, no_autocast
from ..dispatch import attention_form, runs_triton, wants_triton
from ..layout import AttentionLayout, first_real_column, first_tokens, is_open
from ..relative_bias import BiasTable, RelativeBias
from .flex import attention_flex
from .fused import attention_fused, is_fusable
from .reference import attention_reference
from .tiled import attention_tiled

__all__ = [
    "attention",
    "attention_flex",
    "attention_fused",
    "attention_reference",
    "attention_tiled",
]

FORMS = {"tiled": attention_tiled, "flex": attention_flex}
BACKENDS = ("reference", "tiled", "triton", "fused", "flex")
TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: RelativeBias | BiasTable | None,
    layout: AttentionLayout,
    *,
    activation: str = "softmax",
    dropout: float = 0.0,
    need_weights: bool = False,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """weights @ v with weights = f(scale * q k^T + bias) at the keys a query sees, 0 elsewhere (paper section 3.2).

    Self-attention, attention over cached columns and cross-attention differ in their layout only.

    Args:
        q: (B, L, z) queries, unscaled: softmax scales scores by z^-0.5, `"laplace"` and `"relu2"` by
            1 / (number of keys the query sees).
        k, v: (B, S, z) keys and (B, S, h) values.
        bias: Relative position bias, or its values at all distances of the layout; or None.
        layout: Who sees whom. A query that sees nothing outputs 0.
        activation: `"softmax"`, `"laplace"` or `"relu2"`.
        dropout: Probability of dropping a weight.
        need_weights: Whether to return the weights, which only `"reference"` does.
        backend: `"reference"`, `"tiled"`, `"triton"` (CUDA; no float64), `"fused"` or `"flex"` (the last two for
            softmax only); None chooses.

    Returns:
        Output (B, L, h), and the weights before dropout or None: (B, K, n, n) for K chunks of n tokens that see
        themselves, else (B, 1, L, S).

    Raises:
        ValueError: for an unknown activation or back end, or one that cannot do what is asked.
    """
    _check(activation, need_weights, backend)
    device = v.device.type
    dtype = autocast_dtype(device)
    if dtype is not None:
        v = v.to(dtype)
    if backend == "triton":
        _check_triton(v)
    if q.dtype != v.dtype:
        q, k = q.to(v.dtype), k.to(v.dtype)
    options: Any = {"activation": activation, "dropout": dropout, "need_weights": need_weights, "backend": backend}
    with no_autocast(device):
        chunked = layout.chunk is not None and layout.keys == layout.queries and layout.reset is None
        if chunked and (need_weights or is_open(layout.queries)):
            return _in_equal_chunks(q, k, v, bias, layout, **options)
        if need_weights:
            return _in_form(q, k, v, bias, layout, **options)
        outputs = []
        for part in layout.parts():
            given = part.queries_of(q), part.keys_of(k), part.keys_of(v)
            output, _ = _in_form(*given, bias, part.layout, **options)
            outputs.append(output if part.chunks == 1 else output.reshape(q.shape[0], -1, output.shape[-1]))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1), None


def _in_form(q, k, v, bias, layout, *, need_weights, backend, chunks=1, **options):
    """Output, and weights if needed, of a layout that is not cut any further; `chunks` are those of a row."""
    form = "reference" if need_weights else backend
    if form is None:
        fusable, triton = is_fusable(q, bias, layout), q.dtype in TRITON_DTYPES and wants_triton(v.device.type)
        form = attention_form(v.device.type, layout.keys, layout.queries, options["activation"], fusable, triton)
    if form == "fused":
        return attention_fused(q, k, v, bias, layout, dropout=options["dropout"]), None
    table = bias_table(bias, layout)
    if form == "reference":
        return attention_reference(q, k, v, table, layout, need_weights=need_weights, chunks=chunks, **options)
    if form == "triton":
        from .triton_attention import attention_triton  # not everyone has Triton

        return attention_triton(q, k, v, table, layout, **options), None
    return FORMS[form](q, k, v, table, layout, **options), None


def bias_table(bias: RelativeBias | BiasTable | None, layout: AttentionLayout) -> BiasTable | None:
    """The values of a bias at all distances of a layout."""
    if bias is None or isinstance(bias, BiasTable):
        return bias
    low, high = layout.distances
    if not isinstance(layout.offset, int):  # bounds, which may be wider than what there is
        low, high = max(low, -bias.reach), min(high, bias.reach)
    return bias.table(low, high)


def _check(activation: str, need_weights: bool, backend: str | None) -> None:
    if activation != "softmax" and activation not in ELEMENTWISE:
        raise ValueError(
            f"activation={activation!r} is unknown; the known values are softmax, {', '.join(ELEMENTWISE)}"
        )
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is unknown; the known values are {', '.join(BACKENDS)}")
    if backend in ("fused", "flex") and activation != "softmax":
        raise ValueError(f"backend={backend!r} computes softmax only; use 'tiled' for activation={activation!r}")
    if need_weights and backend not in (None, "reference"):
        raise ValueError(f"backend={backend!r} returns no weights; use backend='reference'")


def _check_triton(v: torch.Tensor) -> None:
    if not runs_triton(v.device.type):
        raise ValueError(
            f"backend='triton' needs Triton (pip install 'mega-transformers[gpu]') and a CUDA device, not {v.device}; "
            "TRITON_INTERPRET=1 runs its kernels on a CPU, slowly"
        )
    if v.dtype not in TRITON_DTYPES:
        raise ValueError(
            f"backend='triton' computes float16, bfloat16 and float32, not {v.dtype}; use backend='tiled'"
        )


def _in_equal_chunks(q, k, v, bias, layout, **options):
    """Output and weights of chunks that are all filled up, so that no operation depends on the length."""
    length, size = layout.queries, layout.chunk
    # where chunks count from the first real token, padding on the left goes behind; elsewhere it is a hole like others
    first = None if layout.start is None else first_real_column(layout.real)
    column = torch.arange(length, device=q.device)
    used = count = (length + size - 1) // size
    if is_open(length):  # a graph must be tied neither to a single chunk nor to one that is full
        count = length // size + 2
    padding = count * size - length

    def moved(x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        order = column + by.unsqueeze(1)
        order = torch.where(order < length, order, order - length)
        return x.gather(1, order.unsqueeze(-1).expand_as(x))

    def in_chunks(x: torch.Tensor) -> torch.Tensor:
        x = x if first is None else moved(x, first)
        return F.pad(x, (0, 0, 0, padding)).reshape(-1, size, x.shape[-1])

    real = layout.real
    if real is None and (is_open(length) or padding):
        real = torch.ones(q.shape[:2], dtype=torch.bool, device=q.device)
    if real is not None:
        real = in_chunks(real.unsqueeze(-1)).squeeze(-1)
    chunks = replace(layout, queries=size, keys=size, chunk=None, start=None, stop=None, real=real, tokens=None)
    q, k, v = (in_chunks(x) for x in (q, k, v))
    output, weights = _in_form(q, k, v, bias, chunks, chunks=count, **options)
    output = first_tokens(output.reshape(-1, count * size, output.shape[-1]), length)
    if first is not None:
        padded = (column < first.unsqueeze(1)).unsqueeze(-1)
        output = moved(output, length - first).masked_fill(padded, 0.0)
    # the tensor itself where possible, so that it gets a gradient
    return output, weights if weights is None or not is_open(length) else weights[:, :used]
