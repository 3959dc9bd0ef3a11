"""The `mega` command: starts without torch, knows its commands, is quiet when interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mega_transformers import __version__

LAUNCH = "from mega_launcher import main; main()"
PROBE = """
import sys
sys.argv = ["mega", *{arguments!r}]
from mega_launcher import main
try:
    main()
finally:
    heavy = {{"torch", "transformers", "datasets", "matplotlib"}} & set(sys.modules)
    print("heavy:", sorted(heavy), file=sys.stderr)
"""


def run(*command: str, **kwargs) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, **kwargs)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["fill-mask", "--help"],
        ["generate", "--help"],
        ["perplexity", "--help"],
        ["bench", "--help"],
    ],
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    result = run(sys.executable, "-c", PROBE.format(arguments=arguments))
    assert result.returncode == 0
    assert result.stdout
    assert "heavy: []" in result.stderr


def test_version() -> None:
    for command in (["-c", LAUNCH], ["-m", "mega_transformers"]):
        assert run(sys.executable, *command, "--version").stdout == f"mega-transformers {__version__}\n"


def test_usage_errors_exit_with_2() -> None:
    result = run(sys.executable, "-c", LAUNCH, "fill-masks")
    assert result.returncode == 2
    assert "No such command" in result.stderr
    assert "Traceback" not in result.stderr


def test_commands_leave_garbage_collection_as_they_found_it() -> None:
    code = """
import gc
from mega_transformers.cli.runtime import load_package
load_package()
assert gc.isenabled() and gc.get_freeze_count()
gc.disable()
load_package()
assert not gc.isenabled()
"""
    result = run(sys.executable, "-c", code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("end", ["", "; sys.exit(0)", "; sys.exit(3)", "; sys.exit('words')", "; 1 / 0"])
def test_the_end_is_python_s_own_but_sooner(end: str) -> None:
    """Output, exit code, clean-up of libraries and threads are those of a process without `_leave`."""
    code = """
import atexit, sys, threading, time, types
class Late:
    def __del__(self): print("freed")
sys.late = Late()
def app():
    atexit.register(print, "cleaned up")
    threading.Thread(target=lambda: (time.sleep(0.2), print("thread ended"))).start()
    print("unflushed", end=" "){end}
sys.modules["mega_transformers.cli"] = types.SimpleNamespace(app=app)
import mega_launcher
{without}
mega_launcher.main()
"""
    command = [sys.executable, "-c"]
    ours = run(*command, code.format(end=end, without=""))
    usual = run(*command, code.format(end=end, without="mega_launcher._leave = lambda status: None"))
    assert ours.returncode == usual.returncode == {"; sys.exit(3)": 3, "": 0, "; sys.exit(0)": 0}.get(end, 1)
    assert ours.stdout.removesuffix("freed\n") == usual.stdout.removesuffix("freed\n")
    assert "unflushed thread ended\ncleaned up\n" in ours.stdout
    assert ours.stderr == usual.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_interrupt_exits_with_130_quietly(tmp_path: Path) -> None:
    code = """
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell started in the background
def interrupt(): os.kill(os.getpid(), signal.SIGINT)
from mega_transformers.cli import fill_mask
fill_mask.load_libraries = interrupt
import sys
sys.argv = ["mega", "fill-mask", "a <mask>", "--model", sys.argv[1]]
from mega_launcher import main
main()
"""
    (tmp_path / "config.json").write_text("{}")
    result = run(sys.executable, "-c", code, str(tmp_path))
    assert result.returncode == 130
    assert result.stderr == ""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes")
def test_closed_pipe_is_quiet(tiny_checkpoint: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", LAUNCH, "fill-mask", "a <mask>", "--json", "--model", str(tiny_checkpoint)]
    process = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    os.close(writer)
    assert process.stderr == ""
    assert process.returncode in (1, 128 + signal.SIGPIPE)
