"""`mega perplexity`: how well a causal language model predicts texts of any length."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..assets import DEFAULT_CAUSAL_MODEL
from .device import AUTO, DeviceOption, DTypeOption, Placement, resolve_placement
from .loading import Kind, Location, check_kind, load, locate
from .runtime import STDIN, UserError, load_libraries, spinner

if TYPE_CHECKING:
    from rich.table import Table

    from ..training.streaming import TextScore

TOGETHER = "together"
KIND = Kind("AutoModelForCausalLM", "causal language model", "predict next words")


def perplexity(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Text files, .gz too; '-' for stdin.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="A bundled model, a folder, or an id of the Hugging Face hub.")
    ] = DEFAULT_CAUSAL_MODEL,
    mode: Annotated[
        str,
        typer.Option(
            help="What a token is predicted from: 'full', all before it, with carried state; 'chunk', those before it "
            "in its window; 'sliding', those before it in a window that moves on by the stride."
        ),
    ] = "full",
    window: Annotated[int | None, typer.Option(help="Tokens per window of chunk and sliding; 512 for none.")] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens by which a sliding window moves on; half a window for none.")
    ] = None,
    piece: Annotated[
        int | None,
        typer.Option(help="Tokens read at a time in mode full, which the numbers do not depend on; 1024 for none."),
    ] = None,
    clean: Annotated[list[str] | None, typer.Option(help="Cleaning: wikitext, unwrap or emphasis.")] = None,
    documents: Annotated[str, typer.Option(help="Documents: whole, lines, paragraphs or sections.")] = "lines",
    device: DeviceOption = AUTO,
    dtype: DTypeOption = AUTO,
    json: Annotated[Path | None, typer.Option(help="JSON file to write the numbers to.")] = None,
) -> None:
    """Cross entropy of texts under a causal language model: per token, character and word.

    Every token is predicted, and the end of every document. A model with chunks of attention reads on in constant
    memory however long the text is. Each file is read afresh.
    """
    if files.count(STDIN) > 1:
        raise typer.BadParameter("'-' stands for stdin and can be given once", param_hint="FILE")
    if json is not None and not json.parent.is_dir():
        raise UserError(f"--json {json}: there is no folder {json.parent}")
    if json is not None and json.is_dir():
        raise UserError(f"--json {json}: that is a folder; name a file")
    for name in files:
        if name != STDIN and not Path(name).is_file():
            raise UserError(f"there is no file {name}")
    place = locate(model, KIND)
    load_libraries()
    placement = resolve_placement(device, dtype)
    from ..training.cleaning import check_names
    from ..training.schema import RecipeError

    try:
        check_names(clean or [], documents)
        reading = _reading(mode, window, stride, piece)
        texts = {name: _text(name) for name in files}
        scores = _scores(place, placement, texts, reading, clean or [], documents)
    except RecipeError as error:
        raise UserError(str(error)) from error
    if json is not None:
        _write(json, model, reading, scores)

    from rich.console import Console

    Console().print(_table(f"{model}, {_describe(reading)}", scores, cleaned=bool(clean)))


def _reading(mode: str, window: int | None, stride: int | None, piece: int | None) -> Any:
    """The checked `Reading`; refuses options that the mode does not use."""
    from ..training.streaming import USES, Reading

    given = {"window": window, "stride": stride, "piece": piece}
    reading = Reading(mode, **{name: value for name, value in given.items() if value is not None})
    for name, value in given.items():
        if value is not None and name not in USES[mode]:
            modes = " and ".join(other for other, used in USES.items() if name in used)
            raise UserError(f"--{name} {value} is for --mode {modes}; leave it out with --mode {mode}")
    return reading


def _text(name: str) -> str:
    from ..training.data import read_text

    if name != STDIN:
        text = read_text(Path(name))
    else:
        try:
            text = sys.stdin.buffer.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"stdin is no UTF-8: {error}") from None
    if not text.strip():
        raise UserError(f"{'stdin' if name == STDIN else name} holds no text")
    return text


def _scores(
    place: Location, placement: Placement, texts: dict[str, str], reading: Any, clean: list[str], documents: str
) -> dict[str, TextScore]:
    """A score for each file and, for more than one, of all together."""
    from ..training.streaming import check_causal, read_tokens, score_text

    check_kind(place, KIND, "judge this one with mega evaluate")
    model, tokenizer = load(place, KIND, placement)
    if not tokenizer.is_fast:
        raise UserError(f"the tokenizer of {place.name} has no tokenizer.json; save it with a fast tokenizer")
    check_causal(model)
    scores = {}
    for name, text in texts.items():
        shown = "stdin" if name == STDIN else name
        with spinner(f"Tokenising {shown}"):
            tokens, size = read_tokens(text, tokenizer, clean, documents)
        scores[shown] = score_text(model, tokens, size, reading, shown)
    if len(scores) > 1:
        first, *rest = scores.values()
        scores[TOGETHER] = sum(rest, first)
    return scores


def _describe(reading: Any) -> str:
    if reading.mode == "full":
        return "state carried over the whole text"
    if reading.mode == "chunk":
        return f"pieces of {reading.window} tokens"
    return f"sliding window of {reading.window} tokens, stride {reading.step}"


def _write(path: Path, model: str, reading: Any, scores: dict[str, TextScore]) -> None:
    from ..training.export import write_json

    texts = {
        name: {key: value if math.isfinite(value) else None for key, value in score.summary().items()}
        for name, score in scores.items()
    }
    write_json(path, {"model": model, **reading.used(), "texts": texts})


def _table(title: str, scores: dict[str, TextScore], cleaned: bool) -> Table:
    from rich.table import Table

    columns = {
        "tokens": ("tokens", ","),
        "cross_entropy": ("nats per token", ".4f"),
        "perplexity": ("token perplexity", ".2f"),
        "bits_per_character": ("bits per character", ".4f"),
        "word_perplexity": ("word perplexity", ".2f"),
        "raw_word_perplexity": ("per uncleaned word", ".2f"),
        "tokens_per_second": ("tokens per second", ",.0f"),
    }
    if not cleaned:
        del columns["raw_word_perplexity"]
    table = Table(title=title)
    table.add_column("", overflow="fold")
    for name, _ in columns.values():
        table.add_column(name, justify="right")
    for name, score in scores.items():
        numbers = score.summary()
        table.add_row(name, *(format(numbers[key], form) for key, (_, form) in columns.items()))
    return table
