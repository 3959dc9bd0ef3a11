"""One training run: recipe -> tokenizer -> rows -> transformers' Trainer -> evaluation -> exported model.

On several processes all of them do the same, but that the first one alone prepares, shows and writes.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from filelock import FileLock, Timeout
from rich.console import Console
from safetensors import SafetensorError
from transformers import EarlyStoppingCallback, set_seed

from ..errors import RecipeError
from ..evaluation.memory import peak_memory
from . import arguments
from .export import TrainingReport, export_model, write_json
from .processes import in_turn, meet, synchronised
from .recipe import Recipe, plain
from .tasks import Task, task_of
from .tokenizer import load_tokenizer
from .trainer import Epoch, OnlyFinite, StepTimes, Stop, last_checkpoint, rows_of_a_step

LOCK = ".lock"
# what may change between an interrupted run and the one that continues it
FREE_KEYS = ("name", "training", "sequence_parallel", "card", "early_stopping")
# what errors of safetensors and of PyTorch say
FULL_DISK = ("os error 28", "os error 27", "unexpected pos", "PytorchStreamWriter")


@dataclass
class RunOptions:
    """What a run takes besides its recipe.

    Args:
        data_dir: Folder of the recipe's files.
        output_dir: Folder of tokenizer, checkpoints and results.
        export_dir: Folder of the finished model; None for `output_dir/model`.
        resume: Whether `output_dir` may hold a run to continue.
        max_seconds: Seconds after which the run saves a checkpoint and ends; None for no limit.
        command: Command for the model card.
        compare: Folders of finished runs of the same recipe with other models, for the model card.
    """

    data_dir: Path
    output_dir: Path
    export_dir: Path | None = None
    resume: bool = True
    max_seconds: float | None = None
    command: str = "mega train"
    compare: tuple[Path, ...] = ()


def run(recipe: Recipe, options: RunOptions, console: Console | None = None) -> dict[str, Any] | None:
    """Trains, evaluates and exports a model.

    Args:
        recipe: What to train, on what and how.
        options: Folders and limits.
        console: Where to report; standard output for None.

    Returns:
        The results, as in `output_dir/results.json`; None if a signal or the time limit ended the run, which can then
        be continued.

    Raises:
        RecipeError: before any work, for an invalid recipe or option; for a loss that is not finite; and where the
        disk is full.
    """
    first = meet(recipe.training) == 0
    console = (console or Console()) if first else Console(quiet=True)
    output = options.output_dir
    with ExitStack() as stack:

        def prepared() -> tuple[Any, ...]:
            task = task_of(recipe, options.data_dir)
            args = arguments.build(recipe, task, output)
            tokenizer = given_tokenizer(recipe, task, options.data_dir)
            task.check_model(tokenizer)
            compared = [_finished_alike(recipe, folder) for folder in options.compare]
            output.mkdir(parents=True, exist_ok=True)
            if first:
                stack.enter_context(_alone_in(output))
                _check_folder(recipe, options)
                write_json(output / "recipe.json", plain(recipe))
            return task, args, prepare(task, tokenizer, output, console), compared

        task, args, tokenizer, compared = in_turn(prepared)
        checkpoint = gather_object([last_checkpoint(output)])[0]
        trainer = make_trainer(task, tokenizer, args)
        console.print(f"{type(trainer.model).__name__}: {count_parameters(trainer.model):,} parameters")

        times = StepTimes()
        trainer.add_callback(times)
        with Stop(lambda text: console.print(text, style="yellow"), options.max_seconds) as stop:
            trainer.add_callback(stop)
            if checkpoint is None:
                trainer.train()
            elif trainer.restore_finished(checkpoint):
                console.print(f"{checkpoint} is the end of the training")
            else:
                console.print(f"Continuing from {checkpoint}")
                trainer.train(resume_from_checkpoint=str(checkpoint))
        if stop.stopped:
            console.print(
                f"Stopped after step {trainer.state.global_step}; the same command continues there.", style="yellow"
            )
            return None
        return _finish(task, options, trainer, compared, times, console)


def given_tokenizer(recipe: Recipe, task: Task, data_dir: Path) -> Any:
    """The tokenizer that the recipe names or that its checkpoint has; None if it is to be trained, or not needed."""
    path = recipe.tokenizer.path if recipe.tokenizer is not None else recipe.model.get("checkpoint")
    if path is None or getattr(recipe, "input", "tokens") != "tokens":
        return None
    folder = data_dir / path
    tokenizer = load_tokenizer(folder if folder.is_dir() and not Path(path).is_dir() else path)
    task.check_tokenizer(tokenizer)
    return tokenizer


def prepare(task: Task, tokenizer: Any, output: Path, console: Console) -> Any:
    """Makes the task's rows and returns the tokenizer, which is trained and kept in `output` if it is not given."""
    folder = output / "tokenizer"
    if tokenizer is None and task.recipe.tokenizer is not None:
        if not folder.is_dir():
            console.print("Making a tokenizer")
            partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
            task.train_tokenizer().save_pretrained(partial)
            partial.replace(folder)
        tokenizer = load_tokenizer(folder)
        task.check_tokenizer(tokenizer)
    task.prepare(tokenizer)
    for role, rows in task.rows.items():
        console.print(f"{role}: {f'{len(rows):,}' if hasattr(rows, 'num_rows') else 'streamed'} rows")
    for note in task.notes:
        console.print(note, style="yellow")
    return tokenizer


def make_trainer(task: Task, tokenizer: Any, args: Any, model: Any = None) -> Any:
    """The trainer of a prepared task, with a new model where none is given."""
    recipe, epoch = task.recipe, Epoch()
    set_seed(recipe.seed)
    model = task.build_model(tokenizer) if model is None else model
    if args.world_size > 1:
        model = synchronised(model, args.device)
    kind: Any = task.trainer_class
    trainer = kind(
        model=model,
        args=args,
        train_dataset=task.rows.get("train"),
        eval_dataset=task.validation_rows(),
        processing_class=tokenizer,
        callbacks=[epoch, OnlyFinite()],
        epoch=epoch,
        **task.trainer_fields(tokenizer, model, epoch),
    )
    if recipe.early_stopping is not None:
        trainer.add_callback(EarlyStoppingCallback(recipe.early_stopping))
    return trainer


def count_parameters(model: Any) -> int:
    """Trainable parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@contextmanager
def _alone_in(output: Path) -> Iterator[None]:
    """Keeps other runs out of a folder. Where the disk is full, nothing half-written is left."""
    try:
        with FileLock(output / LOCK, timeout=0):
            yield
    except Timeout:
        raise RecipeError(
            f"--output-dir {output}: another run is writing to it; wait until it has ended, or name another folder"
        ) from None
    except (OSError, RuntimeError, SafetensorError) as error:
        # only Python's own errors say by their number that a file could not be written for lack of space
        full = any(words in str(error) for words in FULL_DISK)
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if not full:
            raise
        cut_short = (path for path in output.glob("checkpoint-*") if not (path / "trainer_state.json").is_file())
        for path in [*cut_short, *output.rglob("*.partial")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        kept = last_checkpoint(output)
        raise RecipeError(
            f"the disk of {getattr(error, 'filename', None) or output} is full; make space there, and the same "
            f"command {f'continues from {kept}' if kept else 'begins again'}"
        ) from error


def _check_folder(recipe: Recipe, options: RunOptions) -> None:
    """Refuses a folder with the run of another recipe or, if it is not to be resumed, with any."""
    output = options.output_dir
    if not options.resume and any(path.name != LOCK for path in output.iterdir()):
        raise RecipeError(f"--no-resume, but {output} is not empty; remove it, or name another --output-dir")
    if (output / "recipe.json").exists():
        before = json.loads((output / "recipe.json").read_text(encoding="utf-8"))
        for key, now in plain(recipe).items():
            if key not in FREE_KEYS and before.get(key) != now:
                begun = f"{output} was begun with {key}={before.get(key)!r}, the recipe now says {now!r}"
                raise RecipeError(f"{begun}; restore that, or name another --output-dir")


def _finished_alike(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """What a finished run says whose recipe differs from this one in name, model and card alone."""
    files = [folder / "recipe.json", folder / "results.json"]
    try:
        before, results = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    except (OSError, ValueError) as error:
        raise RecipeError(f"--compare {folder}: this is not the output folder of a finished run: {error}") from None
    for key, value in plain(recipe).items():
        if key not in ("name", "model", "card") and before.get(key) != value:
            before_and_now = f"it was trained with {key}={before.get(key)!r}, and not with {value!r}"
            raise RecipeError(f"--compare {folder}: {before_and_now}, so that more than the model differs")
    return {"name": before["name"], "model": before["model"], **results}


def _finish(
    task: Task, options: RunOptions, trainer: Any, compared: list[Any], times: StepTimes, console: Console
) -> dict[str, Any]:
    """Evaluates the trained model on validation and test rows, beside the baselines, and exports it."""
    args, tokenizer = trainer.args, trainer.processing_class
    steps, timed = trainer.state.global_step, max(times.steps, 1)
    memory = peak_memory(args.device)
    trainer.restore_cache()
    evaluation = task.evaluate(trainer)
    # without the autocast that training in half precision wraps around its forward pass
    model: Any = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    results = {
        "steps": steps,
        "epochs": round(trainer.state.epoch or 0.0, 3),
        "examples_seen": steps * rows_of_a_step(args),
        "hours": round(times.total / 3600, 4),
        "seconds_per_step": round(times.total / timed, 4),
        "processor_seconds_per_step": round(times.processor_total / timed, 4),
        "memory": memory,
        "parameters": count_parameters(model),
        **evaluation,
        **({"compared": compared} if compared else {}),
        "date": time.strftime("%Y-%m-%d"),
    }
    weights = trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else None
    if args.process_index == 0:
        if weights is not None:  # in shards so far
            generation_config, model = getattr(model, "generation_config", None), task.build_model(tokenizer)
            model.load_state_dict(weights)
            model.generation_config = generation_config
        write_json(options.output_dir / "results.json", results)
        report = TrainingReport(task, results, trainer.state.log_history, options.command, args)
        folder = options.export_dir or options.output_dir / "model"
        size = export_model(model, tokenizer, folder, report)
        console.print(f"Wrote {folder} ({size / 1e6:.1f} MB)")
    return results
