"""Single-head attention by its definition: the whole matrix of weights, one group of tokens at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..activations import ELEMENTWISE
from ..relative_bias import RelativeBias, toeplitz
from ..visibility import Visibility


def attention_scale(q: torch.Tensor, visibility: Visibility, activation: str) -> float | torch.Tensor:
    """What scores are multiplied by: z^-0.5 for softmax, else 1 / (keys the query sees).

    The latter is a number where all queries see equally many, else (groups or 1, n, 1).
    """
    if activation == "softmax":
        return q.shape[-1] ** -0.5
    if not visibility.causal and visibility.group_mask is None and visibility.spans is None:
        return 1.0 / visibility.group_size
    dtype = torch.promote_types(q.dtype, torch.float32)
    return visibility.counts(q.shape[0], q.device).to(dtype).reciprocal().unsqueeze(-1)


def attention_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: RelativeBias | None,
    visibility: Visibility,
    *,
    activation: str = "softmax",
    dropout: float = 0.0,
    batch: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in groups; see `mega_transformers.ops.attention.attention` for the arguments.

    Args:
        q, k: (G, n, z) in groups of `visibility`.
        v: (G, n, h).
        batch: Rows B that the G = B * K groups come from.

    Returns:
        Output (G, n, h) and weights before dropout (B, K, n, n).
    """
    groups, n, _ = q.shape
    dtype = torch.promote_types(q.dtype, torch.float32)
    scores = torch.bmm(q, k.transpose(1, 2)).to(dtype) * attention_scale(q, visibility, activation)
    if bias is not None:
        scores = scores + toeplitz(bias.diagonals(n)).to(dtype)
    visible = visibility.visible(groups, q.device)
    if activation == "softmax":
        if visible is not None:
            # a query that sees nothing outputs 0, with finite gradients
            scores = scores.masked_fill(~visible, torch.finfo(dtype).min)
        weights = scores.softmax(-1)
    else:
        weights = ELEMENTWISE[activation].function(scores)
    if visible is not None:
        weights = weights.masked_fill(~visible, 0.0)
    # shaped as returned before its use, so that the caller's tensor gets a gradient
    weights = weights.to(v.dtype).unflatten(0, (batch, -1))
    return torch.bmm(F.dropout(weights, dropout).flatten(0, 1), v), weights
