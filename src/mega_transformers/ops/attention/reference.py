"""Single-head attention by its definition: the whole matrix of weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..activations import ELEMENTWISE
from ..layout import AttentionLayout
from ..relative_bias import BiasTable


def attention_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: BiasTable | None,
    layout: AttentionLayout,
    *,
    activation: str = "softmax",
    dropout: float = 0.0,
    need_weights: bool = True,
    chunks: int = 1,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention of (B, L, z) queries; see `mega_transformers.ops.attention.attention` for the arguments.

    Args:
        chunks: Of how many chunks a row's consecutive B are.

    Returns:
        Output (B, L, h), and weights before dropout (B / chunks, chunks, L, S), or None.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    visible = layout.visible(q.device)
    scale: float | torch.Tensor = q.shape[-1] ** -0.5
    if activation != "softmax":
        counts = layout.counts(q.device)
        scale = 1.0 / (counts if isinstance(counts, int) else counts.clamp(min=1).to(dtype).unsqueeze(2))
    scores = _scores(q, k, bias, layout, scale)
    if activation == "softmax":
        if visible is not None:
            # a query that sees nothing outputs 0, with finite gradients
            scores = scores.masked_fill(~visible, torch.finfo(dtype).min)
        weights = scores.softmax(-1)
    else:
        weights = ELEMENTWISE[activation].function(scores)
    if visible is not None and (activation != "softmax" or layout.has_gaps):
        weights = weights.masked_fill(~visible, 0.0)
    if weights.dtype != v.dtype:
        weights = weights.to(v.dtype)
    if need_weights:  # shaped as returned before its use, so that the caller's tensor gets a gradient
        shaped = weights.unflatten(0, (-1, chunks))
        weights = shaped.flatten(0, 1)
    used = F.dropout(weights, dropout) if dropout else weights
    return torch.bmm(used, v), shaped if need_weights else None


def _scores(
    q: torch.Tensor,
    k: torch.Tensor,
    bias: BiasTable | None,
    layout: AttentionLayout,
    scale: float | torch.Tensor,
) -> torch.Tensor:
    """scale * q k^T + bias, (B, L, S), in float32 at least."""
    keys = k.transpose(1, 2)
    dtype = torch.promote_types(q.dtype, torch.float32)
    if bias is None:
        return torch.bmm(q, keys).to(dtype) * scale
    if isinstance(layout.offset, int):
        matrix = bias.tile(-layout.offset, layout.queries, layout.keys)
    else:
        matrix = bias.tiles(-layout.offset, layout.queries, layout.keys)
    if isinstance(scale, float) and matrix.dtype == q.dtype == dtype:
        return torch.baddbmm(matrix, q, keys, alpha=scale)
    return torch.bmm(q, keys).to(dtype) * scale + matrix.to(dtype)
