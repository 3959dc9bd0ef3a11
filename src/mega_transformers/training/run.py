"""One training run: recipe -> tokenizer -> blocks -> transformers' Trainer -> judgement -> exported model."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments, set_seed

from . import data
from .export import Report, export_model, write_json
from .recipe import TASKS, Recipe
from .schedule import Clock, EpochOfData, Interruption, last_checkpoint, learning_rate_factor
from .schema import RecipeError
from .tokenizer import load_tokenizer, train_tokenizer

# parameters that weight decay would pull towards values without a meaning: scales, offsets, EMA coefficients
NO_DECAY = ("ema_gate.", "qk_weight", "qk_bias", "rel_pos_bias.")
# what a resumed run must share with the checkpoint; schedule and TrainingArguments may change
FIXED_KEYS = ("task", "sequence_length", "data", "tokenizer", "model", "masking", "seed")


@dataclass
class RunOptions:
    """What a run takes besides its recipe.

    Args:
        data_dir: Folder that the recipe's files are in.
        output_dir: Folder of tokenizer, tokens, checkpoints and results.
        export_dir: Folder of the finished model; `output_dir/model` for None.
        resume: Whether to go on from a checkpoint in `output_dir`; otherwise one there is an error.
        max_seconds: Limit of this run, added to what was trained before; None for the recipe's `max_hours`.
        command: The command, for the model card.
    """

    data_dir: Path
    output_dir: Path
    export_dir: Path | None = None
    resume: bool = True
    max_seconds: float | None = None
    command: str = "mega train"


class RecipeTrainer(Trainer):
    """transformers' Trainer with the recipe's course of the learning rate and choice of decayed weights."""

    def __init__(self, *args: Any, recipe: Recipe, clock: Clock, evaluation_collator: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.recipe = recipe
        self.clock = clock
        self.evaluation_collator = evaluation_collator

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Batches of the evaluation's own masks, the same every time."""
        training_collator, self.data_collator = self.data_collator, self.evaluation_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training_collator

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """See `learning_rate_factor`."""
        schedule = self.recipe.schedule

        def factor(step: int) -> float:
            progress = max(step / num_training_steps, self.clock.fraction)
            return learning_rate_factor(step, progress, schedule.warmup_steps, schedule.shape)

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)  # type: ignore[arg-type]
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """All matrices but those of `NO_DECAY`: no biases and no norms."""
        return decayed_parameters(model)


def decayed_parameters(model: torch.nn.Module) -> list[str]:
    """Names of the parameters that weight decay applies to."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() >= 2 and not any(pattern in name for pattern in NO_DECAY)
    ]


def training_arguments(recipe: Recipe, output_dir: Path) -> TrainingArguments:
    """The recipe's `TrainingArguments`.

    Raises:
        RecipeError: if transformers refuses them.
    """
    defaults: dict[str, Any] = {
        "eval_strategy": "steps" if any(source.validation for source in recipe.data) else "no",
        "save_total_limit": 2,
        "report_to": "none",
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_steps": 10,
        # transformers refuses bfloat16 on a machine without an accelerator unless it is told that this is meant
        "use_cpu": not torch.accelerator.is_available(),
        # worker processes would not make a difference: batches are slices of a memory-mapped file
        "dataloader_num_workers": 0,
    }
    schedule = recipe.schedule
    length = {"max_steps": schedule.max_steps} if schedule.max_steps else {"num_train_epochs": schedule.epochs}
    try:
        return TrainingArguments(
            output_dir=str(output_dir),
            seed=recipe.seed,
            remove_unused_columns=False,
            prediction_loss_only=True,
            **length,  # type: ignore[arg-type]
            **{**defaults, **recipe.training},
        )
    except (TypeError, ValueError) as error:
        raise RecipeError(f"training: {error}") from None
    except ImportError as error:
        raise RecipeError(f"training needs more packages: pip install 'mega-transformers[train]' ({error})") from None


def run(recipe: Recipe, options: RunOptions, console: Console | None = None) -> dict[str, Any] | None:
    """Trains, judges and exports a model.

    Args:
        recipe: What to train.
        options: Where, and how far.
        console: Where messages go; standard output for None.

    Returns:
        The results written to `output_dir/results.json`; None if a signal ended the run, which then can be resumed.

    Raises:
        RecipeError: before any work, for what cannot work.
    """
    console = console or Console()
    task = importlib.import_module(f".{TASKS[recipe.task]}", __package__)
    data.find_files(recipe.data, options.data_dir)
    tokenizer: Any = None
    if recipe.tokenizer.path is not None:
        tokenizer = load_tokenizer(_tokenizer_folder(recipe, options))
        task.check_tokenizer(tokenizer)
    task.build_config(recipe, recipe.tokenizer.vocab_size or len(tokenizer))
    arguments = training_arguments(recipe, options.output_dir)
    checkpoint, elapsed = _checkpoint_to_resume(recipe, options)

    output = options.output_dir
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "recipe.json", dataclasses.asdict(recipe))
    if tokenizer is None:
        tokenizer = _trained_tokenizer(recipe, options, task.CLOSED_TEXTS, console)
    tokens = {
        role: data.cached_tokens(
            recipe.data, role, tokenizer, options.data_dir, output / "tokens", f"Tokenising {role}"
        )
        for role in ("train", "validation", "test")
    }
    blocks = {role: data.to_blocks(line, recipe.sequence_length) for role, line in tokens.items()}
    for role, array in blocks.items():
        console.print(f"{role}: {array.shape[0]:,} blocks of {recipe.sequence_length} tokens")
        if not len(array) and (role == "train" or any(getattr(source, role) for source in recipe.data)):
            raise RecipeError(f"the {role} texts fill no block of sequence_length={recipe.sequence_length} tokens")

    set_seed(recipe.seed)
    model = task.build_model(recipe, tokenizer)
    console.print(f"{type(model).__name__}: {model.num_parameters():,} parameters")
    limit = recipe.schedule.max_hours and recipe.schedule.max_hours * 3600
    clock = Clock(elapsed, limit if options.max_seconds is None else elapsed + options.max_seconds)
    trainer = RecipeTrainer(
        recipe=recipe,
        clock=clock,
        model=model,
        args=arguments,
        train_dataset=data.Blocks(blocks["train"], recipe.seed),
        eval_dataset=data.Blocks(blocks["validation"][: recipe.validation_blocks], recipe.seed),
        processing_class=tokenizer,
        data_collator=task.collator(recipe, tokenizer, evaluation=False),
        evaluation_collator=task.collator(recipe, tokenizer, evaluation=True),
        callbacks=[clock, EpochOfData()],
    )

    with Interruption(lambda text: console.print(text, style="yellow")) as interruption:
        trainer.add_callback(interruption)
        if checkpoint is not None:
            console.print(f"Going on from {checkpoint}, after {elapsed / 3600:.2f} h")
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if interruption.signal is not None:
        console.print(
            f"Stopped after step {trainer.state.global_step}; the same command goes on from there.", style="yellow"
        )
        return None
    return _finish(recipe, options, task, trainer, tokenizer, tokens, clock, console)


def _tokenizer_folder(recipe: Recipe, options: RunOptions) -> Path:
    path = Path(recipe.tokenizer.path or "")
    return path if path.is_dir() else options.data_dir / path


def _trained_tokenizer(recipe: Recipe, options: RunOptions, closed: bool, console: Console) -> Any:
    folder = options.output_dir / "tokenizer"
    if not folder.is_dir():
        console.print(f"Training a tokenizer of {recipe.tokenizer.vocab_size:,} entries")
        documents = data.iterate_documents(recipe.data, "train", options.data_dir)
        tokenizer = train_tokenizer(documents, recipe.tokenizer.vocab_size or 0, recipe.sequence_length, closed)
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        tokenizer.save_pretrained(partial)
        partial.replace(folder)
    return load_tokenizer(folder)


def _checkpoint_to_resume(recipe: Recipe, options: RunOptions) -> tuple[Path | None, float]:
    """The checkpoint to go on from, and the seconds trained before; refuses one of another recipe."""
    output = options.output_dir
    found = last_checkpoint(output) if output.is_dir() else None
    if not options.resume and output.is_dir() and any(output.iterdir()):
        raise RecipeError(f"--no-resume, but {output} is not empty; remove it, or name another --output-dir")
    if (output / "recipe.json").exists():
        before = json.loads((output / "recipe.json").read_text(encoding="utf-8"))
        now = json.loads(json.dumps(dataclasses.asdict(recipe)))
        for key in FIXED_KEYS:
            if before.get(key) != now[key]:
                raise RecipeError(
                    f"{output} was begun with {key}={before.get(key)!r}, the recipe now says {now[key]!r}; "
                    "restore that, or name another --output-dir"
                )
    return (None, 0.0) if found is None else (found[0], Clock.elapsed_in(found[1]))


def _finish(
    recipe: Recipe,
    options: RunOptions,
    task: Any,
    trainer: RecipeTrainer,
    tokenizer: Any,
    tokens: dict[str, np.ndarray],
    clock: Clock,
    console: Console,
) -> dict[str, Any]:
    """Judges the trained model on validation and test texts, beside the baselines, and exports it."""
    model: Any = trainer.model
    args = trainer.args
    scores = task.judge(recipe, model, tokenizer, tokens, options.data_dir)
    steps = trainer.state.global_step
    tokens_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    results = {
        "steps": steps,
        "epochs": round(trainer.state.epoch or 0.0, 3),
        "hours": round(clock.elapsed / 3600, 3),
        "tokens_seen": steps * tokens_per_step * recipe.sequence_length,
        "train_tokens": len(trainer.train_dataset) * recipe.sequence_length,  # type: ignore[arg-type]
        "parameters": model.num_parameters(),
        "scores": scores,
        "date": time.strftime("%Y-%m-%d"),
    }
    write_json(options.output_dir / "results.json", results)
    folder = options.export_dir or options.output_dir / "model"
    report = Report(
        recipe=recipe,
        results=results,
        log=trainer.state.log_history,
        command=options.command,
        pipeline_tag=task.PIPELINE_TAG,
        device=args.device,
    )
    size = export_model(model, tokenizer, folder, report)
    console.print(f"Wrote {folder} ({size / 1e6:.1f} MB)")
    return results
