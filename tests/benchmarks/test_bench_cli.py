"""`mega bench`: what it lists, and how it answers to wrong options."""

import importlib
import subprocess
import sys

import pytest
import typer
from fakes import run
from typer.testing import CliRunner

from benchmarks.cases import CASES
from benchmarks.peers import PEERS, REPOSITORY

# By name: the command line's package has a function called `bench`, which hides the module of that name.
module = importlib.import_module("mega_transformers.cli.bench")
app = typer.Typer()
app.command()(module.bench)


def invoke(*arguments):
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_list():
    result = invoke("--list")
    assert result.exit_code == 0
    for name in (*CASES, *PEERS):
        assert name in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "Unknown case 'nope'"),
        (["--repeats", "0"], "--repeats"),
        (["--threads", "100000"], "--threads 100000"),
        (["--peer-python", "nope=x"], "unknown peer 'nope'"),
        (["--output", "somewhere.txt"], "--output somewhere.txt"),
        (["--quick", "--publish"], "exclude each other"),
        (["--from", "none.json"], "none.json"),
        (["--against", "docs"], "--against docs: no src/mega_transformers there"),
        (["--against", ".", "--publish"], "exclude each other"),
        (["ema-op", "--from", "none.json"], "leave out the cases"),
    ],
)
def test_wrong_options(arguments, message, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.output and "Traceback" not in result.output


def test_a_finished_run_is_shown_again(tmp_path):
    report, _, _ = run(CASES["train-2048-full"])
    report.save(tmp_path / "r.json")
    result = invoke("--from", str(tmp_path / "r.json"))
    assert result.exit_code == 0 and "5.00x" in result.output


def test_without_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "a" / "b" / "c" / "bench.py"))
    result = invoke("--list")
    assert result.exit_code == 2 and "Clone the repository" in result.output


def test_importing_the_command_imports_nothing_heavy():
    code = (
        "import sys, importlib.util as u; spec = u.spec_from_file_location('b', sys.argv[1]); "
        "sys.modules['b'] = m = u.module_from_spec(spec); spec.loader.exec_module(m); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, module.__file__], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_record_names_no_folders_of_the_machine():
    command = module._command(["bench", "--peer-python", "roberta=/home/me/env/bin/python", "--output", "/tmp/r.json"])
    assert command == "mega bench --peer-python roberta=…/python --output …/r.json"
