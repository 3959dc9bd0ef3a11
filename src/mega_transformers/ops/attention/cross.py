"""Cross-attention: queries of a target over the columns of a source."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..activations import ELEMENTWISE
from ..autocast import no_autocast
from ..crossing import Crossing
from ..relative_bias import BiasTable, RelativeBias, RotaryBias
from .rectangular import attention_rectangular
from .request import check_request, in_one_dtype

BACKENDS = ("reference", "blockwise", "sdpa")


def attention_cross(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: RelativeBias | BiasTable | None,
    rule: Crossing,
    *,
    activation: str = "softmax",
    dropout: float = 0.0,
    need_weights: bool = False,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """weights @ v with weights = f(scale * q k^T + bias) at the source tokens, 0 at padding (paper section 3.3).

    Args:
        q: (B, n, z) queries of the target, unscaled: softmax scales scores by z^-0.5, `"laplace"` and `"relu2"` by
            1 / (number of source tokens).
        k, v: (B, S, z) and (B, S, h) of the source.
        bias: Relative position bias, or its values at all offsets of the rule; or None.
        rule: Padding and positions. A query whose source is all padding outputs 0.
        activation: `"softmax"`, `"laplace"` or `"relu2"`.
        dropout: Probability of dropping a weight.
        need_weights: Whether to return the weights, which only `"reference"` does.
        backend: `"reference"`, `"blockwise"` or `"sdpa"` (for softmax only); None chooses.

    Returns:
        Output (B, n, h), and the weights before dropout (B, 1, n, S) or None.

    Raises:
        ValueError: for an unknown activation or back end, or one that cannot do what is asked.
    """
    check_request(activation, need_weights, backend, BACKENDS)
    if backend is None:
        backend = "reference" if need_weights else _choose(q, activation)
    if backend == "blockwise":
        if bias is not None and not isinstance(bias, BiasTable) and isinstance(rule.start, int):
            bias = bias.table(*rule.range)
        return attention_rectangular(q, k, v, bias, rule, activation=activation, dropout=dropout)
    q, k, v = in_one_dtype(q, k, v)
    with no_autocast(v.device.type):
        if backend == "sdpa":
            return attention_cross_sdpa(q, k, v, bias, rule, dropout=dropout), None
        output, weights = attention_cross_reference(q, k, v, bias, rule, activation=activation, dropout=dropout)
        return output, weights if need_weights else None


def _choose(q: torch.Tensor, activation: str) -> str:
    if activation == "softmax" and (q.device.type != "cpu" or torch.compiler.is_compiling()):
        return "sdpa"
    return "blockwise"


def attention_cross_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: RelativeBias | BiasTable | None,
    rule: Crossing,
    *,
    activation: str = "softmax",
    dropout: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-attention by its definition, with the weights; see `attention_cross`."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    visible = rule.visible(q.device)
    if visible is None:
        visible = torch.ones(1, 1, rule.columns, dtype=torch.bool, device=q.device)
    scores = torch.bmm(q, k.transpose(1, 2)).to(dtype)
    if activation == "softmax":
        scores = scores * q.shape[-1] ** -0.5
    else:
        scores = scores / visible.sum(-1, keepdim=True).clamp(min=1)
    if bias is not None:
        scores = scores + bias.at(rule.offsets(q.device)).to(dtype)
    if activation == "softmax":
        weights = scores.masked_fill(~visible, torch.finfo(dtype).min).softmax(-1)
    else:
        weights = ELEMENTWISE[activation].function(scores)
    # shaped as returned before its use, so that the caller's tensor gets a gradient
    weights = weights.masked_fill(~visible, 0.0).to(v.dtype).unsqueeze(1)
    return torch.bmm(F.dropout(weights, dropout).squeeze(1), v), weights


def attention_cross_sdpa(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: RelativeBias | BiasTable | None,
    rule: Crossing,
    *,
    dropout: float = 0.0,
) -> torch.Tensor:
    """`attention_cross_reference`'s output for softmax, by `scaled_dot_product_attention`.

    As in self-attention the rotary bias becomes features of queries and keys, and a learned one the kernel's mask.
    """
    visible, sees = rule.visible(q.device), None
    if visible is not None:
        # kernels differ in what a query that sees nothing gets: let it see all, and zero the result
        sees = visible.any(-1, keepdim=True)
        visible = visible | ~sees
    scale = q.shape[-1] ** -0.5
    mask = visible
    if isinstance(bias, RotaryBias):
        # offsets are those of the columns plus a shift per row
        of_query = torch.arange(rule.length, device=q.device) + rule.start
        of_key = torch.arange(rule.columns, device=q.device).unsqueeze(0)
        if rule.shift is not None:
            of_key = of_key + rule.shift.squeeze(2).to(q.device)
        query_features = bias.query_features(of_query).unsqueeze(0).to(q.dtype)
        key_features = bias.key_features(of_key).to(q.dtype)
        q = torch.cat([q * scale, query_features.expand(q.shape[0], -1, -1)], dim=-1)
        k = torch.cat([k, key_features.expand(k.shape[0], -1, -1)], dim=-1)
        scale = 1.0
    elif bias is not None:
        mask = bias.at(rule.offsets(q.device)).to(q.dtype)
        if visible is not None:
            mask = mask.masked_fill(~visible, float("-inf"))
    output = F.scaled_dot_product_attention(
        q.unsqueeze(1),
        k.unsqueeze(1),
        v.unsqueeze(1),
        attn_mask=None if mask is None else mask.expand(q.shape[0], -1, -1).unsqueeze(1),
        dropout_p=dropout,
        scale=scale,
    ).squeeze(1)
    return output if sees is None else output * sees
