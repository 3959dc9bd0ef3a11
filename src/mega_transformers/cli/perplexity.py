"""`mega perplexity`: how well a causal language model predicts texts of any length."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..assets import DEFAULT_CAUSAL_MODEL
from .device import AUTO, DeviceOption, DTypeOption, Placement, check_names, resolve_placement
from .loading import CAUSAL, Location, ModelOption, kind_of, load, locate
from .outputs import check_output_file
from .runtime import STDIN, UserError, load_libraries, spinner
from .tables import print_scores

if TYPE_CHECKING:
    from ..evaluation.streaming import TextScore

TOGETHER = "together"
# key of a score -> title of its column, format
COLUMNS = {
    "tokens": ("tokens", ","),
    "cross_entropy": ("nats per token", ".4f"),
    "perplexity": ("token perplexity", ".2f"),
    "bits_per_character": ("bits per character", ".4f"),
    "word_perplexity": ("word perplexity", ".2f"),
    "raw_word_perplexity": ("per uncleaned word", ".2f"),
    "tokens_per_second": ("tokens per second", ",.0f"),
}


def perplexity(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Text files, also .gz; '-' reads stdin.")],
    model: ModelOption = DEFAULT_CAUSAL_MODEL,
    mode: Annotated[
        str,
        typer.Option(
            help="Context of each token. 'full': all tokens before it, with carried state. 'chunk': those before it "
            "in its window. 'sliding': those before it in a window that moves by the stride."
        ),
    ] = "full",
    window: Annotated[
        int | None, typer.Option(help="Tokens per window, for modes chunk and sliding. Default: 512.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens by which a sliding window moves. Default: half a window.")
    ] = None,
    piece: Annotated[
        int | None,
        typer.Option(help="Tokens per forward pass in mode full; it does not change the numbers. Default: 1024."),
    ] = None,
    clean: Annotated[
        list[str] | None,
        typer.Option(help="Cleaning of the text: wikitext, unwrap or emphasis. Can be repeated. Default: none."),
    ] = None,
    documents: Annotated[
        str, typer.Option(help="Split each text into documents: whole, lines, paragraphs or sections.")
    ] = "lines",
    device: DeviceOption = AUTO,
    dtype: DTypeOption = AUTO,
    json: Annotated[Path | None, typer.Option(help="JSON file to write the numbers to. Default: none.")] = None,
) -> None:
    """Measure the cross entropy of texts under a causal language model: per token, character and word.

    The model predicts every token and the end of every document. A model with chunks of attention needs the same
    memory for any length of text. Every file starts without context.
    """
    if files.count(STDIN) > 1:
        raise typer.BadParameter("'-' means stdin and can be given only once", param_hint="FILE")
    check_names(device, dtype)
    if json is not None:
        check_output_file("--json", json)
    for name in files:
        if name != STDIN and not Path(name).is_file():
            raise UserError(f"there is no file {name}")
    from ..errors import RecipeError
    from ..evaluation.texts import check_names as check_cleaning

    try:
        check_cleaning(clean or [], documents)
        reading = _reading(mode, window, stride, piece)
        texts = {name: _text(name) for name in files}
        place = locate(model)
        load_libraries()
        scores = _scores(place, resolve_placement(device, dtype), texts, reading, clean or [], documents)
    except RecipeError as error:
        raise UserError(str(error)) from error
    if json is not None:
        _write(json, model, reading, scores)
    columns = {key: column for key, column in COLUMNS.items() if clean or key != "raw_word_perplexity"}
    print_scores(f"{model}, {_describe(reading)}", {name: score.summary() for name, score in scores.items()}, columns)


def _reading(mode: str, window: int | None, stride: int | None, piece: int | None) -> Any:
    """The checked `Reading`; refuses options that the mode does not use."""
    from ..evaluation.reading import USES, Reading

    given = {"window": window, "stride": stride, "piece": piece}
    reading = Reading(mode, **{name: value for name, value in given.items() if value is not None})
    for name, value in given.items():
        if value is not None and name not in USES[mode]:
            modes = " and ".join(other for other, used in USES.items() if name in used)
            raise UserError(f"--{name} {value} is for --mode {modes}; leave it out with --mode {mode}")
    return reading


def _text(name: str) -> str:
    from ..evaluation.texts import read_text

    if name != STDIN:
        text = read_text(Path(name))
    else:
        try:
            text = sys.stdin.buffer.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"stdin is not valid UTF-8: {error}") from None
    if not text.strip():
        raise UserError(f"{'stdin' if name == STDIN else name} holds no text")
    return text


def _scores(
    place: Location, placement: Placement, texts: dict[str, str], reading: Any, clean: list[str], documents: str
) -> dict[str, TextScore]:
    """The scores of each file and, for several files, of all together."""
    from ..evaluation.streaming import check_causal, read_tokens, score_text

    model, tokenizer = load(place, kind_of(place, CAUSAL), placement)
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
