"""`mega export-legacy`: a model for transformers 4.40.2."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .publish import model_folder, print_files, stages, told_as_user_errors
from .runtime import load_libraries, print_note


def export_legacy(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The folder of a model, or a bundled model. It is not changed.")
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="The folder to write, which must not be there yet.")
    ],
    force: Annotated[bool, typer.Option("--force", help="Replace a model that is in OUTPUT already.")] = False,
) -> None:
    """Write a model that transformers 4.40.2 loads and computes the same numbers with, or say what that lacks.

    Some of what 4.40.2 lacks can be put into weights that it has; the result says so, and is compared with the model.
    """
    load_libraries()
    from ..publish import export_legacy as export

    with stages() as stage, told_as_user_errors():
        report = export(model_folder(model), output.expanduser(), force=force, stage=stage)
    print_files(f"{report.folder}: {report.architecture}", report.files)
    for change in report.changes:
        typer.echo(f"Changed: {change}")
    for note in report.notes:
        print_note(f"transformers 4.40.2: {note}")
    typer.echo(f"Greatest deviation from the model: {report.deviation:.1e} relative")
    typer.echo(f"Next, with transformers 4.40.2: {report.architecture}.from_pretrained({str(report.folder)!r})")
