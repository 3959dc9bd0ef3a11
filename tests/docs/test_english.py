"""Phrases over which readers stumble, each with what to write instead.

Prose of pages and recipes is scanned, and every string, docstring and comment of the code: help texts and messages are
among them.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PHRASES = {
    r"(?<!there )\b(?:is|are|was|were) no (?!longer|more|less|better|worse|fewer|faster|such)(?=\w)": "is not ...",
    r"(?<!there )(?<!None )\b(?:is|are) (?-i:none)\b(?! of)": "is not one; is missing",
    r"(?<!none if )(?<!or )\bthere (?:is|are) (?-i:none)\b(?! of)": "None if there is none; is missing",
    r"\b(?:goes|go|going|gone|went) on\b": "continues",
    r"\bparted by\b": "separated by",
    r"\bstands? (?:behind|before|beside)\b": "follows; precedes; is next to",
    r"\bha(?:s|ve) no part in\b": "does not affect",
    r"\bcan look\b": "is on the host",
    r"\bwho(?:so)?ever\b": "anyone who",
    r"\bbut for\b": "except",
    r"\b(?:of|among|up to|over|with) that many\b|\bafter so many\b|\bwithin so many\b": "this number of",
    r"\bwhat (?:it|they|he) (?:is|are|was|were) given\b": "its inputs",
    r"\b(?:that|which|who|what) (?:is|are) to (?:be|go|stand|get|come|stay)\b": "must; should; will",
    r"\b(?:is|are) told\b": "is reported",
    r"\bfor what (?:cannot|is|has|was)\b": "for a file that cannot ...",
    r"\blikeliest\b": "most likely",
    r"\b(?:is|are) there already\b|\bbe there yet\b": "exists already; must not exist yet",
    r"\bmay be repeated\b": "can be repeated",
    r"\bknown are\b": "the known values are",
    r"\bfor want of\b": "for lack of",
    r"\bjudg(?:e[ds]?|ing)\b": "evaluate",
    r"\bleading padding\b": "left padding",
    r"\brectangular attention\b": "cached attention",
    r"\bbands?\b": "clusters and cutoffs of an adaptive vocabulary",
    r"\bclosed_texts\b": "add_eos",
    r"\bfor (?-i:none)\b(?! of)": "default: ...",
}
PAGES = ["README.md", "CONTRIBUTING.md", "docs/**/*.md", "contrib/**/*.md", "examples/**/*.md"]
CODE = ["src/**/*.py", "contrib/**/*.py", "benchmarks/**/*.py"]
RECIPES = ["src/mega_transformers/assets/recipes/**/*.yaml"]
OTHERS = ("docs/cards/",)
"""Cards that a training wrote."""


def files(patterns: list[str]) -> list[str]:
    found = (path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(pattern))
    return sorted(name for name in set(found) if not name.startswith(OTHERS))


def stumbles(texts: Iterator[tuple[int, str]]) -> list[str]:
    return [
        f"line {line}: {match[0]!r}: write {better!r}"
        for line, text in texts
        for pattern, better in PHRASES.items()
        for match in re.finditer(pattern, " ".join(text.split()), re.IGNORECASE)
    ]


def prose(page: str) -> Iterator[tuple[int, str]]:
    """Paragraphs of Markdown outside of code."""
    code = re.compile(r"^(```|~~~).*?^\1|`[^`\n]*`", re.MULTILINE | re.DOTALL)
    text = code.sub(lambda found: "\n" * found[0].count("\n"), (ROOT / page).read_text(encoding="utf-8"))
    for paragraph in re.finditer(r"(?:.+\n?)+", text):
        yield text.count("\n", 0, paragraph.start()) + 1, paragraph[0]


def comments(recipe: str) -> Iterator[tuple[int, str]]:
    """Comments of YAML."""
    for number, line in enumerate((ROOT / recipe).read_text(encoding="utf-8").splitlines(), start=1):
        if found := re.search(r"(?:^|\s)#\s(.*)", line):
            yield number, found[1]


def strings(file: str) -> Iterator[tuple[int, str]]:
    """Strings, with `{}` for their fields, docstrings and comments of Python."""
    source = (ROOT / file).read_text(encoding="utf-8")
    tree = ast.parse(source)
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


@pytest.mark.parametrize("page", files(PAGES))
def test_pages(page: str) -> None:
    assert stumbles(prose(page)) == []


@pytest.mark.parametrize("file", files(CODE))
def test_code(file: str) -> None:
    assert stumbles(strings(file)) == []


@pytest.mark.parametrize("recipe", files(RECIPES))
def test_recipes(recipe: str) -> None:
    assert stumbles(comments(recipe)) == []


@pytest.mark.parametrize("text", ["The file is no YAML.", "It goes\non.", "what they are given", "GOES ON"])
def test_stumbles_are_found(text: str) -> None:
    assert len(stumbles(iter([(1, text)]))) == 1


@pytest.mark.parametrize("text", ["There is no file.", "None if there is none", "It is no longer there."])
def test_plain_english_is_left_alone(text: str) -> None:
    assert stumbles(iter([(1, text)])) == []
