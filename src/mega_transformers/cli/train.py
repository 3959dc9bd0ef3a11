"""`mega train` and `mega evaluate`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ..evaluation.metrics import MAX_BEAMS
from .device import AUTO, DeviceOption, DTypeOption, check_names, resolve_placement
from .loading import CAUSAL, MASKED, PAIRS, bundled_names, kind_of, load, locate
from .outputs import check_output_file, check_output_folder
from .runtime import load_package
from .tables import print_scores

PAIRS_PANEL = "Options for sequence-to-sequence models"


def bundled_recipes(incomplete: str) -> list[str]:
    """The bundled recipes whose name begins with `incomplete`, for shell completion."""
    from ..assets import RECIPES

    names = (str(path.relative_to(RECIPES).with_suffix("")) for path in RECIPES.rglob("*.yaml"))
    return sorted(name for name in names if name.startswith(incomplete))


def train(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="A YAML file, or the name of a bundled recipe such as mlm-smoke.",
            autocompletion=bundled_recipes,
        ),
    ],
    data_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="MEGA_DATA_DIR", help="Folder of the recipe's data files. Default: the recipe's own folder."
        ),
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Folder for checkpoints and results. Default: runs/<name of the recipe>.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="Folder for the finished model. Default: <output-dir>/model.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Continue from the last checkpoint in the output folder.")
    ] = True,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Override a value of the recipe: key=value. Can be repeated. Example: --set training.max_steps=100",
        ),
    ] = None,
    max_hours: Annotated[
        float | None,
        typer.Option(
            help="Save a checkpoint and stop after this many hours; the same command continues. Default: none."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Estimate time and memory from a few steps, and write nothing.")
    ] = False,
    compare: Annotated[
        list[Path] | None,
        typer.Option(
            help="Output folder of a finished run of the same recipe with another model, to compare with in "
            "the model card. Can be repeated."
        ),
    ] = None,
) -> None:
    """Train a model from a recipe. Ctrl-C saves a checkpoint; the same command continues from it.

    For several processes or machines, start it with torchrun or accelerate: torchrun --nproc-per-node 8 -m
    mega_transformers train RECIPE. Two runs cannot share an output folder at the same time.
    """
    from rich.console import Console

    from ..errors import RecipeError

    try:
        _check_packages()
        from ..training.recipe import find_recipe, read_recipe

        file = find_recipe(recipe)
        checked = read_recipe(file, overrides)
        if max_hours is not None and not max_hours > 0:
            raise RecipeError(f"--max-hours {max_hours} must be above 0")
        output = output_dir or Path("runs") / checked.name
        check_output_folder("--output-dir", output)
        if export is not None:
            check_output_folder("--export", export)
        load_package()
        import torch

        folder = data_dir or _folder_of(file)
        if dry_run:
            from ..training.evaluate import dry_run as try_out

            _print_plan(checked.name, checked.sequence_length, try_out(checked, folder))
            return

        from ..training.run import RunOptions, run

        options = RunOptions(
            data_dir=folder,
            output_dir=output,
            export_dir=export,
            resume=resume,
            max_seconds=None if max_hours is None else max_hours * 3600,
            command=_command(recipe, data_dir, overrides),
            compare=tuple(compare or []),
        )
        results = run(checked, options, Console())
    except (RecipeError, OSError) as error:
        # all processes of a machine find the same fault in a recipe
        if isinstance(error, OSError) or os.environ.get("LOCAL_RANK", "0") == "0":
            Console(stderr=True).print(f"Error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from error
    except RuntimeError as error:
        if "Connection closed by peer" not in str(error):
            raise
        # another process has ended and has printed the reason
        raise typer.Exit(2) from error
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if results is None:
        raise typer.Exit(130)
    if int(os.environ.get("RANK", "0")) == 0:
        for role, scores in results["scores"].items():
            print_scores(f"{checked.name} on {role}", scores, _columns(checked))


def _check_packages() -> None:
    """Refuses to train if a package is missing that training needs; imports none of them."""
    from importlib.util import find_spec

    from ..errors import RecipeError

    for package in ("pydantic", "datasets", "accelerate"):
        if find_spec(package) is None:
            raise RecipeError(f"training needs the package {package}: pip install 'mega-transformers[train]'")


def _folder_of(file: Path) -> Path:
    """The root of the bundled recipes for a bundled recipe, else the file's own folder."""
    from ..assets import RECIPES

    return RECIPES if RECIPES in file.parents else file.parent


def _columns(recipe: Any) -> dict[str, tuple[str, str]]:
    from ..training.tasks import class_of

    titles = recipe.card.metric_titles
    return {key: (titles.get(key, name), form) for key, (name, form) in class_of(recipe).columns.items()}


def _print_plan(name: str, length: int, plan: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "", title=f"{name}, estimated from a few steps on {plan['device']}", show_header=False)
    table.add_row("parameters", f"{plan['parameters']:,}")
    for role, count in plan["rows"].items():
        table.add_row(f"{role} rows", "streamed" if count is None else f"{count:,}")
    table.add_row("steps", f"{plan['steps']:,}")
    table.add_row("examples", f"{plan['examples']:,}")
    table.add_row("tokens or values, at most", f"{plan['examples'] * length:,}")
    table.add_row("seconds a step", f"{plan['seconds_per_step']:.3f}")
    table.add_row("hours, without evaluations", f"{plan['hours']:.2f}")
    table.add_row("memory, at its peak", f"{plan['memory'] / 1e9:.2f} GB")
    Console().print(table)


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="A bundled model, a folder, or an id of the Hugging Face hub.",
            autocompletion=bundled_names,
        ),
    ],
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Text file to evaluate on; for pairs, a tsv, csv or jsonl file. Also .gz. Can be repeated."),
    ] = None,
    baselines: Annotated[
        list[Path] | None,
        typer.Option(help="Training text file: also evaluate unigram and bigram models of it. Default: none."),
    ] = None,
    clean: Annotated[
        list[str] | None,
        typer.Option(help="Cleaning of the text: wikitext, unwrap or emphasis. Can be repeated. Default: none."),
    ] = None,
    documents: Annotated[
        str, typer.Option(help="Split each text into documents: whole, lines, paragraphs, sections or articles.")
    ] = "lines",
    sequence_length: Annotated[
        int, typer.Option(min=8, help="Tokens per block; for pairs, most tokens of a source.")
    ] = 512,
    probability: Annotated[float, typer.Option(help="Share of the tokens to predict.")] = 0.15,
    mask: Annotated[float, typer.Option(help="Share of the predicted tokens that the mask token replaces.")] = 1.0,
    random: Annotated[float, typer.Option(help="Share of the predicted tokens that a random token replaces.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the masks.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per batch.")] = 16,
    source: Annotated[
        str, typer.Option(help="Column of the source texts: its name or number.", rich_help_panel=PAIRS_PANEL)
    ] = "source",
    target: Annotated[
        str, typer.Option(help="Column of the target texts: its name or number.", rich_help_panel=PAIRS_PANEL)
    ] = "target",
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="A recipe file, or the name of a bundled recipe: evaluate on its rows, as its training does. "
            "Default: none.",
            autocompletion=bundled_recipes,
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="MEGA_DATA_DIR", help="Folder of the recipe's data files. Default: the recipe's own folder."
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="bleu, chrf, exact_match, sequence_error_rate or symbol_error_rate. Can be repeated. Default: the "
            "recipe's, else bleu and chrf.",
            rich_help_panel=PAIRS_PANEL,
        ),
    ] = None,
    num_beams: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_BEAMS,
            help="Number of beams of a second evaluation, besides greedy decoding. Default: the recipe's, else 5.",
            rich_help_panel=PAIRS_PANEL,
        ),
    ] = None,
    device: DeviceOption = AUTO,
    dtype: DTypeOption = AUTO,
    json: Annotated[Path | None, typer.Option(help="JSON file to write the numbers to. Default: none.")] = None,
) -> None:
    """Evaluate a model on the rows of a recipe, or evaluate a masked or sequence-to-sequence model on files."""
    from rich.console import Console

    from ..errors import RecipeError

    check_names(device, dtype)
    if json is not None:
        check_output_file("--json", json)
    try:
        _check_packages()
        from ..training.recipe import Masking, TextToTextRecipe, find_recipe, parse, read_recipe, recipe_of

        for file in [*(data or []), *(baselines or [])]:
            if not file.is_file():
                raise RecipeError(f"there is no file {file}")
        place = locate(model, "MODEL")
        files = [str(path.resolve()) for path in data or []]
        folder = data_dir or Path("/")
        kind = None
        if recipe is not None:
            found = find_recipe(recipe)
            checked, folder = read_recipe(found), data_dir or _folder_of(found)
            kind = {"text-to-text": PAIRS, "masked-lm": MASKED, "causal-lm": CAUSAL}.get(checked.task)
            if kind is not None:
                kind_of(place, kind)
            checked = checked.model_copy(update={"model": {"checkpoint": place.name}, "tokenizer": None})
        elif not files:
            raise RecipeError("--data or --recipe: give files, or a recipe with validation or test rows")
        else:
            masking = {"evaluation_probability": probability, "mask": mask, "random": random}
            parse(Masking, masking, "masking")  # before transformers is imported
            kind = kind_of(place, PAIRS, MASKED)
            common = {"name": "evaluation", "sequence_length": sequence_length, "model": {"checkpoint": place.name}}
            rows: dict[str, Any] = {"name": ", ".join(path.name for path in data or []), "license": "", "test": files}
            if kind is PAIRS:
                rows |= {"source": _column(source), "target": _column(target)}
                values = {**common, "task": "text-to-text", "data": [rows]}
            else:
                rows |= {"documents": documents, "clean": clean or []}
                rows["train"] = [str(path.resolve()) for path in baselines or []]
                more = {"packing": "wrapped", "masking": masking, "seed": seed}
                values = {**common, **more, "task": "masked-lm", "data": [rows]}
            checked = recipe_of(values, to_train=False)
        if isinstance(checked, TextToTextRecipe):
            checked = checked.model_copy(update={"generation": checked.generation.changed(metric, num_beams)})
        load_package()
        placement = resolve_placement(device, dtype)
        loaded, tokenizer = load(place, kind, placement) if kind is not None else (None, None)

        from ..training.evaluate import evaluate_model
        from ..training.export import write_json

        changes = {"use_cpu": placement.device.type == "cpu", "per_device_eval_batch_size": batch_size}
        report = evaluate_model(checked, folder, tokenizer, loaded, **changes)
        if json is not None:
            write_json(json, report)
    except (RecipeError, OSError) as error:
        Console(stderr=True).print(f"Error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from error
    for role, scores in report["scores"].items():
        print_scores(f"{checked.name}, {role}", scores, _columns(checked))


def _column(text: str) -> str | int:
    """A column's number, or its name."""
    return int(text) if text.isdigit() else text


def _command(recipe: Path, data_dir: Path | None, overrides: list[str] | None) -> str:
    """The command for the model card, without the folders of this machine."""
    shown = os.path.relpath(recipe)
    parts = ["mega train", recipe.name if shown.startswith("..") else shown]
    if data_dir is not None:
        parts.append("--data-dir DATA")
    return " ".join([*parts, *(f"--set {override}" for override in overrides or [])])
