"""`mega classify`: labels for texts of any length, or tags for their words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .device import AUTO, DeviceOption, DTypeOption, check_names, resolve_placement
from .inputs import (
    BATCH_SIZE,
    MAX_TOKENS,
    BatchSizeOption,
    FileOption,
    LinesOption,
    MaxLengthOption,
    MaxTokensOption,
    check_cut,
    counted,
    described,
    gather,
    name_of,
)
from .loading import CLASSIFIER, TAGGER, ModelOption, kind_of, load, locate
from .outputs import shortest
from .runtime import UserError, load_libraries
from .tables import bar_width, percent, probability_bar

if TYPE_CHECKING:
    import numpy as np

    from ..inference.texts import Text

EXAMPLE = 'mega classify --model runs/classify-smoke/model "A text."'
OUTSIDE = "O"  # the tag of a word that is not part of an entity


def classify(
    model: ModelOption,
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT",
            help="Texts to classify. '-' reads stdin, one text per line; so does leaving out both TEXT and --file.",
        ),
    ] = None,
    file: FileOption = None,
    lines: LinesOption = False,
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="Column of a table that holds the texts: its name, or its number in a table without a header. Give "
            "it twice for pairs. Default: text; with --pair, text and text_pair."
        ),
    ] = None,
    pair: Annotated[
        bool,
        typer.Option(
            "--pair", help="Treat each text, and each line of a text file, as a pair of texts separated by a tab."
        ),
    ] = False,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Most labels to show per text.")] = 5,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Least probability of a label. Only for models that give a text several labels. Default: 0.5.",
        ),
    ] = None,
    max_length: MaxLengthOption = None,
    batch_size: BatchSizeOption = BATCH_SIZE,
    max_tokens: MaxTokensOption = MAX_TOKENS,
    device: DeviceOption = AUTO,
    dtype: DTypeOption = AUTO,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per text instead of tables.")] = False,
) -> None:
    """Classify each TEXT, of any length: labels for the text, tags for its words, or numbers, as the model was
    trained.

    Results do not depend on the other texts in a batch.
    """
    check_names(device, dtype)
    wanted = gather(texts, file, column, lines, pair, example=EXAMPLE)
    reader = load_classifier(model, max_length, device, dtype)
    from ..evaluation.batches import by_length
    from ..inference.classification import MULTI, REGRESSION, Tagger

    tags = isinstance(reader, Tagger)
    if tags and pair:
        raise UserError(f"--pair: the model {model} tags the words of single texts; leave out --pair")
    problem = None if tags else reader.problem
    if threshold is not None and problem != MULTI:
        raise UserError(
            f"--threshold {threshold:g}: the model {model} gives each text a single label; leave out --threshold"
        )
    counts = counted(reader, wanted, max_length)
    compute = reader.tags if tags else reader.scores
    results = by_length(
        lambda batch, advance: compute([wanted[index].parts for index in batch], advance),
        counts,
        max_tokens,
        reader.max_rows or batch_size,
        "Classifying",
    )
    answers: list[dict[str, Any]]
    if tags:
        answers = [{"words": [{**asdict(word), "score": shortest(word.score)} for word in words]} for words in results]
    elif problem == REGRESSION:
        answers = [{"values": dict(zip(reader.labels, map(shortest, scores)))} for scores in results]
    else:
        least = 0.0 if problem != MULTI else 0.5 if threshold is None else threshold
        answers = [{"labels": _ranked(reader.labels, scores, top_k, least)} for scores in results]
    if as_json:
        for text, answer in zip(wanted, answers):
            typer.echo(json.dumps({**described(text), **answer}, ensure_ascii=False))
    else:
        show = _show_words if tags else _show_numbers if problem == REGRESSION else _show_labels
        show(model, wanted, answers)


def load_classifier(name: str, cut: int | None = None, device: str = AUTO, dtype: str = AUTO) -> Any:
    """A `Classifier`, or a `Tagger` for a model that tags words.

    Args:
        name: The model.
        cut: The number of tokens to cut texts to.
        device, dtype: The values of `--device` and `--dtype`.

    Raises:
        UserError: if there is no such model, device or number format, or the model is not a classifier.
    """
    place = locate(name)
    load_libraries()
    placement = resolve_placement(device, dtype)
    kind = kind_of(place, CLASSIFIER, TAGGER)
    from ..inference.classification import Classifier, Tagger

    model, tokenizer = load(place, kind, placement)
    if kind is TAGGER and not tokenizer.is_fast:
        raise UserError(f"the tokenizer of {name} has no tokenizer.json; save it with a fast tokenizer")
    reader = (Tagger if kind is TAGGER else Classifier)(model, tokenizer, cut)
    check_cut(reader, cut)
    return reader


def _ranked(labels: Sequence[str], scores: np.ndarray, top_k: int, least: float) -> list[dict[str, Any]]:
    """The most likely labels of at least that probability, best first."""
    best = (-scores).argsort(kind="stable")[:top_k]
    return [{"label": labels[index], "score": shortest(scores[index])} for index in best if scores[index] >= least]


def _show_labels(model: str, texts: list[Text], answers: list[dict[str, Any]]) -> None:
    rows = [
        (name_of(text), [(one["label"], one["score"]) for one in answer["labels"]])
        for text, answer in zip(texts, answers)
    ]
    _show_bars(model, "text", "label", rows)


def _show_words(model: str, texts: list[Text], answers: list[dict[str, Any]]) -> None:
    for text, answer in zip(texts, answers):
        rows = [(word["word"], [(word["tag"], word["score"])]) for word in answer["words"]]
        _show_bars(name_of(text), "word", "tag", rows, sections=False)


def _show_bars(
    title: str, first: str, second: str, rows: list[tuple[str, list[tuple[str, float]]]], sections: bool = True
) -> None:
    """A table of texts, each with its labels and their probabilities as numbers and bars."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text as Shown

    console = Console(highlight=False)
    width = bar_width(console)
    table = Table(
        Column(first, overflow="fold"),
        Column(second, overflow="fold"),
        Column("probability", justify="right", no_wrap=True),
        Column("", width=width, no_wrap=True),
        title=Shown(title),
        title_justify="left",
    )
    for name, labels in rows:
        for index, (label, score) in enumerate(labels):
            style = "dim" if label == OUTSIDE else "bold"
            cells = ("" if index else Shown(name), Shown(label, style=style), percent(score))
            table.add_row(*cells, probability_bar(score, width))
        if not labels:
            table.add_row(Shown(name), Shown("none", style="dim"), "", "")
        if sections:
            table.add_section()
    console.print(table)


def _show_numbers(model: str, texts: list[Text], answers: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text as Shown

    names = list(answers[0]["values"])
    table = Table(
        Column("text", overflow="fold"), *(Column(Shown(name), justify="right") for name in names), title=Shown(model)
    )
    for text, answer in zip(texts, answers):
        table.add_row(Shown(name_of(text)), *(f"{value:.4g}" for value in answer["values"].values()))
    Console(highlight=False).print(table)
