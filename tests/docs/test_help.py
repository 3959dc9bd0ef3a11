"""Every command's help says what it does, then its options with their defaults, then an example."""

from __future__ import annotations

from typing import Any

import pytest
import typer.main
from commands import parse, words_of
from typer.testing import CliRunner

from mega_transformers.cli import app
from mega_transformers.cli.examples import EXAMPLES

GROUP: Any = typer.main.get_command(app)
LINES = [(name, line) for name, lines in EXAMPLES.items() for line in lines]


def test_every_command_has_examples() -> None:
    assert list(EXAMPLES) == list(GROUP.commands)
    assert all(EXAMPLES.values())


@pytest.mark.parametrize(("name", "line"), LINES, ids=[line for _, line in LINES])
def test_examples_are_understood(name: str, line: str) -> None:
    words = words_of(line)
    words = words[words.index("mega_transformers") if words[0] == "torchrun" else 0 :]
    assert words[:2] in (["mega", name], ["mega_transformers", name])
    parse(words[1:])


@pytest.mark.parametrize("name", EXAMPLES)
def test_help_ends_with_the_examples(name: str) -> None:
    """At 80 columns, and with no example broken into two lines."""
    result = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert result.exit_code == 0
    shown = [line.strip() for line in result.output.splitlines() if line.strip()]
    assert shown[-len(EXAMPLES[name]) - 1 :] == ["Examples:", *EXAMPLES[name]]


@pytest.mark.parametrize("name", EXAMPLES)
def test_help_texts_are_sentences(name: str) -> None:
    command = GROUP.commands[name]
    for parameter in command.params:
        text = getattr(parameter, "help", None)
        assert text, f"mega {name}: {parameter.name} has no help"
        assert text.endswith(".") or "Example: " in text, f"mega {name}: {parameter.name}: {text}"
        assert "; default" not in text, f"mega {name}: {parameter.name}: write 'Default: 512.'"
