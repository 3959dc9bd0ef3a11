"""The authors' models on top of `reference`, in float64: language model, encoder-decoder, classifiers, masked model.

Weights have the names of the authors' state dicts; padding is False in `real` (B, L).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .arguments import Arguments
from .reference import BlockSettings, Weights, activate, block, linear, normalise


def settings_of(args: Arguments, causal: bool, chunk: str, norm: str, prenorm: str) -> BlockSettings:
    """The layers' settings; `chunk`, `norm` and `prenorm` are what the model's class calls these arguments."""
    before = args.flag(prenorm)
    size = args.integer(chunk, minimum=-1)
    return BlockSettings(
        activation=args.get("activation_fn"),
        attention=args.get("attention_activation_fn"),
        norm=args.get(norm),
        prenorm=before,
        prenorm_ffn=before,
        rotary=args.get("rel_pos_bias") == "rotary",
        causal=causal,
        chunk=size if size > 0 else None,
        truncation=args.get("truncation_length") or None,
        averages_both=not causal,
    )


def side_settings(args: Arguments, side: str) -> BlockSettings:
    """The settings of the language model, or of one `side` of the encoder-decoder."""
    return settings_of(args, side == "decoder", f"{side}_chunk_size", "normalization_type", "normalize_before")


def classifier_settings(args: Arguments) -> BlockSettings:
    """The settings of the classifiers."""
    return settings_of(args, False, "chunk_size", "norm_type", "encoder_normalize_before")


def embed(w: Weights, ids: Tensor, real: Tensor, settings: BlockSettings, scale: float = 1.0) -> Tensor:
    """Ids (B, L), or values (B, L) of pixels or speech, -> (B, L, d), 0 at padding."""
    if "embed_tokens.weight" in w and w("embed_tokens.weight").dim() == 1:
        x = ids.double().unsqueeze(-1) * w("embed_tokens.weight") + w("embed_tokens.bias")
    elif clusters := list(w.numbered("embed_tokens.embeddings.")):
        x = adaptive_embed(clusters, ids)
    else:
        x = w("embed_tokens.weight", "embed_tokens.embed.weight")[ids]
    x = scale * x
    if "project_in_dim.weight" in w:
        x = linear(w.within("project_in_dim."), x)
    if w.within("embed_norm."):
        x = normalise(w.within("embed_norm.norm."), x, settings.norm)
    return x * real.unsqueeze(-1)


def adaptive_embed(clusters: list[Weights], ids: Tensor) -> Tensor:
    """Adaptive input (Baevski and Auli 2019): clusters of tokens by frequency, each with its width and projection."""
    first, x = 0, torch.zeros(*ids.shape, clusters[0]("1.weight").shape[0], dtype=torch.float64)
    for cluster in clusters:
        table = cluster("0.weight")
        inside = (first <= ids) & (ids < first + len(table))
        x[inside] = table[ids[inside] - first] @ cluster("1.weight").T
        first += len(table)
    return x


def adaptive_log_probabilities(w: Weights, x: Tensor, shared_projections: bool) -> Tensor:
    """Log-probabilities (..., V) of all tokens: a head of frequent tokens and clusters, then the tokens of each
    cluster.

    Args:
        w: Weights of the adaptive softmax.
        x: (..., d).
        shared_projections: Whether the tails share the projections of the adaptive input, stored in its layout.
    """
    if "head.weight" in w:
        head = x @ w("head.weight").T
    else:
        words = x
        if "head.word_proj.0.weight" in w:
            words = x @ w("head.word_proj.0.weight").T
        words = words @ w("head.word_proj.weight", "head.word_proj.1.weight").T
        head = torch.cat([words, x @ w("head.class_proj.weight").T], dim=-1)
    tails = list(w.numbered("tail."))
    head = torch.log_softmax(head, dim=-1)
    frequent = head.shape[-1] - len(tails)
    parts = [head[..., :frequent]]
    for index, tail in enumerate(tails):
        down = tail("0.weight") if shared_projections else tail("0.weight").T
        logits = (x @ down) @ tail("2.weight").T
        parts.append(head[..., frequent + index, None] + torch.log_softmax(logits, dim=-1))
    return torch.cat(parts, dim=-1)


def trunk(w: Weights, x: Tensor, real: Tensor, settings: BlockSettings, *source: Tensor) -> Tensor:
    """Layers and final norm, (B, L, d) -> (B, L, d), 0 at padding; `source`: an encoder's states and their `real`."""
    for layer in w.numbered("layers."):
        x = block(layer, x, real, settings, *source)
    if settings.prenorm:
        x = normalise(w.within("final_norm.norm."), x, settings.norm)
    return x * real.unsqueeze(-1)


def side(w: Weights, args: Arguments, name: str, ids: Tensor, real: Tensor, *source: Tensor) -> Tensor:
    """Hidden states of the `encoder` or `decoder` of an encoder-decoder, or of a language model's decoder."""
    settings, inside = side_settings(args, name), w.within(f"{name}.")
    scale = 1.0 if args.flag("no_scale_embedding") else math.sqrt(args.integer(f"{name}_embed_dim"))
    return trunk(inside, embed(inside, ids, real, settings, scale), real, settings, *source)


def language_model_head(w: Weights, args: Arguments, hidden: Tensor) -> Tensor:
    """Hidden states (..., d) -> logits, or log-probabilities of an adaptive softmax, (..., V)."""
    inside = w.within("decoder.")
    if inside.within("adaptive_softmax."):
        shared = args.flag("tie_adaptive_weights") and args.flag("tie_adaptive_proj")
        return adaptive_log_probabilities(inside.within("adaptive_softmax."), hidden, shared)
    return hidden @ inside("output_projection.weight", "embed_tokens.weight").T


def classifier_trunk(w: Weights, args: Arguments, inputs: Tensor, real: Tensor) -> Tensor:
    """Hidden states (B, L, d) of a classifier's encoder."""
    settings, inside = classifier_settings(args), w.within("encoder.encoder.")
    return trunk(inside, embed(inside, inputs, real, settings), real, settings)


def sentence(args: Arguments, hidden: Tensor, real: Tensor) -> Tensor:
    """The vector (B, d) of each sequence."""
    if args.get("sen_rep_type") == "cls":
        return hidden[:, 0]
    return hidden.sum(1) / real.sum(1, keepdim=True)


def classify(w: Weights, args: Arguments, vectors: Tensor) -> Tensor:
    """Vectors of sequences, or of pairs [second, first], -> logits (B, classes)."""
    for layer in w.numbered("classifier."):
        vectors = activate(args.get("classifier_activation_fn"), linear(layer.within("0."), vectors))
    return linear(w.within("sentence_projection_layer."), vectors)


def masked_trunk(w: Weights, args: Arguments, ids: Tensor, real: Tensor) -> Tensor:
    """Hidden states (B, L, d) of the masked model: embeddings and layers, nothing else."""
    settings = side_settings(args, "encoder")
    x = w("embedding_layer.weight")[ids]
    for layer in w.numbered("encoders."):
        x = block(layer, x, real, settings)
    return x
