"""Attributions as HTML: nothing of a text is markup, nothing is lost, and a colour says what its score says."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from mega_transformers.interpret.attribution import Attribution
from mega_transformers.interpret.rendering import AGAINST, FOR, STRONGEST, fragment, page, shares, without_space


def attribution(pieces: list[str], scores: list[float], place: int | None = None, target: str = " x") -> Attribution:
    value = sum(scores)
    return Attribution(tuple(pieces), tuple(scores), place, target, 0.5, value, 0.0, "<pad>", 0.001, 32)


class Reader(HTMLParser):
    """The text of a page, and its tags with their attributes."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.text, self.tags = "", []
        self.feed(source)

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append((tag, dict(attributes)))


HOSTILE = ["<script>alert(1)</script>", ' "><img src=x onerror=alert(1)>', " &amp;", " it's\n", " 日本"]


def test_nothing_of_a_text_or_answer_is_markup() -> None:
    read = Reader(page("<script>", [attribution(HOSTILE, [1.0, -1.0, 0.5, 0.0, 0.1], target="</p><script>")]))
    assert {tag for tag, _ in read.tags}.isdisjoint({"script", "img", "link", "iframe"})
    assert all(name not in attributes for _, attributes in read.tags for name in ("src", "href", "onerror"))
    assert "".join(HOSTILE) in read.text
    assert "</p><script>" in read.text


def test_control_characters_are_shown_and_lines_stay() -> None:
    read = Reader(fragment(attribution(["a\x00\x1b[31m", "\u2028b", "\nc\td", " 👩‍🚀"], [1.0, 1.0, 1.0, 1.0])))
    assert "a\\x00\\x1b[31m\\u2028b\nc\td 👩‍🚀" in read.text


def test_colours_are_scores() -> None:
    pieces, scores = ["The", " <mask>", " sea", " of", " "], [2.0, 0.0, -1.0, 0.0, 0.5]
    read = Reader(fragment(attribution(pieces, scores, place=1)))
    spans = [attributes for tag, attributes in read.tags if tag == "span" and "title" in attributes]
    assert [span["title"] for span in spans] == ["+2.000", "explained here", "-1.000", "+0.000", "+0.500"]
    colours = [re.search(r"background: rgba\((\d+), (\d+), (\d+), ([\d.]+)\)", span["style"]) for span in spans]
    assert [colour and (*map(int, colour.groups()[:3]),) for colour in colours] == [FOR, None, AGAINST, None, FOR]
    assert [float(colour[4]) for colour in colours if colour] == pytest.approx(
        [STRONGEST, STRONGEST / 2, STRONGEST / 4], abs=1e-3
    )
    assert "dashed" in spans[1]["style"] and "against it -2.00" in read.text and "+2.00 for it" in read.text


def test_shares_and_spaces() -> None:
    assert shares([1.0, -4.0, 0.0]) == [0.25, -1.0, 0.0]
    assert shares([0.0, 0.0]) == [0.0, 0.0] and shares([]) == []
    assert [without_space(piece) for piece in ("  a b", "a", " \n")] == [("  ", "a b"), ("", "a"), ("", " \n")]
