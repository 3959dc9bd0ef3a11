"""Makes the model of a recipe: a new Mega, another architecture to compare with, or a checkpoint to continue from.

A RecipeError reports fields that are unknown or invalid, and models that do not fit the task or cannot be loaded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, AutoConfig

from .. import MegaConfig
from ..assets import model_path
from ..errors import RecipeError, did_you_mean
from .recipe import Recipe

# keys of `model` besides fields of the configuration
CHECKPOINT, ARCHITECTURE, LEARNING_RATE = "checkpoint", "architecture", "learning_rate"
SIDES = ("encoder", "decoder")
WHOLE = ("share_embeddings", "tie_word_embeddings")
OF_LABELS = ("id2label", "label2id", "problem_type")


def section_of(recipe: Recipe) -> tuple[str, dict[str, Any]]:
    """The architecture (a model type of transformers), and its fields.

    `model` holds fields of `MegaConfig`; or `architecture`, and for each architecture a mapping of its fields.
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
    """The learning rate in an architecture's mapping, as a field of `TrainingArguments`; else empty."""
    return {key: value for key, value in section_of(recipe)[1].items() if key == LEARNING_RATE}


def build_config(recipe: Recipe, **decided: Any) -> Any:
    """The configuration of a new model, or of a checkpoint with the recipe's changes.

    Args:
        recipe: The recipe.
        decided: Fields set by tokenizer, labels and task; those that the architecture lacks are left out.
    """
    architecture, fields = section_of(recipe)
    fields.pop(LEARNING_RATE, None)
    if CHECKPOINT in recipe.model:
        checkpoint = recipe.model[CHECKPOINT]
        kind: Any = type(_loaded(AutoConfig, checkpoint))
        _check_fields(fields, kind, "model")
        labels = {key: value for key, value in decided.items() if key in OF_LABELS}
        return AutoConfig.from_pretrained(model_path(checkpoint), **{**labels, **fields})
    model_type = _model_type(architecture, recipe)
    kind = CONFIG_MAPPING[model_type]
    where = f"model.{architecture}" if isinstance(recipe.model.get(architecture), Mapping) else "model"
    if model_type == "mega_seq2seq":
        fields = _both_sides(fields, where, decided["vocab_size"])
    else:
        _check_fields(fields, kind, where)
    known = {*_fields(kind), "num_labels", *OF_LABELS}
    try:
        return kind(**{key: value for key, value in decided.items() if key in known} | fields)
    except Exception as error:  # the base class of the errors of @strict differs between versions of huggingface_hub
        raise RecipeError(f"{where}: {' '.join(str(error).split())}") from None


def _fields(kind: Any) -> list[str]:
    return [item.name for item in dataclasses.fields(kind)]


def _check_fields(fields: Mapping[str, Any], kind: Any, where: str, more: tuple[str, ...] = ()) -> None:
    known = (*_fields(kind), *more)
    for key in fields:
        if key not in known:
            hint = did_you_mean(key, known, "see its documentation")
            raise RecipeError(f"{where}.{key} is not a field of {kind.__name__}; {hint}")


def _both_sides(fields: dict[str, Any], where: str, vocab_size: int) -> dict[str, Any]:
    """Fields for both sides, fields of one side under `encoder` and `decoder`, and fields of the whole model."""
    _check_fields(fields, MegaConfig, where, (*SIDES, *WHOLE))
    whole = {key: fields[key] for key in WHOLE if key in fields}
    shared = {key: value for key, value in fields.items() if key not in (*SIDES, *WHOLE)}
    for side in SIDES:
        own = fields.get(side, {})
        if not isinstance(own, Mapping):
            raise RecipeError(f"{where}.{side} must be a mapping of fields of MegaConfig; got {own!r}")
        _check_fields(own, MegaConfig, f"{where}.{side}")
        whole[side] = {"vocab_size": vocab_size, **shared, **own}
    return whole


def _loaded(auto: Any, checkpoint: str, **options: Any) -> Any:
    try:
        return auto.from_pretrained(model_path(checkpoint), **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise RecipeError(f"model.checkpoint={checkpoint!r} cannot be loaded: {error}") from None


def build_model(recipe: Recipe, kind: Any, config: Any) -> Any:
    """A new model with random weights, or a checkpoint's.

    Args:
        recipe: The recipe.
        kind: Name of the Auto class of the task, or a class of Mega models.
        config: The result of `build_config`.
    """
    auto = getattr(transformers, kind) if isinstance(kind, str) else kind
    if type(config) not in getattr(auto, "_model_mapping", (MegaConfig,)):
        raise RecipeError(f"model.architecture={config.model_type!r} has no model for {recipe.task}")
    if CHECKPOINT in recipe.model:
        return _loaded(auto, recipe.model[CHECKPOINT], config=config, ignore_mismatched_sizes=True)
    return getattr(auto, "from_config", auto)(config)


def special_ids(tokenizer: Any) -> dict[str, Any]:
    """The fields of the configuration that the tokenizer sets."""
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
