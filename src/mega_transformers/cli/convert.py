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

    from ..convert import Report


class Dtype(StrEnum):
    """What weights can be stored in."""

    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class Which(StrEnum):
    """Which weights of a file of fairseq to convert."""

    model = "model"
    ema = "ema"


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A .pt file of fairseq or one of its parts; a folder with model_args.pkl, or of transformers 4.",
        ),
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="The folder to write, which must not be there yet.")
    ],
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder whose tokenizer goes with the model; default: the source's own.")
    ] = None,
    dictionary: Annotated[
        list[Path] | None,
        typer.Option(
            help="dict.txt of fairseq, to make a tokenizer of; twice for separate vocabularies, the source's first. "
            "Default: none."
        ),
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option(help="What weights are stored in; auto is what the source has.")
    ] = Dtype.auto,
    weights: Annotated[
        Which, typer.Option(help="The weights, or the moving average of them that some files of fairseq hold too.")
    ] = Which.model,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify", help="Compare the result with an independent evaluation of the source in float64."
        ),
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace a model that is there already.")] = False,
) -> None:
    """Convert an old checkpoint: of fairseq, of a pretrained masked language model, or of transformers 4.

    The format is recognised. Nothing that a file contains is run, damage is an error wherever it can be noticed, and
    the folder appears only when it is complete and computes what its source computes.
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
    """A bar on stderr for every stage; on a terminal they are gone at the end."""

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
        """`done` of `total` of a stage are done; a stage that begins again has a bar of its own."""
        task = self._stages.get(stage)
        if task is None or self._progress.tasks[task].finished:
            task = self._stages[stage] = self._progress.add_task(stage, total=total)
        self._progress.update(task, completed=done, total=total)


def _print(report: Report, verified: bool) -> None:
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
    """Names that only differ in what stands before a layer's number as one row."""
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
