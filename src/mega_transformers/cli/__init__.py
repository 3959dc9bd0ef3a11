"""The `mega` command: one module for each command, a thin typer layer. `mega_launcher` starts it."""

from .main import app

__all__ = ["app"]
