"""Inputs too long to compute at once: the layers run piece by piece, and the EMA's states connect the pieces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from .layers.block import MegaBlock
from .ops.ema import ema_entering
from .ops.layout import AttentionLayout, self_attention_layout

PIECE = 1 << 14


@torch.no_grad()
def encode(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    piece: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> torch.Tensor:
    """The last hidden states of a model with chunks of attention, in the memory of one piece at a time.

    The numbers are those of a forward pass over everything, in both directions. A layer first goes through all pieces
    for the states that each leaves, from which those that enter it follow; then it computes the pieces in turn. Only
    one layer's hidden states are kept for all tokens, in the main memory.

    Args:
        model: A Mega encoder or decoder, with or without a head, in evaluation mode.
        input_ids: (B, L) ids, of any length.
        attention_mask: (B, L), 1 at real tokens and 0 at padding; padding on the left in whole chunks only.
        piece: Tokens of a piece, a multiple of `config.chunk_size`; default: 16,384, or the next lower multiple.
        progress: Called with the number of tokens that one more layer has been computed for.

    Returns:
        (B, L, d), on the CPU.

    Raises:
        ValueError: for a model without chunks of attention, with a truncated EMA or in training mode; for a piece that
            is not a multiple of the chunk; and for padding on the left that is not.
    """
    base = model.base_model
    config = base.config
    piece = _checked(model, piece)
    check_left_padding(attention_mask, config.chunk_size)
    device = base.get_input_embeddings().weight.device
    spans = [slice(start, min(start + piece, input_ids.shape[1])) for start in range(0, input_ids.shape[1], piece)]
    layouts = [_layout(config, span, attention_mask, device) for span in spans]
    hidden = torch.empty(*input_ids.shape, config.hidden_size, dtype=base.dtype)
    for span in spans:
        hidden[:, span] = base.embedding_layer(input_ids[:, span].to(device), None, None, None).cpu()
    for layer in base.layers:
        entering = _entering(layer, hidden, spans, layouts, device) if len(spans) > 1 else [None]
        for span, layout, states in zip(spans, layouts, entering):
            exchange = None if states is None else (lambda x, coefficients, states=states: states)
            hidden[:, span] = layer(hidden[:, span].to(device), layout=replace(layout, exchange=exchange)).cpu()
            if progress is not None:
                progress(span.stop - span.start)
    if base.final_norm is not None:
        for span in spans:
            hidden[:, span] = base.final_norm(hidden[:, span].to(device)).cpu()
    return hidden


def can_encode(model: Any) -> bool:
    """Whether `encode` takes a model: a Mega with chunks of attention, whose EMA is not truncated."""
    config = model.base_model.config
    return config.model_type == "mega" and config.use_chunking and config.truncation is None


def _entering(
    layer: MegaBlock, hidden: torch.Tensor, spans: list[slice], layouts: list[AttentionLayout], device: torch.device
) -> torch.Tensor:
    """The states (pieces, B, D', N) that enter a layer's EMA at each piece."""
    gated = layer.mega_layer
    coefficients = gated.ema_gate.coefficients()
    left = []
    for span, layout in zip(spans, layouts):
        x = hidden[:, span].to(device)
        left.append(gated.ema_gate.boundary(gated.norm(x) if gated.prenorm else x, coefficients, layout))
    lengths = [span.stop - span.start for span in spans]
    return ema_entering(torch.stack(left), coefficients.log_decay, lengths, bidirectional=gated.ema_gate.bidirectional)


def _layout(config: Any, span: slice, attention_mask: torch.Tensor | None, device: torch.device) -> AttentionLayout:
    mask = None if attention_mask is None else attention_mask[:, span].to(device)
    return self_attention_layout(mask, span.stop - span.start, chunk_size=config.chunk_size, causal=config.is_decoder)


def _checked(model: Any, piece: int | None) -> int:
    """The tokens of a piece; refuses what cannot be cut."""
    config = model.base_model.config
    if not config.use_chunking:
        raise ValueError(
            "use_chunking=False: full attention needs the whole input at once; train the model with chunks"
        )
    if config.truncation is not None:
        raise ValueError(
            f"truncation={config.truncation}: pieces exchange the EMA's states only, by which it cannot forget"
        )
    if model.training:
        raise ValueError("the model is in training mode; call model.eval() first")
    if piece is None:
        piece = max(PIECE // config.chunk_size, 1) * config.chunk_size
    if piece < 1 or piece % config.chunk_size:
        raise ValueError(f"piece={piece} must be a multiple of chunk_size={config.chunk_size}")
    return piece


def check_left_padding(mask: torch.Tensor | None, chunk_size: int) -> None:
    """Refuses rows whose chunks, which are counted from the first real token, would be cut.

    Args:
        mask: (B, L), 1 at real tokens.
        chunk_size: Tokens per chunk; cuts are made at its multiples.
    """
    first = None if mask is None else mask.int().argmax(dim=1)
    if first is not None and bool((first % chunk_size).any()):
        tokens = int(first[first % chunk_size != 0][0])
        raise ValueError(
            f"attention_mask: {tokens} tokens of padding on the left, which must be a multiple of "
            f"chunk_size={chunk_size} tokens; pad on the right"
        )
