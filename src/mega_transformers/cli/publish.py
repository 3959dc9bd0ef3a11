"""`mega publish`: prepares a model's folder for the model hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .outputs import check_output_folder
from .runtime import UserError, load_libraries, print_note, stderr_console

if TYPE_CHECKING:
    from ..publish import PublishReport


def publish(
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="A model's folder, or a bundled model. It is not changed.")
    ],
    output: Annotated[
        Path | None,
        typer.Argument(
            metavar="[OUTPUT]", help="The folder to write. It must not exist yet. Default: NAME-hub in this folder."
        ),
    ] = None,
    repo_id: Annotated[
        str | None,
        typer.Option(
            metavar="NAME/MODEL", help="Id on the hub, such as NAME/MODEL, for the card and --push. Default: none."
        ),
    ] = None,
    push: Annotated[
        bool, typer.Option("--push", help="Upload the folder to --repo-id. Nothing is uploaded without it.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="With --push: create a private repository.")] = False,
    standalone: Annotated[
        bool,
        typer.Option(
            "--standalone", help="Add the modelling code to the folder, so that the model works without this package."
        ),
    ] = False,
    license_id: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="The model's licence. Default: the one in its card.")
    ] = None,
    language: Annotated[
        str | None,
        typer.Option(metavar="CODE", help="The language of its texts, such as en. Default: the one in its card."),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(metavar="NAME/MODEL", help="The model it was trained from. Default: the one in its card."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing model in OUTPUT.")] = False,
) -> None:
    """Prepare a model's folder for the model hub: safetensors, tokenizer, a complete card, and nothing else.

    A damaged model is refused. Training checkpoints and other files are left out. Nothing is uploaded without --push.
    """
    source = model_folder(folder)
    if not source.is_dir():
        raise UserError(f"FOLDER {folder}: there is no such folder or bundled model")
    target = output.expanduser() if output is not None else Path(f"{source.resolve().name}-hub")
    check_output_folder("OUTPUT", target)
    load_libraries()
    from ..publish import publish_folder

    with stages() as stage, told_as_user_errors():
        report = publish_folder(
            source,
            target,
            repo_id=repo_id,
            push=push,
            private=private,
            with_code=standalone,
            license=license_id,
            language=language,
            base_model=base_model,
            force=force,
            stage=stage,
        )
    _print(report, repo_id)


def model_folder(name: str) -> Path:
    """The user's folder, or that of a bundled model."""
    from ..assets import BUNDLED_MODELS, bundled_model

    path = Path(name).expanduser()
    if name in BUNDLED_MODELS and not path.exists():
        try:
            return bundled_model(name)
        except ValueError as error:
            raise UserError(str(error)) from None
    return path


@contextmanager
def told_as_user_errors() -> Iterator[None]:
    """Turns errors of publishing into messages for the user."""
    from ..convert import ConversionError

    try:
        yield
    except ConversionError as error:
        raise UserError(str(error)) from error


@contextmanager
def stages() -> Iterator[Callable[[str], None]]:
    """Shows the current stage with a spinner on stderr, if that is a terminal."""
    console = stderr_console()
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status("Starting") as status:

        def show(stage: str) -> None:
            # the hub's library draws its own progress bars
            if stage.startswith("Uploading"):
                status.stop()
                console.print(stage)
            else:
                status.update(stage)

        yield show


def print_files(title: str, files: dict[str, tuple[int, str]]) -> None:
    """A table of files: name, bytes and contents."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title))
    table.add_column("file", overflow="fold")
    table.add_column("bytes", justify="right")
    table.add_column("contents", overflow="fold")
    for name, (size, what) in files.items():
        table.add_row(Text(name), f"{size:,}", Text(what))
    Console().print(table)


def _print(report: PublishReport, repo_id: str | None) -> None:
    from ..publish.publication import CODE

    sizes = [size for size, what in report.files.values() if what == CODE]
    files = {name: each for name, each in report.files.items() if each[1] != CODE}
    if sizes:
        files[f"{len(sizes)} files *.py"] = (sum(sizes), CODE)
    print_files(f"{report.folder}: {report.architecture}", files)
    if report.added:
        typer.echo(f"Added to the card: {', '.join(report.added)}")
    if report.left_out:
        typer.echo(f"Left behind: {', '.join(report.left_out)}")
    for note in report.notes:
        print_note(note)
    if report.url is not None:
        typer.echo(f"Uploaded to {report.url}")
    else:
        typer.echo(f"Next: read README.md, then hf upload {repo_id or 'NAME/MODEL'} {report.folder} .")
