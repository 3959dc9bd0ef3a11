"""What every command shares: the late import of torch, quiet libraries, texts, errors and interrupts."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, TypeVar

import typer

from ..errors import shortened

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")
STDIN = "-"


class UserError(Exception):
    """A mistake of the user's. The command prints its message, without a traceback, and exits with 1."""


def guarded(command: Callable[..., T]) -> Callable[..., T]:
    """`command`, with errors that a user can mend as messages on stderr and exit code 1, and Ctrl-C as 130.

    These are `UserError`, a file that cannot be read or written, and memory that is used up.

    Args:
        command: The function that typer makes a command of.
    """

    @wraps(command)
    def run(*args: object, **kwargs: object) -> T:
        try:
            return command(*args, **kwargs)
        except UserError as error:
            print_error(str(error))
            raise typer.Exit(1) from error
        except KeyboardInterrupt as interrupt:
            raise typer.Exit(130) from interrupt
        except BrokenPipeError as error:
            silence_stdout()
            raise typer.Exit(1) from error
        except OSError as error:
            if error.errno is None:
                raise
            print_error(": ".join(str(part) for part in (error.filename, error.strerror) if part))
            raise typer.Exit(1) from error
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            print_error(
                "there is not enough memory; give shorter texts, fewer at a time (--batch-size) or fewer --num-beams"
            )
            raise typer.Exit(1) from error

    return run


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is used up: PyTorch has a class of it for accelerators only."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


def print_error(message: str) -> None:
    """One message on stderr, red on a terminal."""
    typer.secho(f"Error: {message}", fg=typer.colors.RED, err=True)


def print_note(message: str) -> None:
    """Something worth knowing on stderr."""
    typer.secho(f"Note: {message}", fg=typer.colors.YELLOW, err=True)


def gather_texts(arguments: list[str], *, metavar: str, example: str, kind: str, whole: bool = False) -> list[str]:
    """The texts of the command line, with stdin's in place of `-`, or of no argument at all.

    Args:
        arguments: What the command line gives.
        metavar: What the command calls them: "TEXT".
        example: A command that is right, for messages.
        kind: What a text is, for messages: "prompt".
        whole: Whether stdin is one text, without the line ends at its end, and not one per line.

    Raises:
        typer.BadParameter: where there is no text, or `-` is given twice.
        UserError: for an empty stdin, and for what is not UTF-8.
    """
    if not arguments:
        if sys.stdin.isatty():
            raise typer.BadParameter(f"give a {kind}, for example: {example}", param_hint=metavar)
        arguments = [STDIN]
    if arguments.count(STDIN) > 1:
        raise typer.BadParameter(f"{STDIN!r} stands for stdin and can be given once", param_hint=metavar)
    texts: list[str] = []
    for argument in arguments:
        if argument != STDIN:
            texts.append(argument)
            continue
        try:
            found = [sys.stdin.read().rstrip("\r\n")] if whole else [line.strip() for line in sys.stdin]
        except UnicodeDecodeError as error:
            raise UserError(f"stdin is not valid UTF-8: {error}") from None
        found = [text for text in found if text.strip()]
        if not found:
            raise UserError(f"stdin holds no text; expected one {kind}" + ("" if whole else " per line"))
        texts += found
    for text in texts:
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(f"{shortened(text)!r} is not valid UTF-8")
    return texts


def silence_stdout() -> None:
    """After a broken pipe (`mega ... | head`): keep Python from failing once more when it flushes stdout at exit."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def stderr_console() -> Console:
    """Where progress and notes go."""
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def spinner(text: str) -> Iterator[None]:
    """A spinner on stderr while something takes seconds; nothing where stderr is no terminal, nor in other threads."""
    console = stderr_console()
    if not console.is_terminal or threading.current_thread() is not threading.main_thread():
        yield
        return
    with console.status(text):
        yield


def load_package() -> None:
    """Import torch, transformers and this package, with the classes that every model needs.

    Imports make many objects, which all stay. Python's search for reference cycles among them would take a quarter of
    the time, so it waits until they are there, and leaves them out from then on.
    """
    import gc

    enabled = gc.isenabled()
    gc.disable()
    try:
        with spinner("Starting PyTorch"):
            import torch  # noqa: F401
            import transformers.modeling_utils  # noqa: F401

            import mega_transformers.models  # noqa: F401
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


def load_libraries() -> None:
    """`load_package`, and keep the libraries from logging anything but errors."""
    import warnings

    load_package()
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
