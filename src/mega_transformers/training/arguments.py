"""A recipe's `training` as transformers' `TrainingArguments`, every field checked by its own type.

What is unknown, reserved, of another type, out of range or refused by transformers raises a RecipeError.
"""

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
from .sequence_parallel import SequenceParallelism, check_arguments
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
    "logging_nan_inf_filter": "nothing: a loss that is not finite ends the run",
    "parallelism_config": "sequence_parallel",
}
# what transformers does not check before it trains
RANGES: dict[str, Any] = {
    **dict.fromkeys(("learning_rate", "num_train_epochs", "adam_epsilon"), Field(gt=0)),
    **dict.fromkeys(("eval_steps", "save_steps", "logging_steps"), Field(gt=0)),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), Field(gt=0)),
    "gradient_accumulation_steps": Field(gt=0),
    **dict.fromkeys(("weight_decay", "max_grad_norm", "eval_delay", "warmup_steps"), Field(ge=0)),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), Field(ge=0, lt=1)),
}
# enums, which transformers takes as text; and what may be true, too
UNCHECKED = ("eval_strategy", "save_strategy", "logging_strategy", "lr_scheduler_type", "fsdp")


def checked(values: dict[str, Any], kind: Any) -> dict[str, Any]:
    """Values of the right types for fields of a class of `TrainingArguments`."""
    fields = {item.name: item for item in dataclasses.fields(kind) if item.init}
    hints = typing.get_type_hints(kind)
    found = {}
    for key, value in values.items():
        if key in RESERVED:
            raise RecipeError(f"training.{key} is not set there but by {RESERVED[key]}")
        if key not in fields:
            raise RecipeError(f"training.{key} is unknown; {did_you_mean(key, fields, 'see TrainingArguments')}")
        hint: Any = Any if key in UNCHECKED else Annotated[hints[key], RANGES.get(key, Field())]
        try:
            found[key] = TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False)).validate_python(value)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            raise RecipeError(f"training.{key}: {problem['msg']}; got {value!r}") from None
    return found


def build(recipe: Recipe, task: Task, output_dir: Path, **decided: Any) -> Any:
    """The `TrainingArguments` of a recipe.

    Args:
        recipe: The recipe.
        task: Its task, whose choices the recipe's `training` may change.
        output_dir: Where checkpoints go.
        decided: Fields that go before all others.
    """
    training = checked({**recipe.training, **learning_rate_of(recipe)}, task.arguments_class)
    validated = any(source.validation or (source.divide and recipe.split.validation) for source in recipe.data)
    fields: dict[str, Any] = {
        "output_dir": str(output_dir),
        "seed": recipe.seed,
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps" if validated else "no",
        "save_total_limit": 2,
        "report_to": "none",
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_steps": 10,
        "lr_scheduler_type": "cosine",
        # transformers refuses bfloat16 on a machine without an accelerator unless the recipe asks for it
        "use_cpu": not torch.accelerator.is_available(),
        "ddp_find_unused_parameters": False,
        **({} if recipe.early_stopping is None else {"load_best_model_at_end": True}),
        **task.arguments(),
        **training,
        **decided,
    }
    if fields.get("load_best_model_at_end"):
        fields.setdefault("metric_for_best_model", "eval_loss")
    if fields.get("fsdp") and fields["use_cpu"]:
        raise RecipeError("training.fsdp: accelerate shards models on accelerators only; leave it out on a CPU")
    # transformers would notice after the preparation
    reporters, there = fields["report_to"], get_available_reporting_integrations()
    for name in [reporters] if isinstance(reporters, str) else reporters or []:
        if name not in (*there, "none", "all"):
            help_ = f"pip install {name}, or leave it out; installed: {', '.join(there) or 'none'}"
            raise RecipeError(f"training.report_to={name!r} is not installed: {help_}")
    if (size := getattr(recipe, "sequence_parallel", 1)) > 1:
        fields["parallelism_config"] = SequenceParallelism(size)
    try:
        args = task.arguments_class(**fields)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"training: {error}") from None
    except ImportError as error:
        raise RecipeError(f"training needs more packages: pip install 'mega-transformers[train]' ({error})") from None
    try:
        check_arguments(args)
    except ValueError as error:
        raise RecipeError(f"sequence_parallel={size}, but {error}") from None
    return args
