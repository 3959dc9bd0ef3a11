"""A recipe's `model` as a configuration, for every task."""

from __future__ import annotations

import dataclasses
from typing import Any

from .recipe import Recipe
from .schema import RecipeError, convert, did_you_mean


def build_config(recipe: Recipe, vocab_size: int, special_ids: dict[str, int] | None = None) -> Any:
    """The model's configuration.

    Args:
        recipe: Its `model` holds fields of `MegaConfig`.
        vocab_size: Entries of the tokenizer.
        special_ids: See `special_ids_of`; the configuration's defaults for None.

    Raises:
        RecipeError: for fields of `model` that `MegaConfig` does not have or refuses.
    """
    from ..models.mega.configuration_mega import MegaConfig

    known = {item.name: item for item in dataclasses.fields(MegaConfig)}
    fields: dict[str, Any] = {"vocab_size": vocab_size, **(special_ids or {})}
    for key, value in recipe.model.items():
        if key not in known:
            hint = did_you_mean(key, known, "see its documentation")
            raise RecipeError(f"model.{key} is not a field of MegaConfig; {hint}")
        kind = type(known[key].default)
        fields[key] = convert(kind, value, f"model.{key}") if kind in (bool, int, float, str) else value
    try:
        return MegaConfig(**fields)
    except Exception as error:  # the base class of what @strict raises differs between versions of huggingface_hub
        raise RecipeError(f"model: {error}") from None


def special_ids_of(tokenizer: Any) -> dict[str, int]:
    """The configuration's fields of special tokens."""
    return {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
    }


def check_special_tokens(tokenizer: Any, names: tuple[str, ...], task: str) -> None:
    """Refuses a tokenizer without the special tokens of a task.

    Raises:
        RecipeError: naming the token.
    """
    for name in names:
        if getattr(tokenizer, name) is None:
            raise RecipeError(f"the tokenizer has no {name}, which {task} needs")
