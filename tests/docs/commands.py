"""Commands of the documentation as words, and whether `mega` understands them."""

from __future__ import annotations

import shlex
from typing import Any

import typer.main

from mega_transformers.cli import app

REDIRECTIONS = ("<", ">", "|")


def words_of(line: str) -> list[str]:
    """The words of a command line, without comments, redirections and pipes."""
    words = shlex.split(line, comments=True)
    return words[: min((words.index(sign) for sign in REDIRECTIONS if sign in words), default=len(words))]


def parse(words: list[str]) -> None:
    """Raises click's error for words that `mega` does not understand."""
    group: Any = typer.main.get_command(app)
    name, *rest = words
    assert name in group.commands, f"mega {name}: there is no such command"
    with group.commands[name].make_context(f"mega {name}", rest):
        pass
