"""`mega train` and `mega evaluate`."""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from .device import AUTO, DeviceOption, DTypeOption, resolve_placement

PAIRS_PANEL = "Options for sequence-to-sequence models"


def train(
    recipe: Annotated[Path, typer.Argument(help="Recipe: a YAML file, as in recipes/.")],
    data_dir: Annotated[
        Path | None,
        typer.Option(envvar="MEGA_DATA_DIR", help="Folder that the recipe's files are in; the recipe's own for none."),
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Folder of checkpoints and results; runs/<name of the recipe> for none.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="Folder of the finished model; <output-dir>/model for none.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on from a checkpoint in the output folder.")
    ] = True,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key=value in place of the recipe's: schedule.max_steps=100.")
    ] = None,
    max_hours: Annotated[
        float | None, typer.Option(help="Train this much longer at most; the learning rate reaches 0 by then.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="Train until HH:MM (local time) at most; evaluation and export follow.")
    ] = None,
    compare: Annotated[
        list[Path] | None,
        typer.Option(help="Output folder of a text-to-text run with another model, to stand in the model card."),
    ] = None,
) -> None:
    """Train a model from a recipe. Ctrl-C saves a checkpoint; the same command goes on from it."""
    from rich.console import Console

    from ..training.recipe import load_recipe
    from ..training.schema import RecipeError

    console = Console()
    try:
        checked = load_recipe(recipe, overrides)
        seconds = _seconds(max_hours, until)

        from ..training.run import RunOptions, run

        options = RunOptions(
            data_dir=data_dir or recipe.parent,
            output_dir=output_dir or Path("runs") / checked.name,
            export_dir=export,
            resume=resume,
            max_seconds=seconds,
            command=_command(recipe, data_dir, overrides, max_hours, until),
            compare=compare or [],
        )
        results = run(checked, options, console)
    except RecipeError as error:
        Console(stderr=True).print(f"Error: {error}", style="red", markup=False)
        raise typer.Exit(2) from error
    if results is None:
        raise typer.Exit(130)
    for role, scores in results["scores"].items():
        console.print(_table(f"{checked.name} on {role}", scores, checked.card.metric_titles))


def evaluate(
    model: Annotated[str, typer.Argument(help="Folder or hub name of a masked or a sequence-to-sequence model.")],
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Text file to judge on, or for pairs a tsv, csv or jsonl file; .gz too; may be repeated."),
    ] = None,
    baselines: Annotated[
        list[Path] | None, typer.Option(help="Training text: judge unigram and bigram counts of it too.")
    ] = None,
    clean: Annotated[list[str] | None, typer.Option(help="Cleaning: wikitext, unwrap or emphasis.")] = None,
    documents: Annotated[str, typer.Option(help="Documents: whole, lines, paragraphs or sections.")] = "lines",
    sequence_length: Annotated[int, typer.Option(min=8, help="Tokens per block.")] = 512,
    probability: Annotated[float, typer.Option(help="Part of the tokens to predict.")] = 0.15,
    mask: Annotated[float, typer.Option(help="Part of these that is replaced by the mask token.")] = 1.0,
    random: Annotated[float, typer.Option(help="Part of these that is replaced by a random token.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the masks.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Blocks at a time.")] = 16,
    source: Annotated[
        str, typer.Option(help="Column of the source texts: its name or number.", rich_help_panel=PAIRS_PANEL)
    ] = "source",
    target: Annotated[
        str, typer.Option(help="Column of the target texts: its name or number.", rich_help_panel=PAIRS_PANEL)
    ] = "target",
    recipe: Annotated[
        Path | None,
        typer.Option(help="Judge as a recipe does, and without --data on its test part.", rich_help_panel=PAIRS_PANEL),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="MEGA_DATA_DIR",
            help="Folder that the recipe's files are in; the recipe's own for none.",
            rich_help_panel=PAIRS_PANEL,
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="bleu, chrf, exact_match, sequence_error_rate or symbol_error_rate; may be repeated. For none, the "
            "recipe's, or bleu and chrf.",
            rich_help_panel=PAIRS_PANEL,
        ),
    ] = None,
    num_beams: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Beams, beside greedy decoding; for none, as many as the recipe says, or 5.",
            rich_help_panel=PAIRS_PANEL,
        ),
    ] = None,
    device: DeviceOption = AUTO,
    dtype: DTypeOption = AUTO,
    json: Annotated[Path | None, typer.Option(help="JSON file to write the numbers to.")] = None,
) -> None:
    """Judge a masked language model at masked tokens, or a sequence-to-sequence model by its outputs."""
    from rich.console import Console

    from ..training.schema import RecipeError

    placement = resolve_placement(device, dtype)
    try:
        from ..training.evaluation import evaluate_files, evaluate_pairs, is_pair_model
        from ..training.export import write_json
        from ..training.recipe import Masking

        titles: dict[str, str] = {}
        report: Any
        if recipe is not None or is_pair_model(model):
            examples, checked, title = _pairs(data or [], (source, target), recipe, data_dir)
            scores, signatures = evaluate_pairs(
                model, examples, checked, metric, num_beams, device=placement.device, dtype=placement.dtype
            )
            report = {"scores": scores, "signatures": signatures}
            title = "; ".join([title, *signatures.values()])
            titles = titles if checked is None else checked.card.metric_titles
        elif not data:
            raise RecipeError("--data is missing: give a text file to judge on")
        else:
            scores = report = evaluate_files(
                model,
                data,
                baselines or [],
                clean=clean or [],
                documents=documents,
                sequence_length=sequence_length,
                masking=Masking(evaluation_probability=probability, mask=mask, random=random),
                seed=seed,
                batch_size=batch_size,
                device=placement.device,
                dtype=placement.dtype,
            )
            title = f"{probability:.0%} of tokens masked, seed {seed}"
        if json is not None:
            write_json(json, report)
    except RecipeError as error:
        Console(stderr=True).print(f"Error: {error}", style="red", markup=False)
        raise typer.Exit(2) from error
    Console().print(_table(title, scores, titles))


def _pairs(
    files: list[Path], columns: tuple[str, str], recipe: Path | None, data_dir: Path | None
) -> tuple[list[Any], Any, str]:
    """Pairs to judge on, the recipe or None, and the title of the table."""
    from ..training.evaluation import pairs_of_files, pairs_of_recipe
    from ..training.recipe import load_recipe
    from ..training.schema import RecipeError

    checked = None if recipe is None else load_recipe(recipe)
    if files:
        return pairs_of_files(files, *map(_column, columns)), checked, ", ".join(map(str, files))
    if checked is None or recipe is None:
        raise RecipeError("--data or --recipe: give a file of pairs, or a recipe whose test part is to be judged on")
    return pairs_of_recipe(checked, data_dir or recipe.parent), checked, f"{checked.name}, test part"


def _column(text: str) -> str | int:
    """A column's number, or its name."""
    return int(text) if text.isdigit() else text


def _seconds(max_hours: float | None, until: str | None) -> float | None:
    """The limit of this run in seconds."""
    from ..training.schema import RecipeError

    if max_hours is not None and until is not None:
        raise RecipeError("--max-hours and --until exclude each other")
    if max_hours is not None:
        if max_hours <= 0:
            raise RecipeError(f"--max-hours {max_hours} must be above 0")
        return max_hours * 3600
    if until is None:
        return None
    now = datetime.now()
    try:
        clock = datetime.strptime(until, "%H:%M")
    except ValueError:
        raise RecipeError(f"--until {until} must be a time of day like 23:35") from None
    end = now.replace(hour=clock.hour, minute=clock.minute, second=0, microsecond=0)
    return (end - now if end > now else end + timedelta(days=1) - now).total_seconds()


def _command(
    recipe: Path, data_dir: Path | None, overrides: list[str] | None, max_hours: float | None, until: str | None
) -> str:
    """The command to tell others: without this machine's folders."""
    shown = os.path.relpath(recipe)
    parts = ["mega train", recipe.name if shown.startswith("..") else shown]
    if data_dir is not None:
        parts.append("--data-dir DATA")
    parts += [f"--set {override}" for override in overrides or []]
    if max_hours is not None:
        parts.append(f"--max-hours {max_hours:g}")
    if until is not None:
        parts.append(f"--until {until}")
    return " ".join(parts)


# key of a score -> title of its column, format; the columns shown are those that the scores have
_COLUMNS = {
    "bits_per_character": ("bits per character", ".4f"),
    "word_perplexity": ("word perplexity", ".2f"),
    "raw_word_perplexity": ("per raw word", ".2f"),
    "cross_entropy": ("cross entropy (nats)", ".4f"),
    "perplexity": ("perplexity", ".2f"),
    "accuracy": ("accuracy", ".2%"),
    "tokens": ("tokens", ","),
    "bleu": ("BLEU", ".1f"),
    "chrf": ("chrF", ".1f"),
    "exact_match": ("exact match", ".2%"),
    "sequence_error_rate": ("outputs unlike any reference", ".2%"),
    "symbol_error_rate": ("symbol error rate", ".2%"),
    "sources": ("sources", ","),
}


def _table(title: str, scores: dict[str, dict[str, float]], titles: dict[str, str] | None = None) -> Any:
    """Scores of several models; `titles` go before the columns' usual ones."""
    from rich.table import Table

    columns = {
        key: ((titles or {}).get(key, name), form)
        for key, (name, form) in _COLUMNS.items()
        if all(key in score for score in scores.values())
    }
    table = Table(title=title)
    table.add_column("")
    for name, _ in columns.values():
        table.add_column(name, justify="right")
    for name, score in scores.items():
        table.add_row(name, *(format(score[key], form) for key, (_, form) in columns.items()))
    return table
