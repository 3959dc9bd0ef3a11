"""Shared by the authors' models: names within a layer, and the fields for their arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..models.mega.configuration_mega import ATTENTION_ACTIVATIONS, NORMALIZATION_TYPES, MegaConfig
from .arguments import Arguments
from .errors import ConversionError
from .reference import ACTIVATIONS

PAD, END = 1, 2
MAX_POSITIONS = 1 << 24

LAYER = {
    "mega_layer.move.delta": "mega_layer.ema_gate.damping_factor",
    "mega_layer.move.alpha": "mega_layer.ema_gate.decay_factor",
    "mega_layer.move.beta": "mega_layer.ema_gate.ema_expansion_matrix",
    "mega_layer.move.gamma": "mega_layer.ema_gate.kernel_projection_matrix",
    "mega_layer.move.omega": "mega_layer.ema_gate.residual_weight",
    "mega_layer.gamma": "mega_layer.qk_weight",
    "mega_layer.beta": "mega_layer.qk_bias",
    "mega_layer.rel_pos_bias.beta": "mega_layer.rel_pos_bias.b_param",
    "cross_attn.rel_pos_bias.beta": "cross_attn.rel_pos_bias.b_param",
}
DROPPED = {
    "coder.version": "fairseq's number of its own format",
    "adaptive_softmax.version": "fairseq's number of its own format",
    "_float_tensor": "uninitialised memory that fairseq keeps only for its type",
}


def layer_fields(args: Arguments, names: Mapping[str, str], positions: str, layers: int) -> dict[str, Any]:
    """The fields of a `MegaConfig` that all their models have.

    Args:
        args: Their arguments.
        names: Our fields -> their names.
        positions: Their name for `max_positions`.
        layers: Number of layers.

    Raises:
        ConversionError: names the argument that is missing or invalid.
    """
    feed_forward = args.integer(names["nffn_hidden_size"], minimum=0)
    chunk = args.integer(names["chunk_size"], minimum=-1)
    if chunk == 0:
        raise ConversionError(f"{args.where}.{names['chunk_size']}=0 must be -1 or at least 1")
    served = max(args.integer(positions), chunk)
    if served > MAX_POSITIONS:
        raise ConversionError(f"{args.where}.{positions}={served} is not a number of positions")
    before = args.flag(names["normalize_before_mega"])
    fields = {
        name: args.integer(names[name])
        for name in (
            "hidden_size",
            "intermediate_size",
            "shared_representation_size",
            "ema_projection_size",
        )
    }
    return {
        **fields,
        "num_hidden_layers": layers,
        "use_normalized_ffn": feed_forward > 0,
        "nffn_hidden_size": feed_forward or fields["hidden_size"],
        "use_chunking": chunk > 0,
        "chunk_size": chunk,
        "max_positions": served,
        "truncation": None if args.get("truncation_length") is None else args.integer("truncation_length"),
        "normalization_type": args.choice(names["normalization_type"], NORMALIZATION_TYPES),
        "normalize_before_mega": before,
        "normalize_before_ffn": before,
        "final_norm": before,
        "activation": args.choice("activation_fn", ACTIVATIONS),
        "attention_activation": args.choice("attention_activation_fn", ATTENTION_ACTIVATIONS),
        "relative_positional_bias": args.choice("rel_pos_bias", ("simple", "rotary")),
        "dropout_prob": args.probability("dropout"),
        "embedding_dropout_prob": args.probability("dropout"),
        "attention_probs_dropout_prob": args.probability("attention_dropout"),
        "hidden_dropout_prob": args.probability(names["hidden_dropout_prob"]),
        "nffn_activation_dropout_prob": args.probability(names["nffn_activation_dropout_prob"]),
        "use_feature_dropout": args.flag("feature_dropout"),
        "normalize_embeddings": args.flag("normalize_embedding"),
        "pad_token_id": PAD,
        "eos_token_id": END,
    }


def rows_of(tensors: Mapping[str, Tensor], name: str) -> int:
    """The number of entries of an embedding table.

    Raises:
        ConversionError: if it is missing or not a table.
    """
    table = tensors.get(name)
    if table is None or table.dim() != 2:
        raise ConversionError(f"the checkpoint has no embedding table {name}")
    return table.shape[0]


def bounds(config: MegaConfig) -> dict[str, Any]:
    """`limit` and `borders` of `Inputs`."""
    unlimited = config.use_chunking or config.relative_positional_bias == "rotary"
    borders = [config.chunk_size if config.use_chunking else None, config.truncation]
    return {
        "limit": None if unlimited else config.positions_of_simple_bias(),
        "borders": tuple(sorted(border for border in borders if border is not None)),
    }
