"""The `mega` command: one module for each command, a thin layer of typer over the library. `mega_launcher` starts
it."""

from .main import app

__all__ = ["app"]
