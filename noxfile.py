"""The tests on the lowest and on the newest release of transformers that pyproject.toml allows: `make test-versions`.

A session takes pytest's arguments: `nox -s lowest -- tests/models`. Without any it runs everything, transformers' own
model tests too.
"""

from __future__ import annotations

import re
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True

LOWEST = re.search(r'"transformers>=([\d.]+),', Path("pyproject.toml").read_text())
TORCH = re.search(r"^torch==.+$", Path("constraints.txt").read_text(), re.MULTILINE)
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
EVERYTHING = (["tests", "--ignore=tests/transformers_suite"], ["tests/transformers_suite"])


def run_tests(session: nox.Session, transformers: str) -> None:
    """Installs a release of transformers with the package, and runs the tests."""
    assert TORCH is not None
    # without Triton, which takes a gigabyte: its kernels depend on no release of transformers
    session.install("--quiet", "--upgrade", TORCH[0], transformers, "--editable", ".[dev]")
    session.run("python", "-c", "import transformers; print('transformers', transformers.__version__)")
    for arguments in [session.posargs] if session.posargs else EVERYTHING:
        session.run("python", "-m", "pytest", "--numprocesses=2", *arguments, env=ENVIRONMENT)


@nox.session
def lowest(session: nox.Session) -> None:
    """The lowest release of transformers that pyproject.toml allows."""
    assert LOWEST is not None
    run_tests(session, f"transformers=={LOWEST[1]}.*" if LOWEST[1].count(".") < 2 else f"transformers=={LOWEST[1]}")


@nox.session
def newest(session: nox.Session) -> None:
    """The newest release of transformers that pip resolves."""
    run_tests(session, "transformers")
