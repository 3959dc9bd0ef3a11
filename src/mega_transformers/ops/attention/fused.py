"""Softmax attention through PyTorch's fused kernels.

The rotary bias is an inner product of rotated vectors, so it goes into the kernel as extra features of queries and
keys. Flash kernels want values as wide as those: they are split into heads, which share queries and keys.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..layout import AttentionLayout
from ..relative_bias import BiasTable, RelativeBias, RotaryBias

JUNK = 128
"""Tokens that are padding see each other in segments of so many."""


def is_fusable(q: torch.Tensor, bias: RelativeBias | BiasTable | None, layout: AttentionLayout) -> bool:
    """Whether the kernels of the device have what a layout and a bias ask for, without a mask of queries and keys."""
    if q.device.type != "cuda" or not isinstance(layout.offset, int):
        return False
    if bias is not None and not isinstance(bias, RotaryBias):
        return False
    width = q.shape[-1] * (1 if bias is None else 2)
    if width % 8 or width > 256:
        return False
    among_themselves = layout.queries == layout.keys
    if not layout.has_gaps and (among_themselves or not layout.causal):
        return True
    if q.dtype not in (torch.float16, torch.bfloat16):
        return False
    # a plain bool: in a graph for any length the comparison is symbolic, and PyTorch 2.14 cannot compare it with True
    if among_themselves:
        return True
    return layout.causal and not layout.has_gaps and layout.chunk is None


def attention_fused(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: RelativeBias | BiasTable | None,
    layout: AttentionLayout,
    *,
    dropout: float = 0.0,
) -> torch.Tensor:
    """`attention_reference`'s output for softmax, where `is_fusable`."""
    q = q * q.shape[-1] ** -0.5
    if bias is not None:
        assert isinstance(layout.offset, int) and isinstance(bias, RotaryBias)
        columns = torch.arange(layout.keys, device=q.device)
        features = bias.query_features(columns[: layout.queries] + layout.offset), bias.key_features(columns)
        of_query, of_key = (f.to(q.dtype).expand(q.shape[0], -1, -1) for f in features)
        q, k = torch.cat([q, of_query], dim=-1), torch.cat([k, of_key], dim=-1)
    width, values = q.shape[-1], v.shape[-1]
    v = F.pad(v, (0, -values % width)).unflatten(-1, (-1, width))
    heads = v.shape[2]
    q, k = (x.unsqueeze(2).expand(-1, -1, heads, -1) for x in (q, k))
    if not layout.has_gaps and (layout.queries == layout.keys or not layout.causal):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        options = {"dropout_p": dropout, "is_causal": layout.causal, "scale": 1.0}
        output = F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2)  # type: ignore[arg-type]
    elif layout.queries == layout.keys:
        output = _in_segments(q, k, v, layout, dropout)
    else:
        batch = torch.arange(q.shape[0] + 1, dtype=torch.int32, device=q.device)
        borders = batch * layout.queries, batch * layout.keys
        flat = [x.flatten(0, 1) for x in (q, k, v)]
        output = flash(flat, borders, (layout.queries, layout.keys), dropout, True).unflatten(0, (q.shape[0], -1))
    return output.flatten(2)[..., :values]


def _in_segments(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: AttentionLayout, dropout: float
) -> torch.Tensor:
    """Attention of tokens to the real ones of their own segment, a chunk or a document: (B, L, heads, width)."""
    batch, length = q.shape[:2]
    order, borders, longest = segments(layout, batch, q.device)
    flat = [x.flatten(0, 1)[order] for x in (q, k, v)]
    output = flash(flat, (borders, borders), (longest, longest), dropout, layout.causal)
    output = torch.empty_like(output).index_copy(0, order, output).unflatten(0, (batch, length))
    if layout.real is None:
        return output
    return output * layout.real.view(batch, length, 1, 1)


def segments(layout: AttentionLayout, batch: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The tokens of a batch sorted into segments that see nothing of each other, without a look at any value.

    Returns:
        Numbers (B * L,) of tokens in order, padding at the end; (segments + 1,) borders, int32; and the most tokens of
        a segment.
    """
    length = layout.queries
    start, _ = layout.ranges(device)
    real = layout.real if layout.real is not None else torch.ones(batch, length, dtype=torch.bool, device=device)
    begins = F.pad(start[:, 1:] != start[:, :-1], (1, 0), value=True).expand(batch, length)
    number = begins.flatten().cumsum(0) - 1
    if layout.documents is not None or layout.reset is None:
        per_row = (1 if layout.chunk is None else -(-length // layout.chunk)) + 1 + (layout.documents or 0)
        per_row = min(per_row, length)
    else:
        per_row = length
    junk = ~real.flatten()
    number = torch.where(junk, batch * per_row + (junk.cumsum(0) - 1) // JUNK, number)
    total = batch * per_row + -(-batch * length // JUNK)
    counts = torch.zeros(total, dtype=torch.int32, device=device)
    counts = counts.scatter_add(0, number, torch.ones_like(number, dtype=torch.int32))
    borders = F.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))
    longest = length if layout.chunk is None else min(layout.chunk, length)
    return number.argsort(stable=True), borders, max(longest, JUNK)


def flash(
    qkv: list[torch.Tensor],
    borders: tuple[torch.Tensor, torch.Tensor],
    longest: tuple[int, int],
    dropout: float,
    causal: bool,
) -> torch.Tensor:
    """PyTorch's variable-length flash kernel over tokens (T, heads, width); the last query sees the last key.

    Borders of segments, int32, and their greatest lengths are those of queries and of keys.
    """
    return torch.ops.aten._flash_attention_forward(*qkv, *borders, *longest, dropout, causal, False, scale=1.0)[0]
