"""Mega's single-head attention: one definition, several exact forms, one function that chooses."""

from __future__ import annotations

import torch

from ..autocast import no_autocast
from ..relative_bias import RelativeBias
from ..visibility import Visibility
from .blockwise import attention_blockwise
from .cross import attention_cross
from .fused import attention_flex, attention_sdpa
from .rectangular import attention_rectangular
from .reference import attention_reference
from .request import check_request, in_one_dtype

__all__ = [
    "attention",
    "attention_blockwise",
    "attention_cross",
    "attention_flex",
    "attention_rectangular",
    "attention_reference",
    "attention_sdpa",
]

BACKENDS = ("reference", "blockwise", "sdpa", "flex")
SMALL = 64
"""Tokens per group up to which the definition itself is the fastest form on a CPU, forward and backward."""


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: RelativeBias | None,
    visibility: Visibility,
    *,
    activation: str = "softmax",
    dropout: float = 0.0,
    need_weights: bool = False,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """weights @ v with weights = f(scale * q k^T + bias) at the keys a query sees, 0 elsewhere (paper section 3.2).

    Args:
        q, k: (B, L, z) queries and keys, unscaled: softmax scales scores by z^-0.5, `"laplace"` and `"relu2"` by
            1 / (number of keys the query sees).
        v: (B, L, h).
        bias: Relative position bias, or None.
        visibility: The rule of who sees whom. A query that sees nothing outputs 0.
        activation: `"softmax"`, `"laplace"` or `"relu2"`.
        dropout: Probability of dropping a weight.
        need_weights: Whether to return the weights, which only `"reference"` does.
        backend: `"reference"`, `"blockwise"`, `"sdpa"` or `"flex"` (the last two for softmax only); None chooses.

    Returns:
        Output (B, L, h), and the weights before dropout (B, K, n, n) for K groups (chunks) of n tokens, or None.

    Raises:
        ValueError: for an unknown activation or back end, or one that cannot do what is asked.
    """
    check_request(activation, need_weights, backend, BACKENDS)
    if backend is None:
        backend = "reference" if need_weights else _choose(q, activation, visibility.group_size)

    q, k, v = in_one_dtype(q, k, v)
    with no_autocast(v.device.type):
        return _grouped(q, k, v, bias, visibility, activation, dropout, need_weights, backend)


def _grouped(q, k, v, bias, visibility, activation, dropout, need_weights, backend):
    batch = q.shape[0]
    q, k, v = visibility.group(q), visibility.group(k), visibility.group(v)
    weights = None
    if backend == "reference":
        output, all_weights = attention_reference(
            q, k, v, bias, visibility, activation=activation, dropout=dropout, batch=batch
        )
        weights = all_weights if need_weights else None
    else:
        form = {"blockwise": attention_blockwise, "sdpa": attention_sdpa, "flex": attention_flex}[backend]
        output = form(q, k, v, bias, visibility, activation=activation, dropout=dropout)
    return visibility.ungroup(output, batch), weights


def _choose(q: torch.Tensor, activation: str, group_size: int) -> str:
    """The fastest form, by the measurements in docs/performance.md."""
    if torch.compiler.is_compiling():
        return "sdpa" if activation == "softmax" else "reference"
    if q.device.type == "cpu" and group_size <= SMALL:
        return "reference"
    if q.device.type == "cpu" or activation != "softmax":
        return "blockwise"
    return "sdpa"
