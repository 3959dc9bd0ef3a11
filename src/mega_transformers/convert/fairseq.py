"""The authors' language model and encoder-decoder: the meaning of their arguments and weight names."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from ..models.mega.configuration_mega import MegaConfig
from ..models.mega.configuration_mega_seq2seq import MegaSeq2SeqConfig
from ..models.mega.modeling_mega import MegaForCausalLM
from ..models.mega.modeling_mega_seq2seq import MegaForConditionalGeneration
from . import reference_fairseq as reference
from .arguments import Arguments
from .errors import ConversionError
from .fairseq_checkpoint import Checkpoint
from .fairseq_classifiers import plan_classifier
from .fairseq_fields import DROPPED, END, LAYER, PAD, bounds, layer_fields, rows_of
from .plan import ZEROS, Inputs, KeyMap, Plan, Results, check_layers, made
from .reference import Weights

LANGUAGE_MODEL = KeyMap(
    prefixes={
        # also the clusters of an adaptive input
        "decoder.embed_tokens.": "mega.embedding_layer.word_embeddings.",
        "decoder.project_in_dim.": "mega.embedding_layer.projection.",
        "decoder.embed_norm.": "mega.embedding_layer.norm.",
        "decoder.layers.": "mega.layers.",
        "decoder.final_norm.": "mega.final_norm.",
        "decoder.output_projection.": "lm_head.",
        "decoder.adaptive_softmax.": "lm_head.",
    },
    layer=LAYER,
    layers=("decoder.layers.",),
    dropped=DROPPED,
)
ENCODER_DECODER = KeyMap(
    prefixes={
        "encoder.embed_tokens.weight": "model.encoder.embedding_layer.word_embeddings.weight",
        "encoder.embed_norm.": "model.encoder.embedding_layer.norm.",
        "encoder.layers.": "model.encoder.layers.",
        "encoder.final_norm.": "model.encoder.final_norm.",
        "decoder.embed_tokens.weight": "model.decoder.embedding_layer.word_embeddings.weight",
        "decoder.project_in_dim.": "model.decoder.embedding_layer.projection.",
        "decoder.embed_norm.": "model.decoder.embedding_layer.norm.",
        "decoder.layers.": "model.decoder.layers.",
        "decoder.final_norm.": "model.decoder.final_norm.",
        "decoder.output_projection.": "lm_head.",
    },
    layer=LAYER,
    layers=("encoder.layers.", "decoder.layers."),
    dropped=DROPPED,
)

# our fields -> the arguments of each class of the authors; `side` is encoder or decoder
SIDE_NAMES = {
    "hidden_size": "{side}_embed_dim",
    "intermediate_size": "{side}_hidden_dim",
    "nffn_hidden_size": "{side}_ffn_embed_dim",
    "shared_representation_size": "{side}_z_dim",
    "ema_projection_size": "{side}_n_dim",
    "chunk_size": "{side}_chunk_size",
    "normalization_type": "normalization_type",
    "normalize_before_mega": "normalize_before",
    "hidden_dropout_prob": "hidden_dropout",
    "nffn_activation_dropout_prob": "activation_dropout",
}
# the defaults of their code
DEFAULTS = {
    "activation_fn": "silu",
    "attention_activation_fn": "softmax",
    "rel_pos_bias": "simple",
    "normalization_type": "layernorm",
    "normalize_before": False,
    "normalize_embedding": False,
    "no_scale_embedding": False,
    "no_affine_final_norm": False,
    "feature_dropout": False,
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "activation_dropout": 0.0,
    "encoder_chunk_size": -1,
    "decoder_chunk_size": -1,
    "max_source_positions": 1024,
    "max_target_positions": 1024,
    "share_all_embeddings": False,
    "share_decoder_input_output_embed": False,
    "add_bos_token": False,
    "tie_adaptive_weights": False,
    "tie_adaptive_proj": False,
    "adaptive_input": False,
    "adaptive_input_factor": 4,
    "adaptive_input_cutoff": None,
    "adaptive_softmax_factor": 4,
    "adaptive_softmax_dropout": 0.0,
    "adaptive_softmax_cutoff": None,
}


def plan_checkpoint(checkpoint: Checkpoint) -> Plan:
    """Plans the conversion of any of the authors' models.

    Raises:
        ConversionError: for other models, and for arguments and weights that do not match.
    """
    tensors = checkpoint.tensors
    if not any(".mega_layer." in name for name in tensors):
        made = f" ({checkpoint.facts['arch']})" if "arch" in checkpoint.facts else ""
        raise ConversionError(f"the checkpoint holds another model{made}: it has no Mega layer")
    if any(name.startswith("encoder.encoder.") for name in tensors):
        return plan_classifier(checkpoint)
    if any(name.startswith("encoder.") for name in tensors):
        return plan_encoder_decoder(checkpoint)
    return plan_language_model(checkpoint)


def side_fields(args: Arguments, side: str, vocab_size: int) -> dict[str, Any]:
    """The fields of the language model, or of one `side` of the encoder-decoder."""
    names = {ours: theirs.format(side=side) for ours, theirs in SIDE_NAMES.items()}
    positions = "max_source_positions" if side == "encoder" else "max_target_positions"
    if args.get(positions) is None:
        args.values[positions] = args.defaults[positions]
    fields = layer_fields(args, names, positions, args.integer(f"{side}_layers"))
    fields |= {"vocab_size": vocab_size, "scale_embeddings": not args.flag("no_scale_embedding")}
    if side == "decoder":
        fields |= {"is_decoder": True, "bidirectional": False}
        fields["final_norm_affine"] = not args.flag("no_affine_final_norm")
        if "decoder_input_dim" in args and args.integer("decoder_input_dim") != fields["hidden_size"]:
            fields["embedding_size"] = args.integer("decoder_input_dim")
    return fields


def adaptive_fields(args: Arguments, words: int) -> dict[str, Any]:
    """The fields of adaptive input and softmax; none for a model without both.

    Raises:
        ConversionError: if the cutoffs of the two differ.
    """
    softmax = args.cutoffs("adaptive_softmax_cutoff")
    given = args.cutoffs("adaptive_input_cutoff") if args.flag("adaptive_input") else None
    cutoffs = softmax or given
    if cutoffs is None:
        return {}
    if softmax and given and softmax != given:
        raise ConversionError(
            f"{args.where}.adaptive_input_cutoff={given} and adaptive_softmax_cutoff={softmax} must be equal: models "
            "here have one set of cutoffs"
        )
    tied = args.flag("tie_adaptive_weights") and softmax is not None
    return {
        # their cutoffs may end with the size of the vocabulary
        "adaptive_cutoffs": [cutoff for cutoff in cutoffs if cutoff < words],
        "adaptive_input": given is not None,
        "adaptive_input_factor": args.integer("adaptive_input_factor"),
        "adaptive_softmax": softmax is not None,
        "adaptive_softmax_factor": args.integer("adaptive_softmax_factor"),
        "adaptive_softmax_dropout_prob": args.probability("adaptive_softmax_dropout"),
        "tie_adaptive_weights": tied,
        "tie_adaptive_projections": tied and args.flag("tie_adaptive_proj"),
    }


def plan_language_model(checkpoint: Checkpoint) -> Plan:
    """Plans the conversion of a `mega_lm`."""
    args, tensors = checkpoint.arguments.with_defaults({**DEFAULTS, "truncation_length": 2048}), checkpoint.tensors
    check_layers(tensors, args.integer("decoder_layers"), f"{args.where}.decoder_layers", "decoder.layers.")
    if args.get("truncation_length") == 0:
        raise ConversionError(
            f"{args.where}.truncation_length=0 turns the moving average off, which no model here can do"
        )
    clusters = [name for name in tensors if re.fullmatch(r"decoder\.embed_tokens\.embeddings\.\d+\.0\.weight", name)]
    words = sum(rows_of(tensors, name) for name in clusters or ["decoder.embed_tokens.weight"])
    fields = side_fields(args, "decoder", words) | adaptive_fields(args, words)
    adaptive = fields.get("adaptive_softmax", False)
    tied = args.flag("share_decoder_input_output_embed") and not adaptive
    start, first = (0, "<s>") if args.flag("add_bos_token") else (END, "</s>")
    fields |= {"tie_word_embeddings": tied, "add_lm_hidden_dense_layer": False, "bos_token_id": start}
    config = made(args.where, lambda: MegaConfig(**fields))
    names, dropped = LANGUAGE_MODEL.apply(tensors)
    if not adaptive:
        names["lm_head.bias"] = ZEROS
    if tied:
        names.setdefault("lm_head.weight", names["mega.embedding_layer.word_embeddings.weight"])

    def trunk(w: Weights, inputs: dict[str, Tensor]) -> Results:
        real = inputs["attention_mask"].bool()
        return {"last_hidden_state": (reference.side(w, args, "decoder", inputs["input_ids"], real), real)}

    def evaluate(w: Weights, inputs: dict[str, Tensor]) -> Results:
        hidden, real = trunk(w, inputs)["last_hidden_state"]
        return {"logits": (reference.language_model_head(w, args, hidden), real)}

    return Plan(
        source="language model of fairseq (mega_lm)",
        model_class=MegaForCausalLM,
        config=config,
        tensors=tensors,
        names=names,
        dropped=dropped,
        inputs=Inputs(vocab_size=fields["vocab_size"], pad=PAD, **bounds(config)),
        evaluate=evaluate,
        evaluate_trunk=trunk,
        pipeline_tag="text-generation",
        generation={"bos_token_id": start, "eos_token_id": END, "pad_token_id": PAD},
        closed=False,
        start=first,
        first=first,
        settings=args.where,
        arguments=args,
        facts=checkpoint.facts,
        notes=checkpoint.notes,
    )


def plan_encoder_decoder(checkpoint: Checkpoint) -> Plan:
    """Plans the conversion of a `mega`."""
    args, tensors = checkpoint.arguments.with_defaults({**DEFAULTS, "truncation_length": 1024}), checkpoint.tensors
    notes = list(checkpoint.notes)
    for side in ("encoder", "decoder"):
        check_layers(tensors, args.integer(f"{side}_layers"), f"{args.where}.{side}_layers", f"{side}.layers.")
    if args.get("adaptive_softmax_cutoff") is not None:
        raise ConversionError(
            f"{args.where}.adaptive_softmax_cutoff: an encoder-decoder here cannot have an adaptive softmax"
        )
    if args.get("truncation_length") == 0:
        args.values["truncation_length"] = None
        notes.append("truncation_length=0 is read as no truncation; fairseq's own encoder cannot run with it")
    shared = args.flag("share_all_embeddings")
    encoder = side_fields(args, "encoder", rows_of(tensors, "encoder.embed_tokens.weight"))
    decoder = side_fields(args, "decoder", rows_of(tensors, "decoder.embed_tokens.weight"))
    decoder |= {
        "add_cross_attention": True,
        "cross_attention_max_positions": max(
            args.integer("max_source_positions"), args.integer("max_target_positions")
        ),
        "cross_attention_counts_padding": True,
    }
    tied = shared or args.flag("share_decoder_input_output_embed")
    sharing: dict[str, Any] = {"share_embeddings": shared, "tie_word_embeddings": tied}
    config = made(args.where, lambda: MegaSeq2SeqConfig(encoder=encoder, decoder=decoder, **sharing))
    names, dropped = ENCODER_DECODER.apply(tensors)
    if tied:
        names.setdefault("lm_head.weight", names["model.decoder.embedding_layer.word_embeddings.weight"])

    def trunk(w: Weights, inputs: dict[str, Tensor]) -> Results:
        real, target_real = inputs["attention_mask"].bool(), inputs["decoder_attention_mask"].bool()
        source = reference.side(w, args, "encoder", inputs["input_ids"], real)
        hidden = reference.side(w, args, "decoder", inputs["decoder_input_ids"], target_real, source, real)
        return {"last_hidden_state": (hidden, target_real), "encoder_last_hidden_state": (source, real)}

    def evaluate(w: Weights, inputs: dict[str, Tensor]) -> Results:
        results = trunk(w, inputs)
        hidden, real = results.pop("last_hidden_state")
        return {**results, "logits": (reference.language_model_head(w, args, hidden), real)}

    limits = [bounds(side) for side in (config.encoder, config.decoder)]
    if decoder["relative_positional_bias"] == "simple":
        limits.append({"limit": decoder["cross_attention_max_positions"], "borders": ()})
    return Plan(
        source="encoder-decoder of fairseq (mega)",
        model_class=MegaForConditionalGeneration,
        config=config,
        tensors=tensors,
        names=names,
        dropped=dropped,
        inputs=Inputs(
            kind="text to text",
            vocab_size=encoder["vocab_size"],
            target_vocab_size=decoder["vocab_size"],
            pad=PAD,
            limit=min((each["limit"] for each in limits if each["limit"] is not None), default=None),
            borders=tuple(sorted({border for each in limits for border in each["borders"]})),
        ),
        evaluate=evaluate,
        evaluate_trunk=trunk,
        pipeline_tag="translation",
        generation={
            "bos_token_id": 0,
            "eos_token_id": END,
            "pad_token_id": PAD,
            "decoder_start_token_id": END,
            # fairseq-generate's own
            "num_beams": 5,
            "max_new_tokens": 200,
        },
        settings=args.where,
        arguments=args,
        facts=checkpoint.facts,
        notes=notes,
    )
