"""`mega explain`: which tokens led to a model's answer."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..assets import DEFAULT_MODEL
from ..errors import RecipeError, check_package
from ..interpret.defaults import MAX_STEPS, STEPS, TOLERANCE
from .device import AUTO, DeviceOption, DTypeOption, Placement, check_names, resolve_placement
from .fill_mask import MASK, NARROW, check_masks
from .loading import CAUSAL, CLASSIFIER, MASKED, Location, ModelOption, kind_of, load, locate
from .outputs import check_output_file, write_text
from .runtime import UserError, gather_texts, load_libraries, print_note, shortened, spinner, stderr_console
from .tables import visible

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from ..interpret.attribution import Attribution, Question

EXAMPLE = f'mega explain "The film received mixed {MASK} from critics."'
CONTEXT = 14  # characters shown on either side of a token in the table
BAR_WIDTH = 10  # of the largest score
FAINT = 0.08  # tokens below this share of the largest score have no colour
GREY = (150, 150, 150)  # opacity of the faintest colour, still visible on light and dark backgrounds
INK = "#000000"  # readable on all these colours
SECONDS_WITHOUT_BAR = 2


def explain(
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT",
            help="Texts: with one or more <mask> for a masked language model, a beginning to continue for a causal "
            "model, a text to classify for a classifier. '-' or no TEXT reads stdin, one text per line.",
        ),
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="Answer to explain: a word of one token, or a label. Repeat it to give one for each mask. Default: "
            "the most likely answer."
        ),
    ] = None,
    top_k: Annotated[
        int, typer.Option("--top-k", "-k", min=1, help="Number of tokens in the table, strongest first.")
    ] = 10,
    steps: Annotated[
        int,
        typer.Option(
            min=1,
            max=MAX_STEPS,
            help="Initial steps of the integral; doubled while the completeness error is above 1%, up to "
            f"{MAX_STEPS}.",
        ),
    ] = STEPS,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN",
            help="Token that replaces the text's tokens in the baseline. Default: the mask, or padding if there is no "
            "mask.",
        ),
    ] = None,
    device: DeviceOption = AUTO,
    dtype: DTypeOption = AUTO,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per text instead of colours.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="HTML file to write the coloured texts to. Default: none.")
    ] = None,
) -> None:
    """Show which tokens of TEXT led to the model's answer.

    Integrated gradients give each token a score: how much it raises or lowers the log-probability of the answer. They
    are computed in float32 or wider; --dtype only rounds the weights.
    """
    check_names(device, dtype)
    if html is not None:
        check_output_file("--html", html)
    wanted = gather_texts(texts or [], metavar="TEXT", example=EXAMPLE, kind=f"text with {MASK}")
    if model == DEFAULT_MODEL:
        check_masks(wanted)  # the kind of other models is not known yet
    try:
        check_package("captum", "mega explain", "explain")
        place = locate(model)
        load_libraries()
        _explain(
            place, wanted, target or None, baseline, top_k, steps, resolve_placement(device, dtype), as_json, html
        )
    except RecipeError as error:
        raise UserError(str(error)) from error


def _explain(
    place: Location,
    texts: list[str],
    targets: list[str] | None,
    baseline: str | None,
    top_k: int,
    steps: int,
    placement: Placement,
    as_json: bool,
    html: Path | None,
) -> None:
    from ..evaluation.streaming import check_causal
    from ..interpret import rendering
    from ..interpret.attribution import questions

    kind = kind_of(place, MASKED, CAUSAL, CLASSIFIER)
    model, tokenizer = load(place, kind, placement)
    model.float().requires_grad_(False)
    if kind is CAUSAL:
        check_causal(model)
    if kind is MASKED and tokenizer.mask_token is not None:
        texts = [text.replace(MASK, tokenizer.mask_token) for text in texts]
    with spinner("Tokenising"):
        asked = [questions(model, tokenizer, text, targets, baseline) for text in texts]
    show = _print_json if as_json else _print_tables
    found = []
    for index, of_text in enumerate(asked):
        answers = [_answer(model, tokenizer, question, steps) for question in of_text]
        if index and not as_json:
            typer.echo()
        show(answers, top_k)
        found += [attribution for attribution, _ in answers]
    if html is not None:
        write_text(html, rendering.page(f"Why {place.name} gives these answers", found))
        print_note(f"wrote {html}")


def _answer(model: Any, tokenizer: Any, question: Question, steps: int) -> tuple[Attribution, float]:
    """The attribution and the seconds it took; prints a note if it is less exact than it should be."""
    from rich.progress import Progress

    from ..interpret import attribution

    began = time.monotonic()
    console = stderr_console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("Explaining", total=steps, visible=False)

        def watch(done: int, total: int) -> None:
            late = time.monotonic() - began > SECONDS_WITHOUT_BAR
            progress.update(task, completed=done, total=total, visible=late, description=f"Explaining, {total} steps")

        found = attribution.explain(model, tokenizer, question, steps=steps, watch=watch)
    if not found.error <= TOLERANCE:
        print_note(
            f"after {found.steps} steps, the scores of {shortened(found.text)!r} still miss their expected sum by "
            f"{found.error:.1%}"
        )
    return found, time.monotonic() - began


def _print_json(answers: list[tuple[Attribution, float]], top_k: int) -> None:
    explanations = [
        {
            "target": found.target,
            "probability": found.probability,
            "value": found.value,
            "baseline_value": found.baseline_value,
            "baseline_token": found.baseline_token,
            "completeness_error": found.error if math.isfinite(found.error) else None,
            "steps": found.steps,
            "seconds": round(seconds, 3),
            "place": found.place,
            "tokens": [{"text": piece, "score": score} for piece, score in zip(found.pieces, found.scores)],
        }
        for found, seconds in answers
    ]
    typer.echo(json.dumps({"text": answers[0][0].text, "explanations": explanations}, ensure_ascii=False))


def _print_tables(answers: list[tuple[Attribution, float]], top_k: int) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    coloured = console.color_system is not None and not console.no_color
    for index, (found, seconds) in enumerate(answers):
        if index:
            console.print()
        if len(answers) > 1:
            console.print(f"mask {index + 1} of {len(answers)}", style="italic")
        if coloured:
            console.print(_coloured(found))
        console.print(_table(found, top_k, with_text=console.width >= NARROW))
        console.print(_summary(found, seconds))


def _summary(found: Attribution, seconds: float) -> Text:
    """The line below a table."""
    from rich.text import Text

    measure = f"{found.value:.3g}" if found.probability is None else f"probability {found.probability:.1%}"
    return Text.assemble(
        (visible(found.target), "bold"),
        f"  {measure}  completeness error {found.error:.2%}  {found.steps} steps  {seconds:.1f} s",
    )


def _coloured(found: Attribution) -> Text:
    """The text, coloured by how much each token counts for or against the answer."""
    from rich.text import Text

    from ..interpret.rendering import shares, without_space

    text = Text()
    for index, (piece, share) in enumerate(zip(found.pieces, shares(found.scores))):
        space, token = without_space(piece)
        text.append(visible(space, keep_spaces=True))
        style = (
            "bold underline" if index == found.place else f"{INK} on {_colour(share)}" if abs(share) > FAINT else ""
        )
        text.append(visible(token, keep_spaces=True), style)
    return text


def _colour(share: float) -> str:
    """From grey to orange (for the answer) or blue (against it)."""
    from ..interpret.rendering import AGAINST, FOR

    full = FOR if share > 0 else AGAINST
    mixed = (round(grey + (part - grey) * abs(share)) for grey, part in zip(GREY, full))
    return "#{:02x}{:02x}{:02x}".format(*mixed)


def _table(found: Attribution, top_k: int, with_text: bool) -> Table:
    """The strongest tokens, each in brackets within its context."""
    from rich import box
    from rich.bar import Bar
    from rich.table import Column, Table
    from rich.text import Text

    from ..interpret.rendering import shares

    table = Table(
        Column("#", justify="right"),
        Column("token", no_wrap=True),
        Column("score", justify="right", no_wrap=True),
        Column("", width=BAR_WIDTH, no_wrap=True),
        *([Column("text", overflow="fold")] if with_text else []),
        box=box.SIMPLE_HEAD,
    )
    share = shares(found.scores)
    for rank, index in enumerate(found.strongest(top_k), start=1):
        size, colour = abs(share[index]), _colour(math.copysign(1, share[index]))
        table.add_row(
            str(rank),
            Text(visible(found.pieces[index]), style="bold"),
            f"{found.scores[index]:+.2f}",
            Bar(size=1, begin=0, end=size, width=BAR_WIDTH, color=colour),
            *([_surroundings(found, index)] if with_text else []),
        )
    return table


def _surroundings(found: Attribution, index: int) -> Text:
    from rich.text import Text

    from ..interpret.rendering import without_space

    space, token = without_space(found.pieces[index])
    before, after = "".join(found.pieces[:index]) + space, "".join(found.pieces[index + 1 :])
    left = before if len(before) <= CONTEXT else "…" + before[-CONTEXT:]
    right = after if len(after) <= CONTEXT else after[:CONTEXT] + "…"
    return Text(visible(f"{left}[{token}]{right}", keep_spaces=True))
