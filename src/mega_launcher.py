"""Starts the `mega` command: output that any terminal can show, a quiet end at Ctrl-C, and no wait at the end."""

from __future__ import annotations

import atexit
import os
import sys


def main() -> None:
    """Run the command line interface; the console script `mega`."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    status: int | str | None = 1  # of an error that nobody handles
    # what is registered first runs last: after the threads have ended and every library has cleaned up
    atexit.register(lambda: _leave(status))
    try:
        from mega_transformers.cli import app

        app()
        status = 0
    except SystemExit as end:
        status = end.code
        raise
    except KeyboardInterrupt:
        status = 130
        sys.exit(130)


def _leave(status: int | str | None) -> None:
    """Ends the process. Python would free each of the million objects of PyTorch and transformers first."""
    if isinstance(status, str):
        return
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # Python reports a closed pipe in its own way
        return
    os._exit(status or 0)
