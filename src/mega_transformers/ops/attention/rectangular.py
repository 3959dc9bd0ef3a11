"""Attention of queries over other columns than their own: cached keys, or those of an encoder.

A block of queries is computed at a time, with memory linear in the length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from ..activations import ELEMENTWISE
from ..autocast import no_autocast
from ..continuation import Continuation, QueryBlock
from ..crossing import Crossing
from ..relative_bias import BiasTable, RelativeBias
from .request import in_one_dtype


def attention_rectangular(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: BiasTable | RelativeBias | None,
    rule: Continuation | Crossing,
    *,
    activation: str = "softmax",
    dropout: float = 0.0,
    need_weights: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`mega_transformers.ops.attention.attention` of n queries over T columns.

    Args:
        q: (B, n, z) queries, unscaled.
        k, v: (B, T, z) and (B, T, h): the window of a `Continuation` (cached columns, then the new ones), or the
            source of a `Crossing`.
        bias: Relative position bias, a `BiasTable` unless the rule gives offsets; or None.
        rule: Who sees whom.
        activation, dropout, need_weights: As in `attention`.

    Returns:
        Output (B, n, h), and the weights before dropout (B, 1, n, T) or None.
    """
    q, k, v = in_one_dtype(q, k, v)
    device = v.device.type
    if (
        rule.length == 1 and not need_weights and not torch.is_autocast_enabled(device)
    ):  # a decoding step: every microsecond counts
        (block,) = rule.blocks(q.device)
        return _attend(q, k, v, bias, block, activation, dropout)[0], None
    with no_autocast(device):
        outputs, all_weights = [], []
        for block in rule.blocks(q.device):
            one_of_many = block.stop - block.start < rule.length
            if one_of_many and torch.is_grad_enabled() and not need_weights:
                output, weights = checkpoint(_attend, q, k, v, bias, block, activation, dropout, use_reentrant=False)
            else:
                output, weights = _attend(q, k, v, bias, block, activation, dropout)
            outputs.append(output)
            if need_weights:
                all_weights.append(F.pad(weights, (block.low, k.shape[1] - block.high)))
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
        return output, torch.cat(all_weights, dim=1).unsqueeze(1) if need_weights else None


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: BiasTable | RelativeBias | None,
    block: QueryBlock,
    activation: str,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output (B, rows, h) and weights (B, rows, columns) of a block."""
    weights = _weights(q, k, bias, block, activation).to(v.dtype)
    used = F.dropout(weights, dropout) if dropout else weights
    return torch.bmm(used, _cut(v, block.low, block.high)), weights


def _cut(x: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """x[:, start:stop], at once where that is everything."""
    return x if start == 0 and stop == x.shape[1] else x[:, start:stop]


def _weights(
    q: torch.Tensor,
    k: torch.Tensor,
    bias: BiasTable | RelativeBias | None,
    block: QueryBlock,
    activation: str,
) -> torch.Tensor:
    """Weights (B, rows, columns) of a block, in float32 at least."""
    queries, keys = _cut(q, block.start, block.stop), _cut(k, block.low, block.high).transpose(1, 2)
    rows, columns = queries.shape[1], keys.shape[2]
    visible = block.visible
    scale = q.shape[-1] ** -0.5
    if activation != "softmax":
        if visible is None:
            scale = 1.0 / columns
        else:
            counts = visible.sum(-1, keepdim=True).clamp(min=1)
            queries, scale = queries / counts.to(queries.dtype), 1.0
    if bias is None:
        scores = torch.bmm(queries, keys) * scale
    else:
        if block.offsets is not None:
            values = bias.at(block.offsets)
        else:
            assert isinstance(bias, BiasTable)
            values = bias.rows(block.offset, rows, columns).unsqueeze(0)
        scores = torch.baddbmm(values.to(queries.dtype), queries, keys, alpha=scale)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if activation != "softmax":
        weights = ELEMENTWISE[activation].function(scores)
        return weights if visible is None else weights.masked_fill(~visible, 0.0)
    if visible is None:
        return scores.softmax(-1)
    weights = scores.masked_fill(~visible, torch.finfo(scores.dtype).min).softmax(-1)
    return weights.masked_fill(~visible, 0.0)
