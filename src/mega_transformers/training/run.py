"""One training run: recipe -> tokenizer -> ids -> transformers' Trainer -> judgement -> exported model."""

from __future__ import annotations

import dataclasses
import errno
import importlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from rich.console import Console
from safetensors import SafetensorError
from transformers import TrainingArguments, set_seed

from . import seq2seq_config
from .export import Report, export_model, write_json
from .recipe import PAIRS_TASK, TASKS, Recipe
from .schedule import Clock, EpochOfData, Interruption, last_checkpoint
from .schema import RecipeError, build
from .tokenizer import load_tokenizer
from .trainer import RecipeTrainer, Setup

LOCK = ".lock"
# what a resumed run must share with the checkpoint; schedule and TrainingArguments may change
FIXED_KEYS = (
    "task",
    "sequence_length",
    "data",
    "pairs",
    "split",
    "generation",
    "tokenizer",
    "model",
    "masking",
    "seed",
)


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
        compare: Folders of finished text-to-text runs of the same recipe with other models, for the model card.
    """

    data_dir: Path
    output_dir: Path
    export_dir: Path | None = None
    resume: bool = True
    max_seconds: float | None = None
    command: str = "mega train"
    compare: list[Path] = field(default_factory=list)


def training_arguments(recipe: Recipe, output_dir: Path, setup: Setup) -> TrainingArguments:
    """The recipe's `TrainingArguments`, of the class that the task's set-up names.

    Raises:
        RecipeError: if transformers refuses them.
    """
    defaults: dict[str, Any] = {
        "eval_strategy": "steps" if any("validation" in source.roles for source in recipe.sources) else "no",
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
        return setup.arguments(
            output_dir=str(output_dir),
            seed=recipe.seed,
            remove_unused_columns=False,
            **length,  # type: ignore[arg-type]
            **{**defaults, **setup.fields, **recipe.training, **setup.model_fields},
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
        RecipeError: before any work, for what cannot work; and where the disk is full.
    """
    console = console or Console()
    task = importlib.import_module(f".{TASKS[recipe.task]}", __package__)
    material = task.material(recipe, options.data_dir)
    tokenizer: Any = None
    if recipe.tokenizer.path is not None:
        tokenizer = load_tokenizer(_tokenizer_folder(recipe, options))
        task.check_tokenizer(tokenizer)
    # the number of symbols is only known later; any will do to check the other fields
    size = recipe.tokenizer.vocab_size or 128
    task.build_config(recipe, size if tokenizer is None else len(tokenizer))
    setup = material.setup()
    arguments = training_arguments(recipe, options.output_dir, setup)
    compared = [_finished_alike(recipe, folder) for folder in options.compare]

    output = options.output_dir
    with _alone_in(output):
        checkpoint, elapsed = _checkpoint_to_resume(recipe, options)
        write_json(output / "recipe.json", dataclasses.asdict(recipe))
        if tokenizer is None:
            tokenizer = _trained_tokenizer(material, output, console)
        material.prepare(tokenizer, output, console)

        set_seed(recipe.seed)
        model = task.build_model(recipe, tokenizer)
        console.print(f"{type(model).__name__}: {model.num_parameters(only_trainable=True):,} parameters")
        use_cache = getattr(model.config, "use_cache", True)
        limit = recipe.schedule.max_hours and recipe.schedule.max_hours * 3600
        clock = Clock(elapsed, limit if options.max_seconds is None else elapsed + options.max_seconds)
        trainer = setup.trainer(
            recipe=recipe,
            clock=clock,
            model=model,
            args=arguments,
            train_dataset=material.train,
            eval_dataset=material.validation,
            processing_class=tokenizer,
            data_collator=task.collator(recipe, tokenizer, evaluation=False),
            evaluation_collator=task.collator(recipe, tokenizer, evaluation=True),
            compute_metrics=material.compute_metrics,
            callbacks=[clock, EpochOfData()],
        )

        with Interruption(lambda text: console.print(text, style="yellow")) as interruption:
            trainer.add_callback(interruption)
            if checkpoint is None:
                trainer.train()
            elif trainer.restore_finished(checkpoint):
                console.print(f"{checkpoint} is the end of the training")
            else:
                console.print(f"Going on from {checkpoint}, after {elapsed / 3600:.2f} h")
                trainer.train(resume_from_checkpoint=str(checkpoint))
        if interruption.signal is not None:
            console.print(
                f"Stopped after step {trainer.state.global_step}; the same command goes on from there.", style="yellow"
            )
            return None
        # the trainer turns it off
        model.config.use_cache = use_cache
        return _finish(recipe, options, task, trainer, tokenizer, material, compared, clock, console)


@contextmanager
def _alone_in(output: Path) -> Iterator[None]:
    """Makes a folder and keeps other runs out of it. Where the disk is full, nothing half-written is left.

    Raises:
        RecipeError: where another run is writing to the folder, and where the disk is full.
    """
    output.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output / LOCK, timeout=0):
            yield
    except Timeout:
        raise RecipeError(
            f"--output-dir {output}: another run is writing to it; wait until it has ended, or name another folder"
        ) from None
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _says_full(error):
            raise
        cut_short = (path for path in output.glob("checkpoint-*") if not (path / "trainer_state.json").is_file())
        for path in [*cut_short, *output.rglob("*.partial")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        kept = last_checkpoint(output)
        after = f"continues from {kept[0]}" if kept else "begins again"
        raise RecipeError(
            f"the disk of {getattr(error, 'filename', None) or output} is full; make space there, and the same "
            f"command {after}"
        ) from error


def _says_full(error: Exception) -> bool:
    """Whether a file could not be written for want of space; only Python's own errors say so by their number."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return any(
        words in str(error) for words in ("os error 28", "os error 27", "unexpected pos", "PytorchStreamWriter")
    )


def _tokenizer_folder(recipe: Recipe, options: RunOptions) -> Path:
    path = Path(recipe.tokenizer.path or "")
    return path if path.is_dir() else options.data_dir / path


def _trained_tokenizer(material: Any, output: Path, console: Console) -> Any:
    folder = output / "tokenizer"
    if not folder.is_dir():
        tokenizer = material.train_tokenizer(console)
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        tokenizer.save_pretrained(partial)
        partial.replace(folder)
    return load_tokenizer(folder)


def _checkpoint_to_resume(recipe: Recipe, options: RunOptions) -> tuple[Path | None, float]:
    """The checkpoint to go on from, and the seconds trained before; refuses one of another recipe."""
    output = options.output_dir
    found = last_checkpoint(output)
    if not options.resume and any(path.name != LOCK for path in output.iterdir()):
        raise RecipeError(f"--no-resume, but {output} is not empty; remove it, or name another --output-dir")
    if (output / "recipe.json").exists():
        before = _fixed(build(Recipe, json.loads((output / "recipe.json").read_text(encoding="utf-8"))))
        for key, now in _fixed(recipe).items():
            if before[key] != now:
                raise RecipeError(
                    f"{output} was begun with {key}={before[key]!r}, the recipe now says {now!r}; restore that, or "
                    "name another --output-dir"
                )
    return (None, 0.0) if found is None else (found[0], Clock.elapsed_in(found[1]))


def _fixed(recipe: Recipe) -> dict[str, Any]:
    """What must not change in an output folder, in plain values."""
    values = json.loads(json.dumps(dataclasses.asdict(recipe)))
    if recipe.task == PAIRS_TASK:
        values["model"] = seq2seq_config.built_fields(recipe)
        # the best checkpoint so far was chosen by it
        values["generation"] = {key: values["generation"][key] for key in ("best_by", "validation_examples")}
    return {key: values[key] for key in FIXED_KEYS}


def _finished_alike(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """What a finished run says whose recipe differs from this one in name, model and card alone."""
    from .pair_card import comparison

    if recipe.task != PAIRS_TASK:
        raise RecipeError(f"--compare is for {PAIRS_TASK}; leave it out for {recipe.task}")
    try:
        before, results = (
            json.loads((folder / name).read_text(encoding="utf-8")) for name in ("recipe.json", "results.json")
        )
    except (OSError, ValueError) as error:
        raise RecipeError(f"--compare {folder}: this is not the output folder of a finished run: {error}") from None
    for key, value in json.loads(json.dumps(dataclasses.asdict(recipe))).items():
        if key not in ("name", "model", "card") and before.get(key) != value:
            raise RecipeError(
                f"--compare {folder}: it was trained with {key}={before.get(key)!r}, and not with {value!r}, so that "
                "more than the model differs"
            )
    return comparison(build(Recipe, before), results)


def _finish(
    recipe: Recipe,
    options: RunOptions,
    task: Any,
    trainer: RecipeTrainer,
    tokenizer: Any,
    material: Any,
    compared: list[dict[str, Any]],
    clock: Clock,
    console: Console,
) -> dict[str, Any]:
    """Judges the trained model on validation and test texts, beside the baselines, and exports it."""
    # without the autocast that training in half precision wraps around its forward pass
    model: Any = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    args = trainer.args
    judgement = task.judge(recipe, model, tokenizer, material)
    steps = trainer.state.global_step
    examples = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    results = {
        "steps": steps,
        "epochs": round(trainer.state.epoch or 0.0, 3),
        "hours": round(clock.elapsed / 3600, 3),
        **material.amounts(steps * examples),
        "parameters": model.num_parameters(only_trainable=True),
        **judgement,
        **({"compared": compared} if compared else {}),
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
