"""Renders attributions: colours of scores, and HTML as a page of its own or as part of another page."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from .attribution import Attribution

FOR = (240, 120, 0)
"""Red, green and blue for tokens that count for an answer: orange, which colour-blind people can tell from blue."""
AGAINST = (70, 145, 255)
STRONGEST = 0.7
"""Opacity of the largest score, at which black text on white and white text on black stay readable."""
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.3rem; overflow-wrap: anywhere; }}
section {{ margin: 2.5rem 0; }}
footer {{ font-size: .85rem; opacity: .8; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
<footer>Integrated gradients (Sundararajan, Taly and Yan 2017) along the line from a baseline, in which one token
replaces all others. The scores add up to the change from the baseline, up to the completeness error.</footer> </body>
</html>
"""


def shares(scores: Sequence[float]) -> list[float]:
    """Scores divided by the largest absolute score: from -1 to 1, or all 0."""
    largest = max(map(abs, scores), default=0.0)
    return [score / largest if largest else 0.0 for score in scores]


def without_space(piece: str) -> tuple[str, str]:
    """The white space before a token, and the coloured token; white space alone counts as a token."""
    token = piece.lstrip() or piece
    return piece[: len(piece) - len(token)], token


def fragment(attribution: Attribution) -> str:
    """One attribution as a `<div>` of HTML with inline styles: answer, coloured text, legend.

    Text of the model and the user is escaped, and nothing is loaded or run. The colours are translucent, so that it
    works on light and dark pages. Each piece has its score as a tooltip.

    Args:
        attribution: What `attribute` or `explain` returned.
    """
    return (
        '<div style="margin: 1em 0">'
        f'<p style="margin: .5em 0"><strong dir="auto">{_escaped(attribution.target.strip() or attribution.target)}'
        f"</strong> {_answer(attribution)}</p>"
        '<p dir="auto" style="margin: .5em 0; line-height: 1.9; white-space: pre-wrap; overflow-wrap: anywhere">'
        f"{_coloured(attribution)}</p>{_legend(attribution)}</div>"
    )


def page(title: str, attributions: Sequence[Attribution]) -> str:
    """A whole HTML page of attributions, which needs no other file.

    Args:
        title: Title of the page.
        attributions: What `attribute` returned, for one text or several.
    """
    body = "\n".join(f"<section>{fragment(attribution)}</section>" for attribution in attributions)
    return PAGE.format(title=_escaped(title), body=body)


def _answer(attribution: Attribution) -> str:
    found = "" if attribution.probability is None else f"probability {attribution.probability:.1%}, "
    return (
        f"{found}{attribution.measure} {attribution.value:.2f}, of the baseline {attribution.baseline_value:.2f} "
        f"(completeness error {attribution.error:.2%})"
    )


def _coloured(attribution: Attribution) -> str:
    """The pieces as spans."""
    parts = []
    for index, (piece, share) in enumerate(zip(attribution.pieces, shares(attribution.scores))):
        space, token = without_space(piece)
        style = "border-radius: .2em; padding: .15em 0;"
        if index == attribution.place:
            style += " outline: 1px dashed currentColor;"
        if share:
            style += f" background: {_background(share)};"
        title = "explained here" if index == attribution.place else f"{attribution.scores[index]:+.3f}"
        parts.append(f'{_escaped(space)}<span style="{style}" title="{title}">{_escaped(token)}</span>')
    return "".join(parts)


def _legend(attribution: Attribution) -> str:
    """A bar from the largest score against the answer to the largest for it, with their values."""
    largest = max(map(abs, attribution.scores), default=0.0)
    return (
        '<p style="margin: .5em 0; font-size: .85em; display: flex; flex-wrap: wrap; gap: .2em .6em; '
        f'align-items: center"><span>against it {-largest:+.2f}</span>'
        '<span style="width: 8em; height: .9em; border-radius: .2em; background: linear-gradient(to right, '
        f'{_background(-1)}, transparent, {_background(1)})"></span><span>{largest:+.2f} for it</span>'
        f"<span>({attribution.measure})</span></p>"
    )


def _background(share: float) -> str:
    red, green, blue = FOR if share > 0 else AGAINST
    return f"rgba({red}, {green}, {blue}, {abs(share) * STRONGEST:.3f})"


def _escaped(text: str) -> str:
    """Escapes markup, and control characters, which HTML does not allow; keeps line ends."""
    return html.escape(CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text))
