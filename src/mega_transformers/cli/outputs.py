"""Checks of the files and folders that a command writes, before any work is done."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .runtime import UserError


def check_output_file(option: str, path: Path) -> None:
    """Refuses a file that cannot be written.

    Args:
        option: The option that names it, for messages: "--json".
        path: The file. It may exist already; its folder must exist.

    Raises:
        UserError: naming the option, the path and what would be right.
    """
    if path.is_dir():
        raise UserError(f"{option} {path}: this is a folder; name a file")
    if path.exists() and not path.is_file():
        raise UserError(f"{option} {path}: this is not a regular file; name another")
    if not path.parent.is_dir():
        raise UserError(f"{option} {path}: there is no folder {path.parent}")
    _try_to_write(option, path, path.parent)


def check_output_folder(option: str, path: Path) -> None:
    """Refuses a folder that cannot be created or written to. It may exist already; its parents need not exist.

    Args:
        option: The option or argument that names it, for messages: "--output-dir".
        path: The folder.

    Raises:
        UserError: naming the option, the path and what would be right.
    """
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists() or folder.is_symlink())
    if not there.is_dir():
        raise UserError(f"{option} {path}: {'this' if there == path else there} is a file; name another folder")
    _try_to_write(option, path, there)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary path that is renamed to `path` at the end; after an error, `path` stays as it was."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a complete file, or nothing."""
    with replaced(path) as partial:
        partial.write_text(text, encoding="utf-8")


def shortest(value: Any) -> float:
    """A float32 number with the fewest digits that identify it, for JSON."""
    import numpy as np

    return float(str(np.float32(value)))


def _try_to_write(option: str, path: Path, folder: Path) -> None:
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"{option} {path}: cannot write to {folder}: {error.strerror}; name another") from None
