"""The models of transformers 4.40.2 on top of `reference`, in float64, with its bugs fixed.

Weights may also have the names of its revisions before the release (`encoders` for `layers`, `move` for `ema_gate`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .arguments import Arguments
from .reference import BlockSettings, Weights, block, linear

LAYERS = ("layers.", "encoders.")
EMBEDDINGS = ("embedding_layer.word_embeddings.weight", "embedding_layer.weight")


def settings_of(config: Arguments) -> BlockSettings:
    """The layers' settings from the fields of a config.json."""
    size = config.integer("chunk_size", minimum=-1)
    positions = size if size > 0 else config.integer("max_positions")
    served = config.get("cross_attention_max_positions")
    return BlockSettings(
        activation=config.get("activation"),
        attention=config.get("attention_activation"),
        norm="scale" if config.get("legacy_unnormalized_rmsnorm") else config.get("normalization_type"),
        prenorm=config.flag("normalize_before_mega"),
        prenorm_ffn=config.flag("normalize_before_ffn"),
        rotary=config.get("relative_positional_bias") == "rotary",
        causal=config.flag("is_decoder"),
        chunk=size if config.flag("use_chunking") else None,
        truncation=config.get("truncation"),
        averages_both=config.flag("bidirectional"),
        centre=positions - 1,
        cross_centre=(served or positions) - 1,
    )


def trunk(
    w: Weights, config: Arguments, ids: Tensor, real: Tensor, types: Tensor | None = None, *source: Tensor
) -> Tensor:
    """Ids (B, L), or embeddings (B, L, d), -> hidden states (B, L, d)."""
    x = ids.double() if ids.is_floating_point() else w(*EMBEDDINGS)[ids]
    if config.flag("add_token_type_embeddings"):
        kinds = torch.zeros_like(real, dtype=torch.int64) if types is None else types
        x = x + w("embedding_layer.token_type_embeddings.weight")[kinds]
    settings = settings_of(config)
    for layer in w.numbered(*LAYERS):
        x = block(layer, x, real, settings, *source)
    return x


def pooled(w: Weights, hidden: Tensor) -> Tensor:
    """The pooler's output (B, d)."""
    return torch.tanh(linear(w.within("pooler.dense."), hidden[:, 0]))


def word_logits(w: Weights, hidden: Tensor, head: str, config: Arguments) -> Tensor:
    """Logits (..., V) of a language model's head `lm_head` or `mlm_head`, which may be the token embeddings."""
    if config.flag("add_lm_hidden_dense_layer"):
        hidden = torch.tanh(linear(w.within("dense."), hidden))
    if f"{head}.weight" in w:
        return linear(w.within(f"{head}."), hidden)
    return hidden @ w.within("mega.")(*EMBEDDINGS).T + w(f"{head}.bias")


def sequence_logits(w: Weights, hidden: Tensor) -> Tensor:
    """Logits (B, classes) of the first token."""
    return linear(w.within("classifier.out_proj."), torch.tanh(linear(w.within("classifier.dense."), hidden[:, 0])))
