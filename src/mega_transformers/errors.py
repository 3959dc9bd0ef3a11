"""What a user gave that cannot work, and help with misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RecipeError(ValueError):
    """A recipe, an option or a file of the user's that cannot work."""


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """The known names that resemble a wrong one, as a question; `otherwise` where none does."""
    close = difflib.get_close_matches(name, list(known), n=3)
    return f"did you mean {' or '.join(close)}?" if close else otherwise
