"""`mega export-onnx`: exports a model to graphs for ONNX Runtime."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..assets import BUNDLED_MODELS
from .outputs import check_output_folder
from .publish import model_folder, print_files, stages, told_as_user_errors
from .runtime import UserError, load_libraries

if TYPE_CHECKING:
    from rich.table import Table

    from ..onnx_export import ExportReport
    from ..onnx_export.check import Row
    from ..onnx_export.quantise import Loss

OPSETS = (18, 23)
"""The lowest and highest tested versions."""


def export_onnx(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A model's folder, or a bundled model. It is not changed.",
            autocompletion=lambda incomplete: [name for name in BUNDLED_MODELS if name.startswith(incomplete)],
        ),
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="The folder to write. It must be empty or not exist yet.")
    ],
    opset: Annotated[
        int,
        typer.Option(min=OPSETS[0], max=OPSETS[1], help="Version of the ONNX operator set, 18 or higher."),
    ] = OPSETS[0],
    int8: Annotated[
        bool, typer.Option("--int8", help="Also write graphs with 8-bit weights, and measure their loss and speed.")
    ] = False,
    text_file: Annotated[
        Path | None,
        typer.Option(help="With --int8: text file to measure the loss on. Default: a bundled sample."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing model in OUT.")] = False,
) -> None:
    """Export a model to ONNX, to run it with ONNX Runtime from any language, on any number of texts of any length.

    A language model also gets a decoder graph, which takes and returns its cache to generate token by token. Every
    graph is compared with the model at six lengths on one CPU thread. Nothing is written if a number deviates by more
    than 1e-4, relative to 1 + the greatest number of its output.
    """
    source = model_folder(folder)
    if not source.is_dir():
        raise UserError(f"MODEL {folder}: there is no such folder or bundled model")
    check_output_folder("OUT", output)
    text = _text(text_file, int8)
    missing = [name for name in ("onnxruntime", "onnxscript") if find_spec(name) is None]
    if missing:
        raise UserError(f"{' and '.join(missing)} is missing: pip install 'mega-transformers[onnx]'")
    load_libraries()
    from ..onnx_export import export_folder

    with stages() as stage, told_as_user_errors():
        report = export_folder(
            source, output.expanduser(), opset=opset, int8=int8, text=text, force=force, stage=stage
        )
    _print(report)


def _text(path: Path | None, int8: bool) -> str | None:
    """The text to measure the loss on, or None."""
    if path is None:
        return None
    if not int8:
        raise UserError(f"--text-file {path} needs --int8; give both, or neither")
    if not path.is_file():
        raise UserError(f"--text-file {path}: there is no such file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"--text-file {path} is not valid UTF-8") from None
    if not text.strip():
        raise UserError(f"--text-file {path} holds no text")
    return text


def _print(report: ExportReport) -> None:
    from rich.console import Console

    console = Console()
    print_files(f"{report.folder}: {report.architecture}", report.files)
    console.print(_table("Compared with PyTorch, one thread each", report.rows))
    if report.losses is not None:
        console.print(_table("8-bit weights", report.int8_rows))
        console.print(_costs(report.losses))
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in report.seconds.items())
    console.print(f"Took: {seconds}. Inputs and outputs: {report.folder / 'export.json'}", highlight=False)


def _table(title: str, rows: list[Row]) -> Table:
    from rich.table import Table

    table = Table(title=title)
    table.add_column("graph")
    for name in ("tokens", "deviation", "ONNX Runtime, ms", "PyTorch, ms", "ratio"):
        table.add_column(name, justify="right")
    before = None
    for row in rows:
        if before not in (None, row.graph):
            table.add_section()
        before = row.graph
        table.add_row(
            row.graph,
            f"{row.length:,}",
            f"{row.deviation:.1e}",
            f"{row.ms:.2f}",
            f"{row.torch_ms:.2f}",
            f"{row.ms / row.torch_ms:.2f}",
        )
    return table


def _costs(losses: Loss) -> str:
    told = f"8-bit weights, {losses.tokens:,} {losses.measured_on}: the same choice in {losses.agreement:.1%}"
    if losses.loss is None or losses.int8_loss is None:
        return told
    change = losses.int8_loss - losses.loss
    return f"{told}; loss {losses.int8_loss:.4f} nats a token in place of {losses.loss:.4f} ({change:+.4f})"
