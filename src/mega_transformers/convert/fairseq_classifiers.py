"""The authors' classifiers of texts, pairs of texts, pixels (Long Range Arena) and speech (Speech Commands)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..models.mega.configuration_mega import MegaConfig
from ..models.mega.modeling_mega_classification import MegaForAudioClassification, MegaForSequenceClassification
from ..models.mega.modeling_mega_pairs import MegaForSequencePairClassification
from . import reference_fairseq as reference
from .arguments import Arguments
from .errors import ConversionError
from .fairseq_checkpoint import Checkpoint
from .fairseq_fields import DROPPED, LAYER, PAD, bounds, layer_fields, rows_of
from .plan import Inputs, KeyMap, Plan, Results, check_layers, made
from .reference import ACTIVATIONS, Weights

ENCODER = "encoder.encoder."
WORDS = f"{ENCODER}embed_tokens.embed.weight"
VALUES = f"{ENCODER}embed_tokens.weight"
FIRST_BLOCK = "classifier.0.0.weight"
CLASSES = "sentence_projection_layer.weight"

CLASSIFIER = KeyMap(
    prefixes={
        f"{ENCODER}embed_tokens.embed.": "mega.embedding_layer.word_embeddings.",
        f"{ENCODER}embed_tokens.": "mega.embedding_layer.value_embeddings.",
        f"{ENCODER}embed_norm.": "mega.embedding_layer.norm.",
        f"{ENCODER}layers.": "mega.layers.",
        f"{ENCODER}final_norm.": "mega.final_norm.",
        "classifier.": "classifier.blocks.",
        "sentence_projection_layer.": "classifier.out_proj.",
    },
    layer=LAYER,
    layers=(f"{ENCODER}layers.",),
    dropped=DROPPED,
)
NAMES = {
    "hidden_size": "encoder_embed_dim",
    "intermediate_size": "encoder_hidden_dim",
    "nffn_hidden_size": "encoder_ffn_embed_dim",
    "shared_representation_size": "z_dim",
    "ema_projection_size": "n_dim",
    "chunk_size": "chunk_size",
    "normalization_type": "norm_type",
    "normalize_before_mega": "encoder_normalize_before",
    "hidden_dropout_prob": "act_dropout",
    "nffn_activation_dropout_prob": "act_dropout",
}
# the defaults of their code
ARENA = {
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "act_dropout": 0.0,
    "feature_dropout": False,
    "activation_fn": "silu",
    "attention_activation_fn": "relu2",
    "rel_pos_bias": "simple",
    "encoder_normalize_before": False,
    "normalize_embedding": False,
    "chunk_size": -1,
    "truncation_length": None,
    "classifier_layers": 1,
    "classifier_activation_fn": "gelu",
    "sen_rep_type": "mp",
    "use_p": False,
}
SPEECH = {
    **ARENA,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "attention_activation_fn": "laplace",
    "norm_type": "batchnorm",
    "encoder_normalize_before": True,
    "chunk_size": 1000,
    "truncation_length": 1000,
    "max_positions": 16000,
}
COMMANDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")


def plan_classifier(checkpoint: Checkpoint) -> Plan:
    """Plans the conversion of an `lra` or `sc_raw`."""
    tensors = checkpoint.tensors
    values = VALUES in tensors
    # only this one of the two value models has the setting
    speech = values and "input_type" not in checkpoint.arguments
    args = checkpoint.arguments.with_defaults(SPEECH if speech else ARENA)
    layers = args.integer("encoder_layers")
    check_layers(tensors, layers, f"{args.where}.encoder_layers", f"{ENCODER}layers.")
    if args.flag("use_p"):
        raise ConversionError(f"{args.where}.use_p=True has no meaning for a Mega")
    fields = layer_fields(args, NAMES, "max_positions", layers) | _head_fields(args, tensors)
    pairs = FIRST_BLOCK in tensors and tensors[FIRST_BLOCK].shape[-1] == 2 * fields["hidden_size"]
    if speech:
        fields["normalize_embeddings"] = False
        if fields["num_labels"] == len(COMMANDS):
            fields["id2label"] = dict(enumerate(COMMANDS))
            fields["label2id"] = {command: index for index, command in enumerate(COMMANDS)}
            del fields["num_labels"]
    if values:
        fields["input_type"] = "values"
    else:
        fields["vocab_size"] = rows_of(tensors, WORDS)
    config = made(args.where, lambda: MegaConfig(**fields))
    names, dropped = CLASSIFIER.apply(tensors)

    def trunk(w: Weights, inputs: dict[str, Tensor]) -> Results:
        given = inputs["input_values" if values else "input_ids"]
        real = inputs["attention_mask"].bool() if "attention_mask" in inputs else torch.ones_like(given).bool()
        return {"last_hidden_state": (reference.classifier_trunk(w, args, given, real), real)}

    def vector(w: Weights, inputs: dict[str, Tensor]) -> Tensor:
        hidden, real = trunk(w, inputs)["last_hidden_state"]
        assert real is not None
        return reference.sentence(args, hidden, real)

    def evaluate(w: Weights, inputs: dict[str, Tensor]) -> Results:
        vectors = vector(w, inputs)
        if pairs:
            second = {"input_ids": inputs["pair_input_ids"], "attention_mask": inputs["pair_attention_mask"]}
            vectors = torch.cat([vector(w, second), vectors], dim=-1)
        return {"logits": (reference.classify(w, args, vectors), None)}

    kind, task = ("speech", "audio-classification") if speech else ("pixels", "image-classification")
    model_class: type[Any] = MegaForAudioClassification if speech else MegaForSequenceClassification
    if not values:
        kind, task = ("pairs of texts" if pairs else "texts"), "text-classification"
        model_class = MegaForSequencePairClassification if pairs else MegaForSequenceClassification
    return Plan(
        source=f"classifier of {kind} of fairseq ({'sc_raw' if speech else 'lra'})",
        model_class=model_class,
        config=config,
        tensors=tensors,
        names=names,
        dropped=dropped,
        inputs=Inputs(
            kind="values" if values else "pairs" if pairs else "tokens",
            vocab_size=0 if values else fields["vocab_size"],
            pad=PAD,
            **bounds(config),
        ),
        evaluate=evaluate,
        evaluate_trunk=trunk,
        pipeline_tag=task,
        first="<CLS>" if args.get("sen_rep_type") == "cls" else None,
        added_tokens=("<CLS>",),
        settings=args.where,
        arguments=args,
        facts=checkpoint.facts,
        notes=[*checkpoint.notes, *_notes(args, values, speech)],
    )


def _head_fields(args: Arguments, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of pooling and head."""
    blocks = args.integer("classifier_layers", minimum=0)
    if blocks == 0:
        raise ConversionError(f"{args.where}.classifier_layers=0: a classifier here has at least one layer")
    pooling = args.choice("sen_rep_type", ("cls", "mp"))
    return {
        "num_labels": rows_of(tensors, CLASSES),
        "classifier_pooling": "mean" if pooling == "mp" else "cls",
        "classifier_head": "blocks",
        "classifier_hidden_sizes": [args.integer("classifier_out_dim")] * blocks,
        "classifier_activation": args.choice("classifier_activation_fn", ACTIVATIONS),
        "classifier_dropout": args.probability("dropout"),
    }


def _notes(args: Arguments, values: bool, speech: bool) -> list[str]:
    """A note on how input values must be scaled."""
    if speech:
        return [
            "it was trained on samples / 2^15, standardised at each position by the mean and deviation of that "
            "position over the training data; these are not in the file"
        ]
    if not values:
        return []
    given = args.values.get("pixel_normalization") or (0.5, 0.5)
    args.read.add("pixel_normalization")
    mean, deviation = given if isinstance(given, (list, tuple)) and len(given) == 2 else ("?", "?")
    return [f"it was trained on grey pixels, row by row: (pixel / 255 - {mean}) / {deviation}"]
