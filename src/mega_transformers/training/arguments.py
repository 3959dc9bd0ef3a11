"""A recipe's `training` as transformers' `TrainingArguments`, every field checked by its own type."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from transformers.integrations import get_available_reporting_integrations

from ..errors import RecipeError, did_you_mean
from .models import learning_rate_of
from .recipe import Recipe
from .tasks import Task

# set elsewhere, or decided by the run
RESERVED = {
    "output_dir": "--output-dir",
    "seed": "seed",
    "data_seed": "seed",
    "resume_from_checkpoint": "--resume",
    "remove_unused_columns": "nothing: the task decides",
    "prediction_loss_only": "nothing: the task decides",
    "restore_callback_states_from_checkpoint": "nothing: the run decides",
    "logging_nan_inf_filter": "nothing: a loss that is no number ends the run",
}
_ABOVE_0, _AT_LEAST_0, _BELOW_1 = Field(gt=0), Field(ge=0), Field(ge=0, lt=1)
# what transformers does not check before it trains
RANGES: dict[str, Any] = {
    **dict.fromkeys(
        (
            "learning_rate",
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "eval_steps",
            "save_steps",
            "logging_steps",
            "num_train_epochs",
            "adam_epsilon",
        ),
        _ABOVE_0,
    ),
    **dict.fromkeys(("weight_decay", "max_grad_norm", "eval_delay", "warmup_steps"), _AT_LEAST_0),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), _BELOW_1),
}
# enums, which transformers takes as text; and what may be true, too
UNCHECKED = ("eval_strategy", "save_strategy", "logging_strategy", "lr_scheduler_type", "fsdp")


def checked(values: dict[str, Any], kind: Any, where: str = "training") -> dict[str, Any]:
    """Values of the right types for fields of a class of `TrainingArguments`.

    Raises:
        RecipeError: for unknown and reserved names, wrong types and values out of range.
    """
    fields = {item.name: item for item in dataclasses.fields(kind) if item.init}
    hints = typing.get_type_hints(kind)
    found = {}
    for key, value in values.items():
        if key in RESERVED:
            raise RecipeError(f"{where}.{key} is not set there but by {RESERVED[key]}")
        if key not in fields:
            raise RecipeError(f"{where}.{key} is unknown; {did_you_mean(key, fields, 'see TrainingArguments')}")
        hint = hints[key] if key not in UNCHECKED else Any
        if key in RANGES:
            hint = Annotated[hint, RANGES[key]]
        try:
            found[key] = TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False)).validate_python(value)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            raise RecipeError(f"{where}.{key}: {problem['msg']}; got {value!r}") from None
    return found


def build(recipe: Recipe, task: Task, output_dir: Path, **decided: Any) -> Any:
    """The `TrainingArguments` of a recipe.

    Args:
        recipe: The recipe.
        task: Its task, whose choices the recipe's `training` may change.
        output_dir: Where checkpoints go.
        decided: Fields that go before all others.

    Raises:
        RecipeError: if transformers refuses them, or `checked` does.
    """
    validated = any(source.validation or (source.divide and recipe.split.validation) for source in recipe.data)
    defaults: dict[str, Any] = {
        "eval_strategy": "steps" if validated else "no",
        "save_total_limit": 2,
        "report_to": "none",
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_steps": 10,
        "lr_scheduler_type": "cosine",
        # transformers refuses bfloat16 on a machine without an accelerator unless it is told that this is meant
        "use_cpu": not torch.accelerator.is_available(),
        "ddp_find_unused_parameters": False,
    }
    training = checked({**recipe.training, **learning_rate_of(recipe)}, task.arguments_class)
    if recipe.early_stopping is not None:
        defaults["load_best_model_at_end"] = True
    fields = {**defaults, **task.arguments(), **training, **decided}
    if fields.get("load_best_model_at_end") and "metric_for_best_model" not in fields:
        fields["metric_for_best_model"] = "eval_loss"
    if fields.get("fsdp") and fields["use_cpu"]:
        raise RecipeError("training.fsdp: accelerate shards models on accelerators only; leave it out on a CPU")
    _check_reporting(fields["report_to"])
    try:
        return task.arguments_class(
            output_dir=str(output_dir),
            seed=recipe.seed,
            logging_nan_inf_filter=False,
            **fields,
        )
    except (TypeError, ValueError) as error:
        raise RecipeError(f"training: {error}") from None
    except ImportError as error:
        raise RecipeError(f"training needs more packages: pip install 'mega-transformers[train]' ({error})") from None


def _check_reporting(names: Any) -> None:
    """Refuses a `report_to` whose package is missing, which transformers would notice after the preparation."""
    available = get_available_reporting_integrations()
    for name in [names] if isinstance(names, str) else names or []:
        if name not in (*available, "none", "all"):
            raise RecipeError(
                f"training.report_to={name!r} is not installed: pip install {name}, or leave it out; installed: "
                f"{', '.join(available) or 'none'}"
            )
