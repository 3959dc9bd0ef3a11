"""Softmax attention through PyTorch's fused kernels.

The rotary bias is an inner product of rotated vectors, so it goes into the kernel as extra features of queries and
keys; the learned bias becomes the kernel's additive mask.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F

from ..relative_bias import RelativeBias, RotaryBias, toeplitz
from ..visibility import Visibility


def _fold(q: torch.Tensor, k: torch.Tensor, bias: RotaryBias) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries times z^-0.5 and keys (G, n, z), with the features of the bias appended: (G, n, 2z)."""
    positions = torch.arange(q.shape[1], device=q.device)
    features = bias.query_features(positions), bias.key_features(positions)
    of_query, of_key = (f.to(q.dtype).expand(q.shape[0], -1, -1) for f in features)
    return torch.cat([q * q.shape[-1] ** -0.5, of_query], dim=-1), torch.cat([k, of_key], dim=-1)


def attention_sdpa(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: RelativeBias | None,
    visibility: Visibility,
    *,
    activation: str = "softmax",
    dropout: float = 0.0,
) -> torch.Tensor:
    """`attention_reference`'s output for softmax, by `scaled_dot_product_attention`."""
    groups, n, width = q.shape
    scale = width**-0.5
    visible = None
    is_causal = visibility.causal and visibility.group_mask is None and visibility.spans is None
    if not is_causal:
        visible = visibility.visible(groups, q.device)
    sees = None
    if visible is not None and not (visibility.causal and visibility.group_mask is None):
        # kernels differ in what a query that sees nothing gets: let it see all, and zero the result
        sees = visible.any(-1, keepdim=True)
        visible = visible | ~sees
    if isinstance(bias, RotaryBias):
        q, k = _fold(q, k, bias)
        scale = 1.0
    mask = visible
    if bias is not None and not isinstance(bias, RotaryBias):
        mask = toeplitz(bias.diagonals(n)).to(q.dtype).unsqueeze(0)
        if is_causal:
            visible, is_causal = visibility.visible(groups, q.device), False
        if visible is not None:
            mask = mask.masked_fill(~visible, float("-inf"))
    output = F.scaled_dot_product_attention(
        q.unsqueeze(1),
        k.unsqueeze(1),
        v.unsqueeze(1),
        attn_mask=None if mask is None else mask.unsqueeze(1),
        dropout_p=dropout,
        is_causal=is_causal,
        scale=scale,
    ).squeeze(1)
    return output if sees is None else output * sees


@functools.cache
def _compiled_flex_attention() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def attention_flex(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: RelativeBias | None,
    visibility: Visibility,
    *,
    activation: str = "softmax",
    dropout: float = 0.0,
) -> torch.Tensor:
    """`attention_reference`'s output for softmax, by `flex_attention` (compiled on a GPU).

    Raises:
        ValueError: with dropout, which flex attention does not have.
    """
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if dropout:
        raise ValueError(
            f"attention_probs_dropout_prob={dropout} is not supported by attn_implementation='flex_attention' in "
            "training; set it to 0 or use attn_implementation='sdpa'"
        )
    groups, n, width = q.shape
    visible = visibility.visible(groups, q.device)

    score_mod = None
    if bias is not None:
        diagonals = bias.diagonals(n).to(torch.promote_types(q.dtype, torch.float32))

        def score_mod(score, group, head, i, j):
            return score + diagonals[j - i + n - 1]

    block_mask = None
    if visible is not None:
        matrix = visible

        def sees(group, head, i, j):
            return matrix[group if matrix.shape[0] > 1 else 0, i, j]

        block_mask = create_block_mask(
            sees, groups if visible.shape[0] > 1 else None, None, n, n, device=str(q.device)
        )
    eager_gpu = q.device.type == "cuda" and not torch.compiler.is_compiling()
    kernel: Any = _compiled_flex_attention() if eager_gpu else flex_attention
    output = kernel(
        q.unsqueeze(1),
        k.unsqueeze(1),
        v.unsqueeze(1),
        score_mod=score_mod,
        block_mask=block_mask,
        scale=width**-0.5,
    ).squeeze(1)
    return output if visible is None else output.masked_fill(~visible.any(-1, keepdim=True), 0.0)
