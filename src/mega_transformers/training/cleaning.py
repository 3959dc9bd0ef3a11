"""Cleaning of texts, and cutting them into documents."""

from __future__ import annotations

import re
from collections.abc import Callable

from .schema import RecipeError

_QUOTED = re.compile(r'" ([^"\n]+?) "')


def wikitext(text: str) -> str:
    """WikiText's tokenised text as it was written: no `@-@`, no spaces around punctuation and inside brackets."""
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = _QUOTED.sub(r'"\1"', text)
    text = re.sub(r" ([,.;:!?%)\]}]|n't\b|'(?:s|re|ve|ll|d|m|t)\b)", r"\1", text)
    text = re.sub(r"([(\[{$£€#]) ", r"\1", text)
    text = text.replace("s ' ", "s' ").replace(" / ", "/").replace(" ° ", "° ")
    return re.sub(r"^ (?:= )+(.+?)(?: =)+ *$", r"\1", text, flags=re.MULTILINE)


def unwrap(text: str) -> str:
    """Lines broken at a fixed width joined again: one line per paragraph, blank lines between paragraphs."""
    paragraphs = re.split(r"\n\s*\n", text)
    return "\n\n".join(re.sub(r"\s*\n\s*", " ", paragraph).strip() for paragraph in paragraphs)


def emphasis(text: str) -> str:
    """Without the signs of plain-text emphasis: `_word_` and ` * words * `."""
    text = re.sub(r"(?<!\w)_([^_\n]+)_(?!\w)", r"\1", text)
    return re.sub(r" ?\*(?= |$|[.,;:!?])", "", re.sub(r"(^|\s)\* ", r"\1", text))


CLEANERS: dict[str, Callable[[str], str]] = {"wikitext": wikitext, "unwrap": unwrap, "emphasis": emphasis}

# how a file or row is cut into documents; None for not at all
SPLITTERS: dict[str, str | None] = {
    "whole": None,
    "lines": r"\n",
    "paragraphs": r"\n[ \t]*\n\s*",
    "sections": r"\n[ \t]*\n[ \t]*\n\s*",
}


def check_names(clean: list[str], documents: str) -> None:
    """Refuses options `--clean` and `--documents` that name nothing.

    Raises:
        RecipeError: with the known names.
    """
    for name in clean:
        if name not in CLEANERS:
            raise RecipeError(f"--clean {name} is unknown; known are {', '.join(CLEANERS)}")
    if documents not in SPLITTERS:
        raise RecipeError(f"--documents {documents} is unknown; known are {', '.join(SPLITTERS)}")


def documents_of(text: str, clean: list[str], documents: str) -> list[str]:
    """The documents of a text: cleaned, cut, stripped of outer blanks, empty ones left out."""
    text = text.replace("\r\n", "\n")
    for name in clean:
        text = CLEANERS[name](text)
    splitter = SPLITTERS[documents]
    pieces = [text] if splitter is None else re.split(splitter, text)
    return [piece for piece in map(str.strip, pieces) if piece]
