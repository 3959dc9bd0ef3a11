"""The registry of who is measured, and the interpreters they run in."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from .cases import (
    BEFORE,
    GLA,
    GPT2,
    MAMBA2,
    MARIAN,
    MATMULS,
    MODERNBERT,
    MODERNBERT_FLASH,
    OLD,
    ONE_BY_ONE,
    OURS,
    ROBERTA,
    TRITON,
    UNCOMPILED,
)

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Peer:
    """Something that is measured.

    Args:
        requirements: What its own virtual environment holds beside our torch; empty means it runs in our interpreter.
        pythons: Minor versions of Python 3 that the requirements have wheels for.
        same_weights: Whether it computes the same function as ours, so that it is checked before it is timed.
        module, package: What must be importable in our interpreter, and what pip installs it by.
    """

    name: str
    title: str
    requirements: tuple[str, ...] = ()
    pythons: tuple[int, ...] = ()
    same_weights: bool = False
    module: str | None = None
    package: str | None = None


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer(OURS, "Mega, this repository"),
        Peer(TRITON, "Mega, this repository, with MEGA_TRITON=1", module="triton", package="triton"),
        Peer(
            OLD,
            "Mega of transformers 4.40.2",
            requirements=("transformers==4.40.2", "numpy<2", "safetensors"),
            pythons=(12, 11, 10),
            same_weights=True,
        ),
        Peer(MODERNBERT, "ModernBERT (sdpa)"),
        Peer(MODERNBERT_FLASH, "ModernBERT (flash-attn)", module="flash_attn", package="flash-attn"),
        Peer(ROBERTA, "RoBERTa (sdpa)"),
        Peer(GPT2, "GPT-2 (sdpa)"),
        Peer(MAMBA2, "Mamba-2 of transformers"),
        Peer(GLA, "GLA of flash-linear-attention", module="fla", package="flash-linear-attention"),
        Peer(MARIAN, "Marian (sdpa)"),
        Peer(ONE_BY_ONE, "Mega, this repository, a prompt at a time", same_weights=True),
        Peer(UNCOMPILED, "Mega, this repository, not compiled", same_weights=True),
        Peer(MATMULS, "the matrix products of our training step alone"),
        Peer(BEFORE, "Mega of the tree named by --against", same_weights=True),
    )
}


def parse_pythons(entries: list[str]) -> dict[str, Path]:
    """Interpreters named as `PEER=/path/to/python`.

    Raises:
        ValueError: if an entry has another form, names an unknown peer, or its path is not an executable file.
    """
    pythons = {}
    for entry in entries:
        name, equals, path = entry.partition("=")
        if not equals or not path:
            raise ValueError(f"--peer-python {entry!r}: expected PEER=/path/to/python, as {OLD}=/opt/old/bin/python.")
        if name not in PEERS:
            raise ValueError(f"--peer-python {entry!r}: unknown peer {name!r}. Known peers: {', '.join(PEERS)}.")
        if not os.access(path, os.X_OK) or os.path.isdir(path):
            raise ValueError(f"--peer-python {entry!r}: {path} is not an executable file.")
        # Not resolved: the interpreter of a virtual environment is a link, and finds its packages by the link's place.
        pythons[name] = Path(path).absolute()
    return pythons


def absence(peer: Peer, pythons: dict[str, Path]) -> str | None:
    """Why a peer cannot run without something being installed first; None if it can."""
    if (
        peer.requirements
        and peer.name not in pythons
        and not (REPOSITORY / ".venvs" / peer.name / "complete").exists()
    ):
        return f"no environment is there; name one with --peer-python {peer.name}=/path/to/python"
    if peer.module is not None and importlib.util.find_spec(peer.module) is None:
        return f"{peer.module} is not installed: pip install {peer.package}"
    return None


def interpreter(peer: Peer, pythons: dict[str, Path], say: Callable[[str], None]) -> Path:
    """The interpreter a peer runs in; its virtual environment is made on first use, under `.venvs` of the repository.

    Raises:
        RuntimeError: if the environment cannot be made; the message holds the end of the log and the remedy.
    """
    if peer.name in pythons:
        return pythons[peer.name]
    if not peer.requirements:
        return Path(sys.executable)
    home = REPOSITORY / ".venvs" / peer.name
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not (home / "complete").exists():
        shutil.rmtree(home, ignore_errors=True)
        _make_environment(peer, home, python, say)
        (home / "complete").touch()
    return python


def _make_environment(peer: Peer, home: Path, python: Path, say: Callable[[str], None]) -> None:
    torch = version("torch").partition("+")[0]
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("\n".join((f"torch=={torch}", *peer.requirements)) + "\n")
        say(f"{peer.name}: making its virtual environment in {home}")
        _call([str(_base_python(peer)), "-m", "venv", str(home)], peer, say)
        say(f"{peer.name}: installing torch {torch} and {', '.join(peer.requirements)} (minutes, once)")
        wanted = [f"torch=={torch}", *peer.requirements]
        _call([str(python), "-m", "pip", "install", "--constraint", str(constraints), *wanted], peer, say)


def _base_python(peer: Peer) -> Path:
    if sys.version_info[1] in peer.pythons:
        return Path(sys.executable)
    for minor in peer.pythons:
        if found := shutil.which(f"python3.{minor}"):
            return Path(found)
    raise RuntimeError(
        f"{peer.name} has no wheels for Python {sys.version_info[0]}.{sys.version_info[1]}, and no other Python was "
        f"found on the PATH. Install one of {', '.join(f'python3.{minor}' for minor in peer.pythons)}, or name an "
        f"interpreter that has {peer.requirements[0]} with --peer-python {peer.name}=/path/to/python."
    )


def _call(command: list[str], peer: Peer, say: Callable[[str], None]) -> None:
    tail: deque[str] = deque(maxlen=15)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            tail.append(line)
            say(f"{peer.name}: {line.strip()}")
    if process.returncode:
        raise RuntimeError(
            f"The environment of {peer.name} could not be made: {' '.join(command)} ended with {process.returncode}:\n"
            f"{''.join(tail)}Name an existing interpreter with --peer-python {peer.name}=/path/to/python instead."
        )


if __name__ == "__main__":  # for the tests that compare with it
    try:
        interpreter(
            PEERS[OLD], {}, lambda line: print(line, flush=True) if "making" in line or "installing" in line else None
        )
    except RuntimeError as error:
        sys.exit(str(error))
