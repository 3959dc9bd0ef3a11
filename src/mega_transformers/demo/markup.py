"""Renders answers as HTML. All text of visitors and models is escaped here, and only here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

from ..cli.fill_mask import fitted
from ..cli.tables import visible
from .answers import Choice
from .reading import Reading

# control characters except tab and line end, marks that change the direction of writing, surrogates
_HARMFUL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: str) -> str:
    """A text as plain HTML: markup, control characters and marks of direction are shown, not interpreted."""
    return escape(_HARMFUL.sub(lambda found: ascii(found[0])[1:-1], text))


def mistake(message: str) -> str:
    """An error message, which screen readers announce at once."""
    return f'<p class="mistake" role="alert">{shown(message[:1].upper() + message[1:])}.</p>'


def note(message: str) -> str:
    """A note."""
    return f'<p class="note" role="status">{shown(message)}</p>'


def masks(parts: list[str], choices: list[list[Choice]], swallows_space: bool) -> str:
    """A text with the most likely candidate for each mask, and all candidates as buttons with bars."""
    text = ""
    for part, candidates in zip(parts, choices):
        before, word = fitted(part, candidates[0].text, swallows_space)
        text += f"{shown(before)}{' ' * word.startswith(' ')}<mark>{_token(word)}</mark>"
    text += shown(parts[-1])
    groups = []
    for index, candidates in enumerate(choices):
        title = f"Mask {index + 1} of {len(choices)}" if len(choices) > 1 else "Candidates"
        rows = "".join(
            f'<li><button type="button" class="bar" data-mask="{index}" data-token="{choice.token}"'
            f'{_width(choice)} aria-label="Insert {_token(choice.text)}, {choice.probability:.1%}">'
            f"<b>{_token(choice.text)}</b><span>{choice.probability:.1%}</span></button></li>"
            for choice in candidates
        )
        groups.append(f'<section aria-label="{title}"><h3>{title}</h3><ol class="bars">{rows}</ol>{_SCALE}</section>')
    return f'<p class="text">{text}</p><div class="groups">{"".join(groups)}</div>'


def filled(text: str) -> str:
    """A text without masks; takes the focus from the last candidate."""
    return f'<p class="text" tabindex="-1">{shown(text)}</p>' + note("All masks are filled.")


def labels(choices: list[Choice]) -> str:
    """Labels with their probabilities as bars."""
    rows = "".join(
        f'<li class="bar"{_width(choice)}><b>{shown(choice.text)}</b><span>{choice.probability:.1%}</span></li>'
        for choice in choices
    )
    return f'<ol class="bars">{rows}</ol>{_SCALE}'


_SCALE = '<div class="scale" aria-hidden="true"><span>0%</span><span>50%</span><span>100%</span></div>'


def _token(text: str) -> str:
    return escape(visible(text))


def _width(choice: Choice) -> str:
    return f' style="--p:{choice.probability:.2%}"'


def prose(prompt: str, text: str, numbers: str = "") -> str:
    """A prompt, the text that continues it, and finally a note on the numbers."""
    return f'<p class="text"><b>{shown(prompt)}</b>{shown(text)}</p>' + (note(numbers) if numbers else "")


def pairs(rows: Iterable[tuple[str, str]], unknown: list[str]) -> str:
    """A table of texts and their outputs."""
    cells = "".join(f"<tr><th scope='row'>{shown(text)}</th><td>{shown(output)}</td></tr>" for text, output in rows)
    html = f'<table class="pairs"><tbody>{cells}</tbody></table>'
    if unknown:
        html += note(f"The model has no token for some of the characters of: {', '.join(unknown)}")
    return html


def reading(answer: Reading, svg: str) -> str:
    """The progress of reading a text: a sentence, a chart and a table."""
    last = answer.points[-1]
    done = f"{last.tokens:,} tokens" if answer.finished else f"{last.tokens:,} of {answer.total:,} tokens"
    sentence = (
        f"{done} in {last.seconds:.1f} s: <b>{last.tokens / last.seconds:,.0f} tokens per second</b>, "
        f"with at most <b>{_size(max(point.memory for point in answer.points))}</b> of memory on top of the model."
    )
    rows = "".join(
        f"<tr><td>{point.tokens:,}</td><td>{point.seconds:.2f}</td><td>{point.tokens / point.seconds:,.0f}</td>"
        f"<td>{_size(point.memory)}</td></tr>"
        for point in answer.doublings()
    )
    return (
        f'<p class="result" role="status">{sentence}</p>{svg}'
        + "".join(note(text) for text in answer.notes)
        + '<table class="numbers"><thead><tr><th>tokens</th><th>seconds</th><th>tokens per second</th><th>memory</th>'
        f"</tr></thead><tbody>{rows}</tbody></table>"
    )


def _size(memory: int) -> str:
    return f"{memory / 2**20:,.0f} MB"
