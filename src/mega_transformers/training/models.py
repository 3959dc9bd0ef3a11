"""A recipe's `model` as a model: a new Mega, another architecture to compare with, or a checkpoint to go on from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, AutoConfig

from .. import MegaConfig
from ..errors import RecipeError, did_you_mean
from .recipe import Recipe

# read here: what stands in `model` beside fields of the configuration
CHECKPOINT, ARCHITECTURE, LEARNING_RATE = "checkpoint", "architecture", "learning_rate"
SIDES = ("encoder", "decoder")
WHOLE = ("share_embeddings", "tie_word_embeddings")


def section_of(recipe: Recipe) -> tuple[str, dict[str, Any]]:
    """The architecture (a model type of transformers), and its fields.

    `model` holds fields of `MegaConfig`; or `architecture`, and for each architecture a mapping of its fields. For
    text-to-text it always holds such mappings.

    Raises:
        RecipeError: for an architecture that is unknown or has no mapping.
    """
    model = {key: value for key, value in recipe.model.items() if key != CHECKPOINT}
    sections = ARCHITECTURE in model or (bool(model) and all(isinstance(part, Mapping) for part in model.values()))
    if not sections:
        return "mega", model
    architecture = str(model.pop(ARCHITECTURE, "mega"))
    for name in (architecture, *model):
        if _model_type(name, recipe) not in CONFIG_MAPPING:
            hint = did_you_mean(name, list(CONFIG_MAPPING), "see the model types of transformers")
            raise RecipeError(f"model: the architecture {name!r} is unknown; {hint}")
    if not isinstance(model.get(architecture), Mapping):
        raise RecipeError(
            f"model.{architecture} must be a mapping of the model's fields; got {model.get(architecture)!r}"
        )
    return architecture, dict(model[architecture])


def _model_type(architecture: str, recipe: Recipe) -> str:
    return "mega_seq2seq" if (architecture, recipe.task) == ("mega", "text-to-text") else architecture


def learning_rate_of(recipe: Recipe) -> dict[str, Any]:
    """The learning rate that an architecture's mapping gives, as a field of `TrainingArguments`; else nothing."""
    _, fields = section_of(recipe)
    return {LEARNING_RATE: fields[LEARNING_RATE]} if LEARNING_RATE in fields else {}


def build_config(recipe: Recipe, **decided: Any) -> Any:
    """The configuration of a new model, or of a checkpoint with the recipe's changes.

    Args:
        recipe: The recipe.
        decided: Fields that tokenizer, labels and task decide; those that the architecture lacks are left out.

    Raises:
        RecipeError: for fields that the configuration does not have or refuses, and a checkpoint that is not there.
    """
    architecture, fields = section_of(recipe)
    fields.pop(LEARNING_RATE, None)
    if CHECKPOINT in recipe.model:
        try:
            kind: Any = type(AutoConfig.from_pretrained(recipe.model[CHECKPOINT]))
        except (OSError, ValueError) as error:
            raise RecipeError(f"model.checkpoint={recipe.model[CHECKPOINT]!r} cannot be loaded: {error}") from None
        _check_fields(fields, kind, "model")
        names = ("id2label", "label2id", "problem_type")
        labels = {key: value for key, value in decided.items() if key in names}
        return AutoConfig.from_pretrained(recipe.model[CHECKPOINT], **dict(labels, **fields))
    model_type = _model_type(architecture, recipe)
    kind = CONFIG_MAPPING[model_type]
    where = f"model.{architecture}" if isinstance(recipe.model.get(architecture), Mapping) else "model"
    if model_type == "mega_seq2seq":
        fields = _both_sides(fields, where, decided["vocab_size"])
    else:
        _check_fields(fields, kind, where)
    known = _fields(kind) | {"num_labels", "id2label", "label2id", "problem_type"}
    try:
        return kind(**{**{key: value for key, value in decided.items() if key in known}, **fields})
    except Exception as error:  # the base class of what @strict raises differs between versions of huggingface_hub
        raise RecipeError(f"{where}: {' '.join(str(error).split())}") from None


def _fields(kind: Any) -> set[str]:
    return {item.name for item in dataclasses.fields(kind)}


def _check_fields(fields: Mapping[str, Any], kind: Any, where: str, more: tuple[str, ...] = ()) -> None:
    known = {*_fields(kind), *more}
    for key in fields:
        if key not in known:
            hint = did_you_mean(key, known, "see its documentation")
            raise RecipeError(f"{where}.{key} is not a field of {kind.__name__}; {hint}")


def _both_sides(fields: dict[str, Any], where: str, vocab_size: int) -> dict[str, Any]:
    """Fields for both sides, those of one side under `encoder` and `decoder`, and those of the whole."""
    one_side = CONFIG_MAPPING["mega"]
    own = {key: fields[key] for key in WHOLE if key in fields}
    shared = {key: value for key, value in fields.items() if key not in (*SIDES, *own)}
    for key in SIDES:
        if not isinstance(fields.get(key, {}), Mapping):
            raise RecipeError(f"{where}.{key} must be a mapping of fields of MegaConfig; got {fields[key]!r}")
        _check_fields(fields.get(key, {}), one_side, f"{where}.{key}")
    _check_fields(shared, one_side, where, (*SIDES, *WHOLE))
    return {**own, **{side: {"vocab_size": vocab_size, **shared, **fields.get(side, {})} for side in SIDES}}


def build_model(recipe: Recipe, kind: Any, config: Any) -> Any:
    """A new model with random weights, or a checkpoint's.

    Args:
        recipe: The recipe.
        kind: Name of the Auto class of the task, or a class of Mega models.
        config: Of `build_config`.

    Raises:
        RecipeError: for an architecture that has no model for the task, and a checkpoint that cannot be loaded.
    """
    auto = getattr(transformers, kind) if isinstance(kind, str) else kind
    if type(config) not in getattr(auto, "_model_mapping", (MegaConfig,)):
        raise RecipeError(f"model.architecture={config.model_type!r} has no model for {recipe.task}")
    if CHECKPOINT not in recipe.model:
        return getattr(auto, "from_config", auto)(config)
    try:
        return auto.from_pretrained(recipe.model[CHECKPOINT], config=config, ignore_mismatched_sizes=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise RecipeError(f"model.checkpoint={recipe.model[CHECKPOINT]!r} cannot be loaded: {error}") from None


def special_ids(tokenizer: Any) -> dict[str, Any]:
    """The configuration's fields that the tokenizer decides."""
    start = tokenizer.bos_token_id if tokenizer.cls_token_id is None else tokenizer.cls_token_id
    end = tokenizer.eos_token_id if tokenizer.sep_token_id is None else tokenizer.sep_token_id
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": start,
        "eos_token_id": end,
        # ModernBERT's names
        "cls_token_id": start,
        "sep_token_id": end,
    }
