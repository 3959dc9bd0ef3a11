"""`mega train` and `mega evaluate`."""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from ..training.pair_recipe import MAX_BEAMS
from .device import AUTO, DeviceOption, DTypeOption, check_names, resolve_placement
from .loading import MASKED, PAIRS, bundled_names, kind_of, load, locate
from .outputs import check_output_file, check_output_folder
from .runtime import load_package
from .tables import print_scores

PAIRS_PANEL = "Options for sequence-to-sequence models"


def bundled_recipes(incomplete: str) -> list[str]:
    """The bundled recipes whose name begins like this, for the completion of command lines."""
    from ..assets import RECIPES

    return sorted(path.stem for path in RECIPES.glob("*.yaml") if path.stem.startswith(incomplete))


def train(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="Recipe: a YAML file, or the name of a bundled recipe, such as mlm-smoke.",
            autocompletion=bundled_recipes,
        ),
    ],
    data_dir: Annotated[
        Path | None,
        typer.Option(envvar="MEGA_DATA_DIR", help="Folder that the recipe's files are in; default: the recipe's own."),
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Folder of checkpoints and results; default: runs/<name of the recipe>.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="Folder of the finished model; default: <output-dir>/model.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Continue from a checkpoint in the output folder.")
    ] = True,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value in place of the recipe's. Example: --set schedule.max_steps=100"),
    ] = None,
    max_hours: Annotated[
        float | None,
        typer.Option(
            help="Train this much longer at most; the learning rate reaches 0 by then. Default: what the recipe says."
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            help="Train until HH:MM (local time) at most; evaluation and export follow. Default: no time of day. "
            "Example: --until 23:35"
        ),
    ] = None,
    compare: Annotated[
        list[Path] | None,
        typer.Option(help="Output folder of a text-to-text run with another model, to stand in the model card."),
    ] = None,
) -> None:
    """Train a model from a recipe. Ctrl-C saves a checkpoint; the same command continues from it.

    Two runs cannot write to one output folder at the same time.
    """
    from rich.console import Console

    from ..training.recipe import check_training_arguments, find_recipe, read_recipe
    from ..training.schema import RecipeError

    try:
        file = find_recipe(recipe)
        checked = read_recipe(file, overrides)
        seconds = _seconds(max_hours, until)
        output = output_dir or Path("runs") / checked.name
        check_output_folder("--output-dir", output)
        if export is not None:
            check_output_folder("--export", export)
        load_package()
        check_training_arguments(checked.training)

        from ..training.run import RunOptions, run

        options = RunOptions(
            data_dir=data_dir or file.parent,
            output_dir=output,
            export_dir=export,
            resume=resume,
            max_seconds=seconds,
            command=_command(recipe, data_dir, overrides, max_hours, until),
            compare=compare or [],
        )
        results = run(checked, options, Console())
    except RecipeError as error:
        Console(stderr=True).print(f"Error: {error}", style="red", markup=False)
        raise typer.Exit(2) from error
    if results is None:
        raise typer.Exit(130)
    for role, scores in results["scores"].items():
        print_scores(f"{checked.name} on {role}", scores, _columns(scores, checked.card.metric_titles))


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="A bundled model, a folder, or an id of the Hugging Face hub, of a masked or a sequence-to-sequence "
            "model.",
            autocompletion=bundled_names,
        ),
    ],
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="Text file to evaluate on, or for pairs a tsv, csv or jsonl file; .gz too; may be repeated."
        ),
    ] = None,
    baselines: Annotated[
        list[Path] | None, typer.Option(help="Training text: evaluate unigram and bigram counts of it too.")
    ] = None,
    clean: Annotated[
        list[str] | None, typer.Option(help="Cleaning: wikitext, unwrap or emphasis; may be repeated. Default: none.")
    ] = None,
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
        typer.Option(
            help="Recipe, or name of a bundled one: evaluate as it does, and without --data on its test part; "
            "default: none.",
            rich_help_panel=PAIRS_PANEL,
            autocompletion=bundled_recipes,
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="MEGA_DATA_DIR",
            help="Folder that the recipe's files are in; default: the recipe's own.",
            rich_help_panel=PAIRS_PANEL,
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="bleu, chrf, exact_match, sequence_error_rate or symbol_error_rate; may be repeated. Default: the "
            "recipe's, or bleu and chrf.",
            rich_help_panel=PAIRS_PANEL,
        ),
    ] = None,
    num_beams: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_BEAMS,
            help="Beams, beside greedy decoding; default: as many as the recipe says, or 5.",
            rich_help_panel=PAIRS_PANEL,
        ),
    ] = None,
    device: DeviceOption = AUTO,
    dtype: DTypeOption = AUTO,
    json: Annotated[Path | None, typer.Option(help="JSON file to write the numbers to; default: none.")] = None,
) -> None:
    """Evaluate a masked language model at masked tokens, or a sequence-to-sequence model by its outputs."""
    from rich.console import Console

    from ..training.cleaning import check_names as check_cleaning
    from ..training.pair_recipe import Generation
    from ..training.recipe import Masking, find_recipe, read_recipe
    from ..training.schema import RecipeError

    check_names(device, dtype)
    if json is not None:
        check_output_file("--json", json)
    try:
        for file in [*(data or []), *(baselines or [])]:
            if not file.is_file():
                raise RecipeError(f"there is no file {file}")
        check_cleaning(clean or [], documents)
        masking = Masking(evaluation_probability=probability, mask=mask, random=random)
        recipe = recipe and find_recipe(recipe)
        checked = None if recipe is None else read_recipe(recipe)
        ((checked and checked.generation) or Generation()).changed(metric, num_beams)
        place = locate(model, "MODEL")
        load_package()
        placement = resolve_placement(device, dtype)

        from ..training.evaluation import evaluate_files, evaluate_pairs
        from ..training.export import write_json

        titles: dict[str, str] = {}
        report: Any
        kind = kind_of(place, PAIRS) if recipe is not None else kind_of(place, PAIRS, MASKED)
        if kind is PAIRS:
            examples, title = _pairs(data or [], (source, target), checked, data_dir or (recipe and recipe.parent))
            scores, signatures = evaluate_pairs(*load(place, kind, placement), examples, checked, metric, num_beams)
            report = {"scores": scores, "signatures": signatures}
            title = "; ".join([title, *signatures.values()])
            titles = titles if checked is None else checked.card.metric_titles
        elif not data:
            raise RecipeError("--data is missing: give a text file to evaluate on")
        else:
            scores = report = evaluate_files(
                *load(place, kind, placement),
                data,
                baselines or [],
                clean=clean or [],
                documents=documents,
                sequence_length=sequence_length,
                masking=masking,
                seed=seed,
                batch_size=batch_size,
            )
            title = f"{probability:.0%} of tokens masked, seed {seed}"
        if json is not None:
            write_json(json, report)
    except RecipeError as error:
        Console(stderr=True).print(f"Error: {error}", style="red", markup=False)
        raise typer.Exit(2) from error
    print_scores(title, scores, _columns(scores, titles))


def _pairs(files: list[Path], columns: tuple[str, str], recipe: Any, folder: Path | None) -> tuple[list[Any], str]:
    """Pairs to evaluate on, of files or of a recipe's test part, and the title of the table."""
    from ..training.evaluation import pairs_of_files, pairs_of_recipe
    from ..training.schema import RecipeError

    if files:
        return pairs_of_files(files, *map(_column, columns)), ", ".join(map(str, files))
    if recipe is None or folder is None:
        raise RecipeError("--data or --recipe: give a file of pairs, or a recipe with a test part")
    return pairs_of_recipe(recipe, folder), f"{recipe.name}, test part"


def _column(text: str) -> str | int:
    """A column's number, or its name."""
    return int(text) if text.isdigit() else text


def _seconds(max_hours: float | None, until: str | None) -> float | None:
    """The limit of this run in seconds."""
    from ..training.schema import RecipeError

    if max_hours is not None and until is not None:
        raise RecipeError("--max-hours and --until exclude each other")
    if max_hours is not None:
        if not max_hours > 0:
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


def _columns(scores: dict[str, dict[str, float]], titles: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Key -> title and format of the columns that all scores have; `titles` go before the usual ones."""
    return {
        key: (titles.get(key, name), form)
        for key, (name, form) in _COLUMNS.items()
        if all(key in score for score in scores.values())
    }
