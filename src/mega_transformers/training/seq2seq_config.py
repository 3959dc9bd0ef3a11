"""A recipe's `model` for text-to-text as a configuration, of Mega or of an architecture to compare with."""

from __future__ import annotations

import dataclasses
from typing import Any

from .recipe import Recipe, checked_number
from .schema import RecipeError, did_you_mean

# architecture -> its classes in transformers; Mega's are this package's own
PEERS = {
    "bart": ("BartConfig", "BartForConditionalGeneration"),
    "marian": ("MarianConfig", "MarianMTModel"),
}
ARCHITECTURES = ("mega", *PEERS)
# read by `section_of`: what stands in an architecture's section beside fields of its configuration
LEARNING_RATE = "learning_rate"
# fields of `MegaSeq2SeqConfig` beside those of its sides
WHOLE = ("share_embeddings", "tie_word_embeddings")


def section_of(recipe: Recipe) -> tuple[str, dict[str, Any]]:
    """The chosen architecture, and its section of `model`.

    Raises:
        RecipeError: for an architecture that is unknown or has no section.
    """
    architecture = recipe.model.get("architecture", "mega")
    if architecture not in ARCHITECTURES:
        raise RecipeError(f"model.architecture={architecture!r} is unknown; known are {', '.join(ARCHITECTURES)}")
    for key in recipe.model:
        if key not in ("architecture", *ARCHITECTURES):
            raise RecipeError(f"model.{key} is unknown; known are architecture, {', '.join(ARCHITECTURES)}")
    section = recipe.model.get(architecture)
    if not isinstance(section, dict):
        raise RecipeError(f"model.{architecture} must be a mapping of the model's fields; got {section!r}")
    return architecture, section


def learning_rate_of(recipe: Recipe) -> dict[str, Any]:
    """The learning rate that the architecture's section gives, as a field of `TrainingArguments`; else nothing."""
    architecture, section = section_of(recipe)
    if LEARNING_RATE not in section:
        return {}
    where = f"model.{architecture}.{LEARNING_RATE}"
    return {LEARNING_RATE: checked_number(LEARNING_RATE, section[LEARNING_RATE], where)}


def built_fields(recipe: Recipe) -> dict[str, Any]:
    """The part of `model` that makes the model: the architecture, and the fields of its section."""
    architecture, section = section_of(recipe)
    return {"architecture": architecture, **{key: section[key] for key in section if key != LEARNING_RATE}}


def build_config(recipe: Recipe, vocab_size: int, special_ids: dict[str, int] | None = None) -> Any:
    """The configuration of the architecture that `model.architecture` names, `"mega"` if it names none.

    `model.mega` holds fields of `MegaConfig` for both sides, those of one side under `encoder` and `decoder`, and
    fields of `MegaSeq2SeqConfig`; `model.bart` and `model.marian` hold fields of transformers' configurations. Each
    may have a `learning_rate` of its own.

    Args:
        recipe: The recipe.
        vocab_size: Entries of the tokenizer.
        special_ids: `pad_token_id`, `bos_token_id` and `eos_token_id`; 1, 0 and 2 for None.

    Raises:
        RecipeError: for fields that the configuration does not have or refuses.
    """
    fields = built_fields(recipe)
    architecture = fields.pop("architecture")
    special = special_ids or {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    # as BART: what a target begins behind is the end of what came before
    special = {**special, "decoder_start_token_id": special["eos_token_id"]}
    build = _mega if architecture == "mega" else _peer
    return build(architecture, fields, vocab_size, special)


def build_model(recipe: Recipe, config: Any) -> Any:
    """A new model with random weights, for a configuration of `build_config`."""
    architecture, _ = section_of(recipe)
    if architecture == "mega":
        from ..models.mega.modeling_mega_seq2seq import MegaForConditionalGeneration

        return MegaForConditionalGeneration(config)
    import transformers

    return getattr(transformers, PEERS[architecture][1])(config)


def _mega(architecture: str, fields: dict[str, Any], vocab_size: int, special: dict[str, int]) -> Any:
    from ..models.mega.configuration_mega import MegaConfig
    from ..models.mega.configuration_mega_seq2seq import MegaSeq2SeqConfig

    one_side = {item.name for item in dataclasses.fields(MegaConfig)}
    sides: dict[str, dict[str, Any]] = {"encoder": {"vocab_size": vocab_size}, "decoder": {"vocab_size": vocab_size}}
    whole = {}
    for key, value in fields.items():
        if key in sides:
            if not isinstance(value, dict):
                raise RecipeError(f"model.mega.{key} must be a mapping of fields of MegaConfig; got {value!r}")
        elif key in WHOLE:
            whole[key] = value
        elif key in one_side:
            for side in sides.values():
                side[key] = value
        else:
            hint = did_you_mean(key, [*sides, *WHOLE, *one_side], f"nor one of {', '.join([*sides, *WHOLE])}")
            raise RecipeError(f"model.mega.{key} is not a field of MegaConfig; {hint}")
    for name, side in sides.items():
        for key, value in fields.get(name, {}).items():
            if key not in one_side:
                hint = did_you_mean(key, one_side, "see its documentation")
                raise RecipeError(f"model.mega.{name}.{key} is not a field of MegaConfig; {hint}")
            side[key] = value
    return _made(architecture, MegaSeq2SeqConfig, {**sides, **whole, **special})


def _peer(architecture: str, fields: dict[str, Any], vocab_size: int, special: dict[str, int]) -> Any:
    import transformers

    kind = getattr(transformers, PEERS[architecture][0])
    known = {item.name for item in dataclasses.fields(kind)}
    for key in fields:
        if key not in known:
            hint = did_you_mean(key, known, "see its documentation")
            raise RecipeError(f"model.{architecture}.{key} is not a field of {kind.__name__}; {hint}")
    # an end that is put behind outputs of the greatest length would be one of another vocabulary
    own = {"vocab_size": vocab_size, "decoder_vocab_size": vocab_size, "forced_eos_token_id": None, "num_labels": 2}
    return _made(architecture, kind, {**{key: own[key] for key in own if key in known}, **special, **fields})


def _made(architecture: str, kind: Any, fields: dict[str, Any]) -> Any:
    try:
        return kind(**fields)
    except Exception as error:  # the base class of what @strict raises differs between versions of huggingface_hub
        raise RecipeError(f"model.{architecture}: {' '.join(str(error).split())}") from None
