"""Nothing that was typed, or that a model wrote, becomes HTML."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from mega_transformers.demo import markup
from mega_transformers.demo.answers import Choice
from mega_transformers.demo.reading import Point, Reading

BAD = "<script>alert(1)</script> \"'><img src=x onerror=alert(1)> \u202etxt.exe \0\x1b[31m \ud83d"
CHOICE = Choice(BAD, 0.25, 7)


@pytest.mark.parametrize(
    "html",
    [
        markup.shown(BAD),
        markup.mistake(BAD),
        markup.note(BAD),
        markup.masks([BAD, BAD], [[CHOICE]], True),
        markup.filled(BAD),
        markup.labels([CHOICE]),
        markup.prose(BAD, BAD, BAD),
        markup.pairs([(BAD, BAD)], [BAD]),
        markup.reading(Reading(8, (Point(8, 1.0, 2**20),), (BAD,)), ""),
    ],
)
def test_bad_texts_are_shown(html: str) -> None:
    found: set[str] = set()

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            found.update([tag, *(name for name, _ in attributes)])

    Parser().feed(html)
    assert not found & {"script", "img", "src", "onerror"}
    assert "&lt;script&gt;" in html
    assert "\\u202e" in html
    assert not re.search("[\0-\x08\x0b-\x1f\u202e\ud800-\udfff]", html)


def test_lines_stay_lines() -> None:
    assert markup.shown("a\n\tb") == "a\n\tb"


def test_words_take_the_masks_place() -> None:
    html = markup.masks(["The ", " of"], [[Choice(" ship", 0.5, 1)]], True)
    assert "The <mark>ship</mark> of" in html
    html = markup.masks(["The ship", " of"], [[Choice("##s", 0.5, 1)]], False)
    assert "The ship<mark>s</mark> of" in html
    assert "--p:50.00%" in html


def test_numbers_of_a_reading() -> None:
    points = tuple(Point(tokens, tokens / 1000, 3 * 2**20) for tokens in (1024, 2048, 3072))
    html = markup.reading(Reading(4096, points, ()), "")
    assert "3,072 of 4,096 tokens in 3.1 s" in html
    assert "1,000 tokens per second" in html
    assert "3 MB" in html
