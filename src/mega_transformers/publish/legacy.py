"""A folder for transformers 4.40.2, the last release with a Mega of its own: the same numbers, or what it lacks."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..convert.fairseq_fields import bounds
from ..convert.plan import Inputs
from ..convert.reading import read_json
from ..convert.transformers_folder import CONFIG, ENCODER_DECODER, GENERATION
from ..convert.verification import SHORT, deviation, random_inputs
from ..convert.writing import new_folder
from ..models.mega.configuration_mega import MegaConfig
from . import legacy_features
from .errors import PublishError
from .folder import (
    HALF,
    Folder,
    Stage,
    check_places,
    listed,
    model_classes,
    open_folder,
    stored_weights,
    write_weights,
)
from .legacy_features import VERSION
from .legacy_tokenizer import write_tokenizer
from .legacy_weights import WORDS, Trunk, adapt, trunk_of, widen_source

TOLERANCE = 2e-5
"""Greatest deviation that is let through, relative to 1 + the greatest number."""

OUTPUTS = ("logits", "start_logits", "end_logits", "last_hidden_state", "encoder_last_hidden_state")
HEADS = {"MegaForMaskedLM": "mlm_head", "MegaForCausalLM": "lm_head"}


@dataclass
class LegacyReport:
    """What was exported.

    Args:
        folder: Where it is.
        architecture: The class of 4.40.2 that loads it.
        files: Name within the folder -> its bytes, and what it is.
        changes: What of the model was written in another way.
        notes: Where 4.40.2 computes something else, or refuses.
        deviation: The greatest one between model and export, relative to 1 + the greatest number.
    """

    folder: Path
    architecture: str
    files: dict[str, tuple[int, str]]
    changes: list[str]
    notes: list[str]
    deviation: float


@dataclass
class _Export:
    """What is to be written."""

    architecture: str
    config: dict[str, Any]
    weights: dict[str, Tensor]
    decoder: MegaConfig | None
    trunks: list[Trunk] = field(default_factory=list)


def export_legacy(
    source: Path | str, output: Path | str, *, force: bool = False, stage: Stage = lambda _: None
) -> LegacyReport:
    """Writes a folder that transformers 4.40.2 loads and computes the same numbers with.

    Args:
        source: The folder of a model that this package loads; it is not changed.
        output: The folder to write, which must not be there yet.
        force: Whether to replace a model that is there.
        stage: Called with what is being done.

    Returns:
        What was done.

    Raises:
        ConversionError: for a damaged folder, and for a model that 4.40.2 lacks something for, with the fields that
            say so. Nothing is written then.
    """
    source, output = Path(source), Path(output)
    check_places(source, output, force)
    folder = open_folder(source, stage)
    lacking = legacy_features.lacking(folder.architecture, folder.model.config)
    if lacking:
        raise PublishError(f"{source}: transformers {VERSION} lacks " + "; ".join(lacking))
    stage("Making the weights")
    export = _pair(folder) if folder.model.config.is_encoder_decoder else _single(folder)
    notes = [note for trunk in export.trunks for note in legacy_features.restrictions(trunk.config)]
    notes += _settle_decoding(export)
    if any(tensor.dtype in HALF for tensor in export.weights.values()):
        notes.append("half precision: load it in float32, the default; its moving average is far off in less")
    with new_folder(output) as partial:
        stage("Writing the folder")
        write_weights(export.weights, partial)
        _write_json(partial / CONFIG, export.config)
        if export.decoder is not None:
            _write_json(partial / GENERATION, _generation(folder, export))
        for where, tokenizer in folder.tokenizers.items():
            write_tokenizer(tokenizer, partial / where)
        stage("Comparing both models")
        worst = _deviation(folder, export, partial)
        if not worst <= TOLERANCE:
            raise PublishError(
                f"{source}: the export deviates by {worst:.1e} relative, more than {TOLERANCE:.0e}; it is not kept"
            )
    return LegacyReport(
        folder=output,
        architecture=export.architecture,
        files=listed(output, {}),
        changes=list(dict.fromkeys(change for trunk in export.trunks for change in trunk.changes)),
        notes=list(dict.fromkeys(notes)),
        deviation=worst,
    )


def _single(folder: Folder) -> _Export:
    """Any model but an encoder-decoder, under the name it has."""
    model, weights = folder.model, stored_weights(folder, tied=True)
    prefix, head = "" if folder.architecture == "MegaModel" else "mega.", HEADS.get(folder.architecture)
    words = weights.get(prefix + WORDS)
    trunk = trunk_of(model.base_model, weights, prefix)
    adapt(trunk)
    if head is not None:
        tied = trunk.config.tie_word_embeddings and torch.equal(weights[prefix + WORDS], words)  # type: ignore[arg-type]
        trunk.fields["tie_word_embeddings"] = tied
        if tied:
            del weights[f"{head}.weight"]
        elif trunk.config.tie_word_embeddings:
            trunk.changes.append("tie_word_embeddings=True: the output projection is a table of its own")
    config = {"architectures": [folder.architecture], **trunk.fields}
    return _Export(folder.architecture, config, weights, trunk.config if head == "lm_head" else None, [trunk])


def _pair(folder: Folder) -> _Export:
    """An encoder-decoder, as transformers' `EncoderDecoderModel` of two Megas."""
    model, weights = folder.model, stored_weights(folder, tied=True)
    if folder.architecture != ENCODER_DECODER:
        weights = {_renamed(name): tensor for name, tensor in weights.items()}
        weights["decoder.lm_head.bias"] = torch.zeros(model.config.decoder.vocab_size)
        encoder, decoder = model.model.encoder, model.model.decoder
    else:
        encoder, decoder = model.encoder, model.decoder.base_model
    width = encoder.config.hidden_size
    # what it makes an encoder with, and nothing reads
    weights.setdefault("encoder.pooler.dense.weight", torch.zeros(width, width))
    weights.setdefault("encoder.pooler.dense.bias", torch.zeros(width))
    trunks = [trunk_of(encoder, weights, "encoder."), trunk_of(decoder, weights, "decoder.mega.")]
    for trunk in trunks:
        adapt(trunk)
        # the wrapper ties nothing when it is loaded
        trunk.fields["tie_word_embeddings"] = False
        # 4.40.2 wrote it, and no version: `MegaConfig` knows one of 4.x inside another by it
        trunk.fields["tf_legacy_loss"] = False
    weights |= widen_source(trunks[1])
    if folder.architecture != ENCODER_DECODER:
        trunks[1].fields["add_lm_hidden_dense_layer"] = False
    trunks[1].changes.append("the output projection and both tables of words are written separately")
    config = {
        "architectures": [ENCODER_DECODER],
        "model_type": "encoder-decoder",
        "is_encoder_decoder": True,
        "tie_encoder_decoder": False,
        "tie_word_embeddings": False,
        "encoder": trunks[0].fields,
        "decoder": trunks[1].fields,
        "vocab_size": decoder.config.vocab_size,
        **_special_ids(model.config, decoder.config),
    }
    return _Export(ENCODER_DECODER, config, weights, decoder.config, trunks)


def _renamed(name: str) -> str:
    """A weight's name in an `EncoderDecoderModel`."""
    for ours, theirs in (("model.encoder.", "encoder."), ("model.decoder.", "decoder.mega.")):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return f"decoder.{name}"


def _special_ids(*configs: Any) -> dict[str, Any]:
    """Ids of special tokens, by the first configuration that has them."""
    names = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
    found = {name: next((v for c in configs if (v := getattr(c, name, None)) is not None), None) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _settle_decoding(export: _Export) -> list[str]:
    """Turns off the cache of a decoder that 4.40.2 decodes wrongly with one."""
    fields = [] if export.decoder is None else legacy_features.decodes_wrongly(export.decoder)
    if not fields:
        return []
    export.trunks[-1].fields["use_cache"] = False
    if export.architecture != ENCODER_DECODER:
        export.config["use_cache"] = False
    return [f"{', '.join(fields)}: it decodes wrongly with a cache, so use_cache is off: slower, and right"]


def _generation(folder: Folder, export: _Export) -> dict[str, Any]:
    """generation_config.json, as far as 4.40.2 knows it."""
    path = folder.path / GENERATION
    given = read_json(path) if path.is_file() else {}
    known = {
        name: value for name, value in given.items() if name in legacy_features.GENERATION_FIELDS and value is not None
    }
    cached = export.trunks[-1].fields["use_cache"] or not legacy_features.decodes_wrongly(export.trunks[-1].config)
    ids = _special_ids(folder.model.config, export.decoder)
    return {**ids, **known, "use_cache": cached, "transformers_version": VERSION}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    if path.name == CONFIG:
        content = {**content, "torch_dtype": "float32", "transformers_version": VERSION}
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _deviation(folder: Folder, export: _Export, written: Path) -> float:
    """The greatest deviation of what was written from the model, for random inputs: both mean what 4.40.2 does."""
    model_class = model_classes()[export.architecture]
    config = model_class.config_class.from_pretrained(written)
    for side in (config, getattr(config, "encoder", None), getattr(config, "decoder", None)):
        if isinstance(side, MegaConfig):
            side.legacy_unnormalized_rmsnorm = True
    arguments = {"add_pooling_layer": folder.model.pooler is not None} if export.architecture == "MegaModel" else {}
    again = model_class.from_pretrained(written, config=config, dtype=torch.float32, **arguments).eval()
    kind = _inputs(folder, export)
    lengths = [length if kind.limit is None else min(length, kind.limit) for length in SHORT]
    inputs = random_inputs(kind, lengths, torch.Generator().manual_seed(0))
    options = {"use_cache": False} if export.decoder is not None else {}
    with torch.no_grad():
        expected, actual = (model(**inputs, **options) for model in (folder.model, again))
    masks = [inputs[name].bool() for name in ("decoder_attention_mask", "attention_mask") if name in inputs]
    worst = 0.0
    for name in OUTPUTS:
        if expected.get(name) is not None:
            mask = next((each for each in masks if each.shape == expected[name].shape[:2]), None)
            mask = None if "encoder" in name or expected[name].dim() < 2 else mask
            worst = max(worst, deviation(actual[name], expected[name].double(), mask))
    return worst


def _inputs(folder: Folder, export: _Export) -> Inputs:
    """What random inputs have to be like."""
    first, last = export.trunks[0].config, export.trunks[-1].config
    limits = [bounds(each.config)["limit"] for each in export.trunks]
    if last.add_cross_attention and last.relative_positional_bias == "simple":
        limits.append(last.positions_of_simple_bias(crossing=True))
    kind = "choices" if export.architecture == "MegaForMultipleChoice" else "tokens"
    if len(export.trunks) > 1:
        kind = "text to text"
    elif last.add_cross_attention:
        kind = "tokens and source"
    return Inputs(
        kind=kind,
        vocab_size=first.vocab_size,
        pad=first.pad_token_id,
        target_vocab_size=last.vocab_size,
        types=first.type_vocab_size if first.add_token_type_embeddings else 0,
        source_width=last.cross_attention_hidden_size or last.hidden_size,
        limit=min((limit for limit in limits if limit is not None), default=None),
    )
