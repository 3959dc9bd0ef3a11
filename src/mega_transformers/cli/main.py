"""The commands of `mega`. They import torch only inside functions, so that `mega --help` answers at once."""

from __future__ import annotations

import inspect as inspection
from collections.abc import Callable
from typing import Annotated

import typer

from .._version import __version__
from .bench import bench
from .classify import classify
from .convert import convert
from .demo import demo
from .doctor import doctor
from .embed import embed
from .examples import epilog
from .explain import explain
from .export_onnx import export_onnx
from .fill_mask import fill_mask
from .generate import generate
from .inspect import inspect
from .perplexity import perplexity
from .publish import publish
from .run import SETTINGS, run
from .runtime import guarded
from .text2text import text2text
from .train import evaluate, train

app = typer.Typer(
    name="mega",
    help="Mega: moving average equipped gated attention. "
    "Fill masks, write, embed, classify, score and explain texts, train, evaluate, convert, inspect, measure, check.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mega-transformers {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """The options of `mega` itself."""


def _help(command: Callable[..., None]) -> str:
    """The docstring with one line for each paragraph, which the terminal breaks at its own width."""
    paragraphs = (inspection.getdoc(command) or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


for _command in (
    fill_mask,
    generate,
    text2text,
    embed,
    classify,
    perplexity,
    explain,
    train,
    evaluate,
    convert,
    publish,
    demo,
    inspect,
    export_onnx,
    bench,
    doctor,
):
    _name = _command.__name__.replace("_", "-")
    app.command(_name, help=_help(_command), epilog=epilog(_name))(guarded(_command))
app.command(
    "run",
    context_settings=SETTINGS,
    help=_help(run),
    epilog=epilog("run"),
    options_metavar="COMMAND [ARGUMENT]...",
)(guarded(run))
