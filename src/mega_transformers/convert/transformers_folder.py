"""Folders of transformers 4.40.2 and of earlier revisions, whose weights had other names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from ..models.mega import modeling_mega
from ..models.mega import modeling_mega_classification as heads
from ..models.mega.configuration_mega import MegaConfig
from . import reference_transformers as reference
from .arguments import Arguments
from .errors import ConversionError
from .fairseq_fields import LAYER, MAX_POSITIONS, bounds
from .plan import CHOICES, ZEROS, Inputs, KeyMap, Plan, Results, check_layers, made
from .reading import Progress, read_json, read_safetensors, read_state, read_torch
from .reference import Weights, linear

CONFIG, GENERATION = "config.json", "generation_config.json"
WEIGHTS = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
LAYERS = ("layers.", "encoders.")

# names of earlier revisions -> 4.40.2's, within a layer; some revisions had the authors' names
REVISIONS = {
    **LAYER,
    "mega_layer.move": "mega_layer.ema_gate",
    "mega_layer.ema_gate.delta": "mega_layer.ema_gate.damping_factor",
    "mega_layer.ema_gate.alpha": "mega_layer.ema_gate.decay_factor",
    "mega_layer.ema_gate.beta": "mega_layer.ema_gate.ema_expansion_matrix",
    "mega_layer.ema_gate.gamma": "mega_layer.ema_gate.kernel_projection_matrix",
    "mega_layer.ema_gate.omega": "mega_layer.ema_gate.residual_weight",
}
DROPPED = {"_float_tensor": "uninitialised memory that transformers 4 kept only for its type"}


ENCODER_DECODER = "EncoderDecoderModel"


def key_map(*trunks: str) -> KeyMap:
    """The name map of a model whose layer names begin with one of `trunks`, such as "mega."."""
    prefixes = {"": ""}
    for trunk in trunks:
        prefixes |= {trunk + layers: trunk + "layers." for layers in LAYERS}
        prefixes[f"{trunk}embedding_layer.weight"] = f"{trunk}embedding_layer.word_embeddings.weight"
    return KeyMap(prefixes, REVISIONS, tuple(trunk + layers for trunk in trunks for layers in LAYERS), DROPPED)


@dataclass(frozen=True)
class Head:
    """One of 4.40.2's classes.

    Args:
        model_class: Our class of that name.
        tag: The hub's name of its task.
        outputs: Weights, configuration, the trunk's hidden states and which of their tokens are real -> outputs.
        sign: A weight name that only this class has, for folders that do not name their class.
        inputs: Its inputs, as in `Inputs`.
    """

    model_class: type[Any]
    tag: str
    outputs: Callable[[Weights, Arguments, Tensor, Tensor], Results]
    sign: str
    inputs: str = "tokens"


def _bare(w: Weights, config: Arguments, hidden: Tensor, real: Tensor) -> Results:
    results: Results = {"last_hidden_state": (hidden, real)}
    if w.within("pooler."):
        results["pooler_output"] = (reference.pooled(w, hidden), None)
    return results


def _masked(w: Weights, config: Arguments, hidden: Tensor, real: Tensor) -> Results:
    return {"logits": (reference.word_logits(w, hidden, "mlm_head", config), real)}


def _causal(w: Weights, config: Arguments, hidden: Tensor, real: Tensor) -> Results:
    return {"logits": (reference.word_logits(w, hidden, "lm_head", config), real)}


def _sequence(w: Weights, config: Arguments, hidden: Tensor, real: Tensor) -> Results:
    return {"logits": (reference.sequence_logits(w, hidden), None)}


def _token(w: Weights, config: Arguments, hidden: Tensor, real: Tensor) -> Results:
    return {"logits": (linear(w.within("classifier."), hidden), real)}


def _choice(w: Weights, config: Arguments, hidden: Tensor, real: Tensor) -> Results:
    logits = linear(w.within("classifier."), reference.pooled(w.within("mega."), hidden))
    return {"logits": (logits.view(-1, CHOICES), None)}


def _answer(w: Weights, config: Arguments, hidden: Tensor, real: Tensor) -> Results:
    logits = linear(w.within("qa_outputs."), hidden)
    return {"start_logits": (logits[..., 0], real), "end_logits": (logits[..., 1], real)}


# the order matters for folders that do not name their class: the first matching sign wins
KINDS = {
    "MegaForMaskedLM": Head(modeling_mega.MegaForMaskedLM, "fill-mask", _masked, "mlm_head."),
    "MegaForCausalLM": Head(modeling_mega.MegaForCausalLM, "text-generation", _causal, "lm_head."),
    "MegaForQuestionAnswering": Head(heads.MegaForQuestionAnswering, "question-answering", _answer, "qa_outputs."),
    "MegaForSequenceClassification": Head(
        heads.MegaForSequenceClassification, "text-classification", _sequence, "classifier.out_proj."
    ),
    "MegaForMultipleChoice": Head(
        heads.MegaForMultipleChoice, "multiple-choice", _choice, "mega.pooler.", inputs="choices"
    ),
    "MegaForTokenClassification": Head(
        heads.MegaForTokenClassification, "token-classification", _token, "classifier."
    ),
    "MegaModel": Head(modeling_mega.MegaModel, "feature-extraction", _bare, ""),
}


def plan_transformers(folder: Path, progress: Progress) -> Plan:
    """Plans the conversion of such a folder.

    Raises:
        ConversionError: for files that are missing, damaged or do not match, and for folders that need no conversion.
    """
    raw = read_json(folder / CONFIG)
    _check_model_type(folder, raw)
    tensors = read_weights(folder, progress)
    facts = {"transformers": str(raw["transformers_version"])[:20]} if raw.get("transformers_version") else {}
    generation = read_json(folder / GENERATION) if (folder / GENERATION).is_file() else None
    if raw["model_type"] == "encoder-decoder":
        return _plan_pair(raw, tensors, facts, generation)
    name, kind = _kind(raw, tensors)
    trunk = "" if name == "MegaModel" else "mega."
    config, args, notes = _config(raw, tensors, trunk, causal=name == "MegaForCausalLM")
    names, dropped = key_map(trunk).apply(tensors)
    words = names.get(trunk + "embedding_layer.word_embeddings.weight")
    head = names.get("mlm_head.weight") or names.get("lm_head.weight")
    untied = words is not None and head is not None and not torch.equal(tensors[head], tensors[words])
    if untied and config.tie_word_embeddings:
        config.tie_word_embeddings = False
        notes.append(f"{head} differs from {words}: the result does not tie them")

    def run(w: Weights, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        real = inputs["attention_mask"].bool()
        source = [inputs[name] for name in ("encoder_hidden_states", "encoder_attention_mask") if name in inputs]
        if source:
            source = [source[0].double(), source[1].bool()]
        hidden = reference.trunk(
            w.within(trunk), args, inputs["input_ids"], real, inputs.get("token_type_ids"), *source
        )
        return hidden, real

    def evaluate(w: Weights, inputs: dict[str, Tensor]) -> Results:
        if kind.inputs == "choices":
            inputs = {name: tensor.flatten(0, 1) for name, tensor in inputs.items()}
        return kind.outputs(w, args, *run(w, inputs))

    return Plan(
        source=f"{name} of transformers 4",
        model_class=kind.model_class,
        config=config,
        tensors=tensors,
        names=names,
        dropped=dropped,
        inputs=_inputs(config, kind.inputs),
        evaluate=evaluate,
        evaluate_trunk=lambda w, inputs: {"last_hidden_state": run(w, inputs)},
        pipeline_tag=kind.tag,
        generation=generation if name == "MegaForCausalLM" else None,
        settings=CONFIG,
        model_arguments={"add_pooling_layer": "pooler.dense.weight" in names} if name == "MegaModel" else {},
        notes=notes,
        facts=facts,
    )


def _plan_pair(
    raw: dict[str, Any], tensors: dict[str, Tensor], facts: dict[str, str], generation: dict[str, Any] | None
) -> Plan:
    """Plans the conversion of transformers' `EncoderDecoderModel` of two Megas."""
    sides = {}
    for side, trunk in (("encoder", "encoder."), ("decoder", "decoder.mega.")):
        fields = raw.get(side)
        if not isinstance(fields, dict) or fields.get("model_type") != "mega":
            raise ConversionError(f"{CONFIG}: {side} is not a Mega model")
        sides[side] = _config(fields, tensors, trunk, causal=side == "decoder")
    (encoder, encoder_args, notes), (decoder, decoder_args, more) = sides["encoder"], sides["decoder"]
    config = made(CONFIG, lambda: transformers.EncoderDecoderConfig.from_dict(dict(raw)))
    names, dropped = key_map("encoder.", "decoder.mega.").apply(tensors)
    for name in ("weight", "bias"):
        # the wrapper gives the encoder a pooler that nothing reads
        names.setdefault(f"encoder.pooler.dense.{name}", ZEROS)

    def evaluate(w: Weights, inputs: dict[str, Tensor]) -> Results:
        real, target_real = inputs["attention_mask"].bool(), inputs["decoder_attention_mask"].bool()
        source = reference.trunk(w.within("encoder."), encoder_args, inputs["input_ids"], real)
        given = linear(w.within("enc_to_dec_proj."), source) if w.within("enc_to_dec_proj.") else source
        inside = w.within("decoder.")
        hidden = reference.trunk(
            inside.within("mega."), decoder_args, inputs["decoder_input_ids"], target_real, None, given, real
        )
        logits = reference.word_logits(inside, hidden, "lm_head", decoder_args)
        return {"encoder_last_hidden_state": (source, real), "logits": (logits, target_real)}

    limits = [bounds(encoder), bounds(decoder)]
    if decoder.relative_positional_bias == "simple":
        limits.append({"limit": decoder.positions_of_simple_bias(cross_attention=True), "borders": ()})
    return Plan(
        source="EncoderDecoderModel of transformers 4",
        model_class=transformers.EncoderDecoderModel,
        config=config,
        tensors=tensors,
        names=names,
        dropped=dropped,
        inputs=Inputs(
            kind="text to text",
            vocab_size=encoder.vocab_size,
            target_vocab_size=decoder.vocab_size,
            pad=decoder.pad_token_id,
            limit=min((each["limit"] for each in limits if each["limit"] is not None), default=None),
            borders=tuple(sorted({border for each in limits for border in each["borders"]})),
        ),
        evaluate=evaluate,
        evaluate_trunk=evaluate,
        pipeline_tag="translation",
        generation=generation,
        settings=CONFIG,
        notes=[*notes, *more],
        facts=facts,
    )


def files_of(folder: Path) -> list[Path]:
    """The source files of a conversion of `folder`."""
    names = {CONFIG, *(name for name in WEIGHTS if (folder / name).is_file())}
    for name in names & {name for name in WEIGHTS if name.endswith(".json")}:
        names |= set(read_json(folder / name)["weight_map"].values())
    return sorted(folder / name for name in names)


def read_weights(folder: Path, progress: Progress) -> dict[str, Tensor]:
    """All weights of a folder, from one file or from the files of an index.

    Raises:
        ConversionError: for files that are missing or damaged.
    """
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise ConversionError(f"{folder} holds {CONFIG}, but no weights: none of {', '.join(WEIGHTS)}")
    if found.suffix != ".json":
        return _read_file(found, progress)
    index = read_json(found).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(file, str) for file in index.values()):
        raise ConversionError(f"{found} must name the file of every weight (weight_map)")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(index.values())):
        if Path(name).name != name or not (folder / name).is_file():
            raise ConversionError(f"{found} names {name!r}, which is not a file in {folder}")
        tensors |= _read_file(folder / name, progress)
    missing = sorted(index.keys() - tensors.keys())
    if missing:
        raise ConversionError(f"{found} names weights that its files do not hold, such as {missing[0]}")
    return tensors


def _read_file(path: Path, progress: Progress) -> dict[str, Tensor]:
    content = read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path, progress)
    return read_state(content, str(path))


def _check_model_type(folder: Path, raw: dict[str, Any]) -> None:
    kind = raw.get("model_type")
    if kind not in ("mega", "encoder-decoder"):
        raise ConversionError(f"{folder / CONFIG}: model_type={kind!r} is not a Mega model")
    version = raw.get("transformers_version")
    if isinstance(version, str) and version.partition(".")[0].isdigit() and int(version.partition(".")[0]) >= 5:
        raise ConversionError(
            f"{folder} was saved by transformers {version}: it needs no conversion; load it as it is"
        )


def _kind(raw: dict[str, Any], tensors: Mapping[str, Tensor]) -> tuple[str, Head]:
    """The class that the folder names, or that its weights imply."""
    named = raw.get("architectures")
    if isinstance(named, list) and named:
        if named[0] not in KINDS:
            raise ConversionError(f"{CONFIG}: architectures={named} is not a Mega class of transformers 4")
        return named[0], KINDS[named[0]]
    for name, kind in KINDS.items():
        if any(key.startswith(kind.sign) for key in tensors):
            return name, kind
    raise ConversionError("the folder holds no weights")


def _config(
    raw: dict[str, Any], tensors: Mapping[str, Tensor], trunk: str, causal: bool
) -> tuple[MegaConfig, Arguments, list[str]]:
    """The configuration, its fields for the reference, and notes for the user."""
    args = Arguments(raw, CONFIG, MegaConfig().to_dict())
    stated = args.integer("num_hidden_layers")
    check_layers(tensors, stated, f"{CONFIG}: num_hidden_layers", *(trunk + layers for layers in LAYERS))
    if args.integer("max_positions") > MAX_POSITIONS:
        raise ConversionError(f"{CONFIG}: max_positions={args.get('max_positions')} is not a number of positions")
    if causal:
        raw = {**raw, "is_decoder": True}
        args.values["is_decoder"] = True
    config = made(CONFIG, lambda: MegaConfig.from_dict(dict(raw)))
    notes = []
    if config.normalization_type == "rmsnorm" and config.legacy_unnormalized_rmsnorm is None:
        notes.append(
            "transformers 4's rmsnorm did not normalise; that of the converted model does. If the model was trained "
            "with transformers 4, set legacy_unnormalized_rmsnorm to true in the result's config.json"
        )
    if causal and config.attention_activation != "softmax":
        notes.append(
            f"transformers 4 decoded {config.attention_activation} attention incorrectly with a cache; the converted "
            "model gives the numbers of a forward pass over the whole text"
        )
    if causal and config.truncation is not None:
        notes.append(
            "transformers 4 did not truncate with a cache (its default); the converted model always truncates"
        )
    return config, args, notes


def _inputs(config: MegaConfig, kind: str) -> Inputs:
    limit = bounds(config)
    if config.add_cross_attention:
        kind = "tokens and source"
        if config.relative_positional_bias == "simple":
            cross = config.positions_of_simple_bias(cross_attention=True)
            limit["limit"] = min(cross, limit["limit"] or cross)
    return Inputs(
        kind=kind,
        vocab_size=config.vocab_size,
        pad=config.pad_token_id,
        types=config.type_vocab_size if config.add_token_type_embeddings else 0,
        source_width=config.cross_attention_hidden_size or config.hidden_size,
        **limit,
    )
