"""Starts the `mega` command: output that any terminal can show, and a quiet end at Ctrl-C."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line interface; the console script `mega`."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        from mega_transformers.cli import app

        app()
    except KeyboardInterrupt:
        sys.exit(130)
