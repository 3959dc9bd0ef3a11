"""`mega convert`: old checkpoints as models of this package."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .outputs import check_output_folder
from .runtime import UserError, load_libraries, print_note, stderr_console

if TYPE_CHECKING:
    from rich.table import Table

    from ..convert import ConversionReport


class Dtype(StrEnum):
    """The number formats that weights can be stored in."""

    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class Which(StrEnum):
    """Which weights of a fairseq file to convert."""

    model = "model"
    ema = "ema"


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A .pt file of fairseq (or one part of it), a folder with model_args.pkl, or a folder saved by "
            "transformers 4.",
        ),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The folder to write. It must not exist yet.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of the tokenizer to save with the model. Default: the source's own.")
    ] = None,
    dictionary: Annotated[
        list[Path] | None,
        typer.Option(
            help="fairseq's dict.txt, to make a tokenizer from. Give it twice for separate vocabularies, the "
            "source's first. Default: none."
        ),
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option(help="Number format of the stored weights; auto keeps the source's.")
    ] = Dtype.auto,
    weights: Annotated[
        Which,
        typer.Option(
            help="Which weights to convert: the model's, or their moving average (ema), which some "
            "fairseq files also hold."
        ),
    ] = Which.model,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Compare the converted model with an independent float64 evaluation of the source.",
        ),
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing model.")] = False,
) -> None:
    """Convert a checkpoint of fairseq, of a pretrained masked language model or of transformers 4 to this package's
    format.

    The format is detected. No code from a file is run, a damaged file is an error, and the folder appears only once it
    is complete and computes the same numbers as its source.
    """
    source, output = source.expanduser(), output.expanduser()
    if not source.exists():
        raise UserError(f"SOURCE {source}: there is no file or folder of this name")
    check_output_folder("OUTPUT", output)
    load_libraries()
    from ..convert import ConversionError, convert_checkpoint

    with _Bars() as bars:
        try:
            report = convert_checkpoint(
                source,
                output,
                tokenizer=tokenizer,
                dictionaries=dictionary or [],
                dtype=dtype.value,
                averaged=weights is Which.ema,
                verify=verify,
                force=force,
                progress=bars.show,
            )
        except ConversionError as error:
            raise UserError(str(error)) from error
    _print(report, verify)


class _Bars:
    """A progress bar on stderr for every stage; on a terminal the bars disappear at the end."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

        console = stderr_console()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=console.is_terminal,
        )
        self._stages: dict[str, Any] = {}

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, stage: str, done: int, total: int) -> None:
        """Reports `done` of `total` for a stage; a stage that starts again gets a new bar."""
        task = self._stages.get(stage)
        if task is None or self._progress.tasks[task].finished:
            task = self._stages[stage] = self._progress.add_task(stage, total=total)
        self._progress.update(task, completed=done, total=total)


def _print(report: ConversionReport, verified: bool) -> None:
    from rich.console import Console

    console = Console()
    console.print(_table("Mapped", ("theirs", "ours", "tensors"), _grouped(report.mapped)))
    if report.dropped:
        console.print(_table("Left out", ("name", "reason"), report.dropped))
    if verified:
        rows = [(each.case, each.output, f"{each.relative:.1e}") for each in report.deviations]
        console.print(_table("Checked against the source in float64", ("inputs", "output", "deviation"), rows))
        worst = max(each.relative for each in report.deviations)
        console.print(f"Greatest deviation: {worst:.1e} relative", highlight=False)
    else:
        console.print("Not checked (--no-verify)")
    for note in report.notes:
        print_note(note)
    console.print(
        f"Wrote {report.folder}: {report.architecture} in {report.dtype}, {report.size:,} bytes of weights, "
        f"from: {report.source}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _grouped(mapped: list[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    """Groups names that differ only in the prefix before a layer's number into one row."""
    rows: dict[tuple[str, str], int] = {}
    for theirs, ours, count in mapped:
        (start, layer, rest), (our_start, our_layer, our_rest) = theirs.partition("*"), ours.partition("*")
        if layer and our_layer and rest == our_rest:
            theirs, ours = f"{start}*.… (other names)", f"{our_start}*.… (the same)"
        rows[theirs, ours] = rows.get((theirs, ours), 0) + count
    return [(*names, count) for names, count in rows.items()]


def _table(title: str, columns: tuple[str, ...], rows: list[Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right" if column in ("tensors", "deviation") else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table
