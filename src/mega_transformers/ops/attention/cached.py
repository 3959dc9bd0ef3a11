"""Attention of new tokens over cached keys and their own, a block of queries at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..activations import ELEMENTWISE
from ..autocast import no_autocast
from ..continuation import Continuation, QueryBlock

LONG = 1024
"""Keys from which on a decoding step is worth several threads."""


def attention_cached(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    past_bias: torch.Tensor | None,
    rule: Continuation,
    *,
    activation: str = "softmax",
    dropout: float = 0.0,
    need_weights: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`mega_transformers.ops.attention.attention` for the last n of T tokens.

    Args:
        q: (B, n, z) queries of the new tokens, unscaled.
        k, v: (B, T, z) and (B, T, h), the window of `rule`: cached columns, then the new ones.
        past_bias: (at least T,) relative position bias at offsets ... -2, -1, 0, or None.
        rule: Who sees whom.
        activation, dropout, need_weights: As in `attention`.

    Returns:
        Output (B, n, h), and the weights before dropout (B, 1, n, T) or None.
    """
    device = v.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    with no_autocast(device):
        outputs, all_weights = [], []
        for block in rule.blocks(q.device):
            weights = _weights(q, k, past_bias, block, rule.kept, activation).to(v.dtype)
            outputs.append(
                torch.bmm(F.dropout(weights, dropout) if dropout else weights, v[:, block.low : block.high])
            )
            if need_weights:
                all_weights.append(F.pad(weights, (block.low, k.shape[1] - block.high)))
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
        return output, torch.cat(all_weights, dim=1).unsqueeze(1) if need_weights else None


def _weighted_sum(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """weights (B, n, T) @ values (B, T, h).

    For one token of one row PyTorch has a thread read all of the values; as a batch of parts, every thread reads some.
    """
    rows, columns = weights.shape[0] * weights.shape[1], weights.shape[2]
    parts = torch.get_num_threads()
    if rows > 1 or values.device.type != "cpu" or parts == 1 or columns < LONG or torch.is_grad_enabled():
        return torch.bmm(weights, values)
    even = columns // parts * parts
    split = torch.bmm(weights[0, :, :even].view(parts, 1, -1), values[0, :even].view(parts, even // parts, -1))
    output = split.sum(0, keepdim=True)
    return output if even == columns else output.baddbmm_(weights[:, :, even:], values[:, even:])


def _weights(
    q: torch.Tensor,
    k: torch.Tensor,
    past_bias: torch.Tensor | None,
    block: QueryBlock,
    kept: int,
    activation: str,
) -> torch.Tensor:
    """Weights (B, rows, columns) of a block, in float32 at least."""
    start, stop, low, high, visible, offsets = block
    queries, keys = q[:, start:stop], k[:, low:high].transpose(1, 2)
    rows, columns = stop - start, high - low
    scale = q.shape[-1] ** -0.5
    if activation != "softmax":
        if visible is None:
            scale = 1.0 / columns
        else:
            counts = visible.sum(-1, keepdim=True).clamp(min=1)
            queries, scale = queries / counts.to(queries.dtype), 1.0
    if past_bias is None:
        scores = torch.bmm(queries, keys) * scale
    elif offsets is not None:
        last = past_bias.shape[0] - 1
        bias = past_bias[(last + offsets).clamp(0, last)]  # others are not visible
        scores = torch.baddbmm(bias.to(queries.dtype).unsqueeze(0), queries, keys, alpha=scale)
    else:
        # column j, row i: offset low + j - (kept + start + i); rows end where their own offset 0 stands last
        bias = past_bias[past_bias.shape[0] - (kept + stop - low) :]
        if rows > 1:
            bias = F.pad(bias, (0, rows - 1)).unfold(0, columns, 1)[:rows].flip(0)
        scores = torch.baddbmm(bias.to(queries.dtype).view(1, rows, columns), queries, keys, alpha=scale)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if activation != "softmax":
        weights = ELEMENTWISE[activation].function(scores)
        return weights if visible is None else weights.masked_fill(~visible, 0.0)
    if visible is None:
        return scores.softmax(-1)
    weights = scores.masked_fill(~visible, torch.finfo(scores.dtype).min).softmax(-1)
    return weights.masked_fill(~visible, 0.0)
