"""`mega demo`: mistakes are told before any model is loaded."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
from typer.testing import CliRunner, Result

from mega_transformers.cli import app, demo


@pytest.fixture(autouse=True)
def _loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading is an error, and packages that may be missing count as there."""
    monkeypatch.setattr(demo, "find_spec", lambda name: name)
    monkeypatch.setattr("mega_transformers.demo.models.load_models", lambda *_: pytest.fail("loads"))


def refused(*arguments: object) -> str:
    result: Result = CliRunner().invoke(app, ["demo", *map(str, arguments)], env={"COLUMNS": "200"})
    assert result.exit_code in (1, 2), result.output
    assert "Traceback" not in result.output
    return " ".join(result.stderr.replace("│", " ").split())


def test_a_port_in_use() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        message = refused("--port", port)
    assert f"--port {port} is in use, perhaps by another mega demo; stop that, or give --port" in message


def test_addresses_that_are_none() -> None:
    assert "--host nowhere.invalid: there is no such address" in refused("--host", "nowhere.invalid")
    assert "--host 192.0.2.1: cannot listen there" in refused("--host", "192.0.2.1")
    assert "--port" in refused("--port", 0)


def test_other_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--dtype int8: expected auto" in refused("--dtype", "int8")
    assert "--device gpu: expected auto" in refused("--device", "gpu")
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name == "gradio" else name)
    assert "the page needs the package gradio: pip install 'mega-transformers[demo]'" in refused()


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, mega_transformers.cli; print({'torch', 'gradio', 'matplotlib'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "set()\n", result.stderr
