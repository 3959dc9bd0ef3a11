"""Errors for invalid user input, and help with misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib.util import find_spec

SHOWN = 96  # characters of a text in a message


class RecipeError(ValueError):
    """A recipe, an option or a file that cannot work."""


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """The known names that resemble a wrong name, as a question; `otherwise` if none does."""
    close = difflib.get_close_matches(name, list(known), n=3)
    return f"did you mean {' or '.join(close)}?" if close else otherwise


def shortened(text: str) -> str:
    """The beginning of a text, for a message."""
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def check_package(package: str, user: str, extra: str) -> None:
    """Refuses to continue without an optional package; does not import it.

    Args:
        package: Its import name.
        user: The feature that needs it, for the message: "an explanation".
        extra: The extra of this package that installs it.

    Raises:
        RecipeError: names the package and how to install it.
    """
    if find_spec(package) is None:
        raise RecipeError(f"{user} needs the package {package}: pip install 'mega-transformers[{extra}]'")
