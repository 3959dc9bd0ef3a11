"""Reads the folders of a pretrained masked language model of the authors' layers, as on the hub in mnaylor/*:

`model_args.pkl` (settings), `encoder_weights.pt` (embeddings and layers) and `mlm_head_weights.pt` (the head).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..models.mega.configuration_mega import MegaConfig
from ..models.mega.modeling_mega import MegaForMaskedLM
from . import reference_fairseq as reference
from .arguments import Arguments
from .errors import ConversionError
from .fairseq import DEFAULTS, SIDE_NAMES
from .fairseq_fields import LAYER, PAD, bounds, layer_fields
from .plan import Inputs, KeyMap, Plan, Results, check_layers, made
from .reading import Bag, Progress, read_settings, read_state, read_torch
from .reference import Weights, linear

SETTINGS, ENCODER, HEAD = "model_args.pkl", "encoder_weights.pt", "mlm_head_weights.pt"

MASKED_MODEL = KeyMap(
    prefixes={
        "embedding_layer.weight": "mega.embedding_layer.word_embeddings.weight",
        "encoders.": "mega.layers.",
        "mlm_head.": "mlm_head.",
    },
    layer=LAYER,
    layers=("encoders.",),
    dropped={"_float_tensor": "uninitialised memory that fairseq keeps only for its type"},
)


def plan_masked_lm(folder: Path, progress: Progress) -> Plan:
    """Plans the conversion of such a folder.

    Raises:
        ConversionError: for files that are missing, damaged or do not match.
    """
    missing = [name for name in (SETTINGS, ENCODER, HEAD) if not (folder / name).is_file()]
    if missing:
        raise ConversionError(
            f"{folder} holds {', '.join(sorted({SETTINGS, ENCODER, HEAD} - set(missing)))}, as a pretrained masked "
            f"language model does, but not {' and '.join(missing)}"
        )
    args, depth, vocab_size = _settings(folder / SETTINGS)
    tensors = read_state(read_torch(folder / ENCODER, progress), f"{folder / ENCODER}")
    head = read_state(read_torch(folder / HEAD, progress), f"{folder / HEAD}")
    tensors |= {f"mlm_head.{name.removeprefix('mlm_head.')}": tensor for name, tensor in head.items()}
    check_layers(tensors, depth, f"{SETTINGS}: depth", "encoders.")

    names = {ours: theirs.format(side="encoder") for ours, theirs in SIDE_NAMES.items()}
    fields = layer_fields(args, names, "max_source_positions", depth)
    # the wrapper around the layers has neither a final norm nor any of the encoder's extras
    fields |= {"final_norm": False, "normalize_embeddings": False, "embedding_dropout_prob": 0.0}
    tables = [tensors.get(name) for name in ("embedding_layer.weight", "mlm_head.weight")]
    tied = all(table is not None for table in tables) and torch.equal(*tables)  # type: ignore[arg-type]
    fields |= {"vocab_size": vocab_size, "tie_word_embeddings": tied, "add_lm_hidden_dense_layer": False}
    config = made(SETTINGS, lambda: MegaConfig(**fields))
    ours, dropped = MASKED_MODEL.apply(tensors)

    def trunk(w: Weights, inputs: dict[str, Tensor]) -> Results:
        real = inputs["attention_mask"].bool()
        return {"last_hidden_state": (reference.masked_trunk(w, args, inputs["input_ids"], real), real)}

    def evaluate(w: Weights, inputs: dict[str, Tensor]) -> Results:
        hidden, real = trunk(w, inputs)["last_hidden_state"]
        return {"logits": (linear(w.within("mlm_head."), hidden), real)}

    return Plan(
        source="pretrained masked language model (model_args.pkl)",
        model_class=MegaForMaskedLM,
        config=config,
        tensors=tensors,
        names=ours,
        dropped=dropped,
        inputs=Inputs(vocab_size=vocab_size, pad=PAD, **bounds(config)),
        evaluate=evaluate,
        evaluate_trunk=trunk,
        pipeline_tag="fill-mask",
        settings=SETTINGS,
        arguments=args,
    )


def _settings(path: Path) -> tuple[Arguments, int, int]:
    """The layers' arguments, the number of layers and the vocabulary size."""
    content = read_settings(path)
    if not isinstance(content, dict):
        raise ConversionError(f"{path} must hold a dict with mega_args, depth and vocab_size")
    outer = Arguments({name: value for name, value in content.items() if isinstance(name, str)}, SETTINGS)
    args: Any = outer.get("mega_args")
    values = vars(args) if isinstance(args, Bag) else args
    if not isinstance(values, dict):
        raise ConversionError(f"{path}: mega_args must be an object with attributes, but is {type(args).__name__}")
    inner = Arguments(values, "mega_args", {**DEFAULTS, "truncation_length": None})
    if inner.values.get("bidirectional") is False:
        raise ConversionError(f"{path}: mega_args.bidirectional=False is not a masked language model")
    return inner, outer.integer("depth"), outer.integer("vocab_size")
