"""`mega inspect`: a report of what a model has learnt, in one HTML file."""

from __future__ import annotations

import importlib.util
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .device import AUTO, DeviceOption, DTypeOption, Placement, check_names, resolve_placement
from .loading import Location, bundled_names, loading, locate
from .outputs import check_output_file, check_output_folder, write_text
from .runtime import UserError, gather_texts, load_libraries, stderr_console

if TYPE_CHECKING:
    from ..interpret.report import Inspection, Section

EXAMPLE = 'mega inspect mega-prose-5m --text "The ship sailed."'
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json")


def inspect(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A bundled model, a folder, or an id of the Hugging Face hub.",
            autocompletion=bundled_names,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="HTML file to write. Default: NAME-report.html in this folder."),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="Text to show gates and attention on, up to 512 tokens; '-' reads stdin. Default: a sample."
        ),
    ] = None,
    text_file: Annotated[
        Path | None, typer.Option(help="File to read that text from, also .gz. Default: none.")
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(
            help="Lengths to time, in tokens, separated by commas. Default: 256, then doubling for as long as "
            "--seconds allows. Example: --lengths 512,1024,2048"
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds to spend on timing.")] = 5.0,
    no_timing: Annotated[bool, typer.Option("--no-timing", help="Leave out time and memory.")] = False,
    figures: Annotated[
        Path | None, typer.Option(help="Folder to write each picture to as an SVG file. Default: none.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="JSON file to write the numbers to. Default: none.")] = None,
    device: DeviceOption = AUTO,
    dtype: DTypeOption = AUTO,
) -> None:
    """Write a report of what a Mega model has learnt: one HTML file with pictures and tables.

    The report shows parameters, EMA kernels and their half-lives, position biases, gates and attention on a text, and
    time and memory by length. The file loads nothing from elsewhere; its pictures are SVG, fit for a paper.
    """
    check_names(device, dtype)
    wanted_lengths = _lengths(lengths, no_timing)
    output = output or Path(f"{Path(model).expanduser().resolve().name}-report.html")
    check_output_file("--output", output)
    if json is not None:
        check_output_file("--json", json)
        if json.absolute() == output.absolute():
            raise UserError(f"--json {json}: the report itself goes to that file; name another")
    if figures is not None:
        check_output_folder("--figures", figures)
    given = _text(text, text_file)
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("mega inspect needs the package matplotlib: pip install 'mega-transformers[inspect]'")
    place = locate(model, "MODEL")
    load_libraries()
    placement = resolve_placement(device, dtype)
    loaded, tokenizer = _load(place, placement)
    inspection, sections = _inspected(loaded, tokenizer, place, given, wanted_lengths, None if no_timing else seconds)
    size = _write(inspection, sections, output, figures, json)
    _print(inspection, output, size)


def _lengths(given: str | None, no_timing: bool) -> list[int] | None:
    """The lengths of `--lengths`, ascending."""
    if given is None:
        return None
    if no_timing:
        raise UserError(f"--lengths {given}: --no-timing measures no lengths; leave out one of the two")
    parts = [part.strip() for part in given.split(",")]
    if not all(part.isascii() and part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(
            f"--lengths {given}: expected whole numbers of tokens separated by commas, such as 512,1024,2048"
        )
    return sorted({int(part) for part in parts})


def _text(text: str | None, file: Path | None) -> str | None:
    """The text of `--text` or `--text-file`."""
    if file is None and text is None:
        return None
    if file is None:
        (found,) = gather_texts([str(text)], metavar="--text", example=EXAMPLE, kind="text", whole=True)
        option = "--text"
    else:
        if text is not None:
            raise UserError("--text and --text-file exclude each other; give one of the two")
        from ..errors import RecipeError
        from ..evaluation.texts import read_text

        try:
            found = read_text(file)
        except RecipeError as error:
            raise UserError(f"--text-file: {error}") from error
        option = f"--text-file {file}"
    if not found.strip():
        raise UserError(f"{option}: the text is empty; give a text, or leave out the option")
    return found


def _load(place: Location, placement: Placement) -> tuple[Any, Any]:
    """The model with the head it was saved with, and its tokenizer or None.

    Raises:
        UserError: if it is not a Mega model, or its files are missing or damaged.
    """
    import torch
    import transformers

    import mega_transformers

    with loading(place):
        config = transformers.AutoConfig.from_pretrained(**place.arguments)
    if config.model_type not in ("mega", "mega_seq2seq"):
        raise UserError(
            f"MODEL {place.name}: its type is {config.model_type}, but mega inspect needs a model of type mega or "
            "mega_seq2seq"
        )
    known = [name for name in config.architectures or [] if name in mega_transformers.__all__]
    bare = "MegaSeq2SeqModel" if config.is_encoder_decoder else "MegaModel"
    model_class = getattr(mega_transformers, known[0] if known else bare)
    tokenizer = None
    with loading(place):
        if place.folder is None or any((place.folder / name).is_file() for name in TOKENIZER_FILES):
            tokenizer = transformers.AutoTokenizer.from_pretrained(**place.arguments)
        model, loaded = model_class.from_pretrained(**place.arguments, dtype=placement.dtype, output_loading_info=True)
    missing = sorted(loaded["missing_keys"])
    if missing:
        raise UserError(
            f"MODEL {place.name}: its checkpoint lacks {len(missing)} weights of a {model_class.__name__}, such as "
            f"{missing[0]}"
        )
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise UserError(f"MODEL {place.name}: its weight {name} holds numbers that are not finite")
    return model.to(placement.device).eval(), tokenizer


def _inspected(
    model: Any,
    tokenizer: Any,
    place: Location,
    text: str | None,
    lengths: list[int] | None,
    seconds: float | None,
) -> tuple[Inspection, list[Section]]:
    """Measures and draws everything, and names each stage on stderr; `seconds` is None for no timing."""
    from ..doctor import surroundings
    from ..errors import RecipeError
    from ..interpret.cost import measure_costs
    from ..interpret.inspection import count_parameters, inspect_weights, sides_of
    from ..interpret.reading import longest_input, prepare_passage, read, why_unreadable
    from ..interpret.report import Inspection, sections_of

    unread = why_unreadable(model, tokenizer)
    if text is not None and unread is not None:
        raise UserError(f"the model {place.name} cannot read the text: {unread}; leave out --text and --text-file")
    limit = longest_input(model)
    if lengths is not None and limit is not None and lengths[-1] > limit:
        raise UserError(f"--lengths: {lengths[-1]:,} is above the {limit:,} tokens that the model takes")
    console = stderr_console()
    with console.status("Reading a text") if console.is_terminal else nullcontext() as status:
        tell = status.update if status is not None else lambda _: None
        try:
            # first, to refuse a text that is too long
            passage = None if unread is not None else prepare_passage(model, tokenizer, text)
        except RecipeError as error:
            raise UserError(str(error)) from error
        reading = None if passage is None else read(model, passage)
        tell("Reading the weights")
        sides = [inspect_weights(name, side) for name, side in sides_of(model).items()]
        costs = None
        if seconds is not None and not _needs_encoder(model):
            costs = measure_costs(model, lengths, seconds, lambda what: tell(f"Measuring {what}"))
        around = surroundings([model.device])
        described = around["devices"][str(model.device)]
        plural = "" if around["threads"] == 1 else "s"
        threads = f", {around['threads']} thread{plural}" if model.device.type == "cpu" else ""
        inspection = Inspection(
            name=Path(place.name).expanduser().resolve().name if place.folder else place.name,
            architecture=type(model).__name__,
            parameters=count_parameters(model),
            sides=sides,
            reading=reading,
            unread=unread,
            costs=costs,
            surroundings={
                "mega-transformers": around["mega-transformers"],
                "transformers": around["transformers"],
                "torch": around["torch"],
                "device": f"{described}{threads}",
                "dtype": str(model.dtype).removeprefix("torch."),
            },
        )
        return inspection, sections_of(inspection, lambda what: tell(f"Drawing: {what}"))


def _needs_encoder(model: Any) -> bool:
    """Whether it is a decoder without its encoder."""
    return bool(getattr(model.config, "add_cross_attention", False))


def _write(
    inspection: Inspection, sections: list[Section], output: Path, figures: Path | None, json: Path | None
) -> int:
    """Writes the requested files, the report last; returns the report's size in bytes."""
    from ..interpret.report import as_json, render
    from ..training.export import write_json

    if figures is not None:
        figures.mkdir(parents=True, exist_ok=True)
        for picture in (picture for section in sections for picture in section.pictures):
            write_text(figures / f"{picture.name}.svg", picture.file())
    if json is not None:
        write_json(json, as_json(inspection))
    write_text(output, render(inspection, sections))
    return output.stat().st_size


def _print(inspection: Inspection, output: Path, size: int) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    from ..interpret.report import highlights

    table = Table(
        Column("", style="bold"),
        Column("", overflow="fold"),
        title=Text(f"{inspection.name}, {inspection.architecture}"),
        title_justify="left",
        box=box.SIMPLE,
        show_header=False,
    )
    for name, value in highlights(inspection):
        table.add_row(Text(name), Text(value))
    Console(highlight=False).print(table)
    typer.echo(f"Wrote {output} ({size / 1e6:.1f} MB)")
