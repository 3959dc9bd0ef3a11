"""Softmax attention through PyTorch's `flex_attention`, for `attn_implementation="flex_attention"`."""

from __future__ import annotations

import functools
from typing import Any

import torch

from ..layout import AttentionLayout
from ..relative_bias import BiasTable


@functools.cache
def _compiled_flex_attention() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def attention_flex(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: BiasTable | None,
    layout: AttentionLayout,
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
    batch, length, width = q.shape
    device = q.device
    offset = layout.offset
    offsets = torch.full((1,), offset, device=device) if isinstance(offset, int) else offset

    score_mod = None
    if bias is not None:
        values = bias.values.to(torch.promote_types(q.dtype, torch.float32))
        last, zero = values.shape[0] - 1, bias.zero

        def score_mod(score, b, head, i, j):
            return score + values[(zero + j - i - offsets[b % offsets.shape[0]]).clamp(0, last)]

    block_mask = None
    if not layout.is_dense or layout.real is not None:
        start, stop = layout.ranges(device)
        real = torch.ones(1, layout.keys, dtype=torch.bool, device=device) if layout.real is None else layout.real

        def sees(b, head, i, j):
            row = b % start.shape[0]
            return (start[row, i] <= j) & (j < stop[row, i]) & real[b % real.shape[0], j]

        rows = max(start.shape[0], real.shape[0])
        block_mask = create_block_mask(
            sees, batch if rows > 1 else None, None, length, layout.keys, device=str(device),
            _compile=device.type == "cuda",
        )  # fmt: skip
    eager_gpu = device.type == "cuda" and not torch.compiler.is_compiling()
    kernel: Any = _compiled_flex_attention() if eager_gpu else flex_attention
    output = kernel(
        q.unsqueeze(1),
        k.unsqueeze(1),
        v.unsqueeze(1),
        score_mod=score_mod,
        block_mask=block_mask,
        scale=width**-0.5,
    ).squeeze(1)
    counts = layout.counts(device)
    return output.masked_fill((counts == 0).unsqueeze(-1), 0.0) if torch.is_tensor(counts) else output
