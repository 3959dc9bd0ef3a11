"""The `mega` command: thin typer commands over the rest, a module each. `mega_launcher` starts them."""

from .main import app

__all__ = ["app"]
