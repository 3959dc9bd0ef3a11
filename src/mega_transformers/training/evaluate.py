"""Evaluates a finished model as its task's training does, and estimates the cost of a training.

A RecipeError reports anything that cannot be read, loaded or trained.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import AutoConfig

from ..assets import model_path
from ..evaluation.memory import peak_memory
from . import arguments
from .recipe import Recipe
from .run import count_parameters, given_tokenizer, make_trainer, prepare
from .tasks import task_of
from .trainer import StepTimes, rows_of_a_step

TIMED_STEPS, STEPS_BEFORE = 4, 2


def evaluate_model(
    recipe: Recipe, data_dir: Path, tokenizer: Any = None, model: Any = None, **arguments_: Any
) -> dict[str, Any]:
    """The result of `Task.evaluate` for a model on the validation and test rows of a recipe.

    Args:
        recipe: The recipe, with a `model.checkpoint`.
        data_dir: Folder of its files.
        tokenizer, model: Those of the checkpoint, if already loaded.
        arguments_: Fields of `TrainingArguments` that override the recipe's.
    """
    if hasattr(recipe, "sequence_parallel"):  # every process reads whole blocks
        recipe = recipe.model_copy(update={"sequence_parallel": 1})
    task = task_of(recipe, data_dir)
    with tempfile.TemporaryDirectory() as output:
        decided = {"eval_strategy": "no", "load_best_model_at_end": False, **arguments_}
        args = arguments.build(recipe, task, Path(output), **decided)
        tokenizer = tokenizer or given_tokenizer(recipe, task, data_dir)
        if tokenizer is not None:
            task.check_tokenizer(tokenizer)
        config = AutoConfig.from_pretrained(model_path(recipe.model["checkpoint"])) if model is None else model.config
        task.labels = list(config.id2label.values())
        task.prepare(tokenizer)
        trainer = make_trainer(task, tokenizer, args, model)
        trainer.restore_cache()
        return task.evaluate(trainer)


def dry_run(recipe: Recipe, data_dir: Path) -> dict[str, Any]:
    """Estimates the cost of a training from a few steps. Nothing is kept.

    `hours` excludes evaluations; `memory` is the peak in bytes.
    """
    task = task_of(recipe, data_dir)
    whole = arguments.build(recipe, task, Path("."), report_to="none")
    with tempfile.TemporaryDirectory() as output:
        few = {"max_steps": STEPS_BEFORE + TIMED_STEPS, "eval_strategy": "no", "save_strategy": "no"}
        few |= {"load_best_model_at_end": False, "report_to": "none", "logging_steps": 1000, "disable_tqdm": True}
        args = arguments.build(recipe, task, Path(output), **few)
        tokenizer = given_tokenizer(recipe, task, data_dir)
        task.check_model(tokenizer)
        tokenizer = prepare(task, tokenizer, Path(output), Console(stderr=True))
        trainer = make_trainer(task, tokenizer, args)
        times = StepTimes(synchronize=True)
        trainer.add_callback(times)
        trainer.train()
    per_step, steps = statistics.median(times.seconds[-TIMED_STEPS:]), whole.max_steps
    if steps <= 0:
        batches = len(trainer.get_train_dataloader())
        steps = int(math.ceil(batches / whole.gradient_accumulation_steps) * whole.num_train_epochs)
    return {
        "parameters": count_parameters(trainer.model),
        "rows": {role: len(rows) if hasattr(rows, "num_rows") else None for role, rows in task.rows.items()},
        "steps": steps,
        "examples": steps * rows_of_a_step(whole),
        "seconds_per_step": per_step,
        "hours": per_step * steps / 3600,
        "memory": peak_memory(args.device),
        "device": str(args.device),
    }
