"""What every command shares: the late import of torch, quiet libraries, errors and interrupts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, TypeVar

import typer

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")


class UserError(Exception):
    """A mistake of the user's. The command prints its message, without a traceback, and exits with 1."""


def guarded(command: Callable[..., T], load: bool = False) -> Callable[..., T]:
    """`command`, with `UserError` as a message on stderr and exit code 1, and Ctrl-C as exit code 130.

    Args:
        command: The function that typer makes a command of.
        load: Whether to import the package first, for commands that do not call `load_libraries` themselves.
    """

    @wraps(command)
    def run(*args: object, **kwargs: object) -> T:
        try:
            if load:
                load_package()
            return command(*args, **kwargs)
        except UserError as error:
            print_error(str(error))
            raise typer.Exit(1) from error
        except KeyboardInterrupt as interrupt:
            raise typer.Exit(130) from interrupt
        except BrokenPipeError as error:
            silence_stdout()
            raise typer.Exit(1) from error

    return run


def print_error(message: str) -> None:
    """One message on stderr, red on a terminal."""
    typer.secho(f"Error: {message}", fg=typer.colors.RED, err=True)


def print_note(message: str) -> None:
    """Something worth knowing on stderr."""
    typer.secho(f"Note: {message}", fg=typer.colors.YELLOW, err=True)


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
    """A spinner on stderr while something takes seconds; nothing where stderr is no terminal."""
    console = stderr_console()
    if not console.is_terminal:
        yield
        return
    with console.status(text):
        yield


def load_package() -> None:
    """Import torch, transformers and this package, which registers Mega with transformers' Auto classes."""
    import mega_launcher

    with spinner("Starting PyTorch"):
        mega_launcher.load_package()


def load_libraries() -> None:
    """`load_package`, and keep the libraries from logging anything but errors."""
    import warnings

    load_package()
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
