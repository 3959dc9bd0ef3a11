"""Shared by all commands: the late import of torch, quiet libraries, texts, errors and interrupts."""

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
    """A mistake of the user. The command prints its message, without a traceback, and exits with 1."""


def guarded(command: Callable[..., T]) -> Callable[..., T]:
    """`command`, with errors that a user can mend as messages on stderr and exit code 1, and exit code 130 after
    Ctrl-C.

    These errors are `UserError`, files that cannot be read or written, and lack of memory.

    Args:
        command: The function that becomes a typer command.
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
            print_error("there is not enough memory; give shorter texts, a smaller --batch-size or fewer --num-beams")
            raise typer.Exit(1) from error

    return run


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error means lack of memory; PyTorch has an exception class for it on accelerators only."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


def print_error(message: str) -> None:
    """Prints one message on stderr, red on a terminal."""
    typer.secho(f"Error: {message}", fg=typer.colors.RED, err=True)


def print_note(message: str) -> None:
    """Prints a note on stderr."""
    typer.secho(f"Note: {message}", fg=typer.colors.YELLOW, err=True)


def gather_texts(arguments: list[str], *, metavar: str, example: str, kind: str, whole: bool = False) -> list[str]:
    """The texts of the command line, with those of stdin in place of `-`, or if there are no arguments.

    Args:
        arguments: The arguments of the command line.
        metavar: Their name in the command's help: "TEXT".
        example: A correct command, for messages.
        kind: What a text is, for messages: "prompt".
        whole: Whether stdin is a single text, without its final line ends, instead of one text per line.

    Raises:
        typer.BadParameter: if there is no text, or `-` is given twice.
        UserError: for an empty stdin, and for text that is not valid UTF-8.
    """
    if not arguments:
        if sys.stdin.isatty():
            raise typer.BadParameter(f"give a {kind}, for example: {example}", param_hint=metavar)
        arguments = [STDIN]
    if arguments.count(STDIN) > 1:
        raise typer.BadParameter(f"{STDIN!r} means stdin and can be given only once", param_hint=metavar)
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
    """The console of progress and notes."""
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def spinner(text: str) -> Iterator[None]:
    """A spinner on stderr for work of some seconds; only on a terminal and in the main thread."""
    console = stderr_console()
    if not console.is_terminal or threading.current_thread() is not threading.main_thread():
        yield
        return
    with console.status(text):
        yield


def load_package() -> None:
    """Imports torch, transformers and this package, with the classes that every model needs.

    Imports create many permanent objects. Python's search for reference cycles among them would take a quarter of the
    time, so it is off during the imports, and ignores these objects afterwards.
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
    """Calls `load_package`, and lets the libraries log errors only."""
    import warnings

    load_package()
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
