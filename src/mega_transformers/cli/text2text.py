"""`mega text2text`: the outputs of a sequence-to-sequence model."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..assets import DEFAULT_PAIR_MODEL
from ..evaluation.metrics import MAX_BEAMS
from .device import AUTO, DeviceOption, DTypeOption, check_names, resolve_placement
from .inputs import check_lengths
from .loading import PAIRS, ModelOption, kind_of, load, locate
from .runtime import STDIN, UserError, gather_texts, load_libraries, print_note, shortened, spinner

EXAMPLE = 'mega text2text "example"'
TEXTS_AT_A_TIME = 256
SHORT = 32  # longest text that a terminal shows beside its outputs


@dataclass(frozen=True)
class Transducer:
    """A loaded sequence-to-sequence model.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        arguments: Arguments of `generate`; the model's own settings apply otherwise.
    """

    model: Any
    tokenizer: Any
    arguments: dict[str, Any]

    def run(self, texts: list[str]) -> Iterator[tuple[str, list[str]]]:
        """Each text with its outputs, best first, in the order of the texts; in batches of similar lengths."""
        from ..evaluation.decoding import encode_sources, generate_outputs

        for start in range(0, len(texts), TEXTS_AT_A_TIME):
            some = texts[start : start + TEXTS_AT_A_TIME]
            sources = encode_sources(self.tokenizer, some)
            outputs = dict(generate_outputs(self.model, self.tokenizer, sources, **self.arguments))
            yield from ((text, outputs[index]) for index, text in enumerate(some))


def text2text(
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT", help="Texts to convert. '-' or no TEXT reads stdin, one text per line."),
    ] = None,
    model: ModelOption = DEFAULT_PAIR_MODEL,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="File of texts, one per line, also .gz. Default: none.")
    ] = None,
    num_beams: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_BEAMS,
            help="Number of beams; 1 is greedy search. Default: the model's setting.",
        ),
    ] = None,
    num_return_sequences: Annotated[
        int, typer.Option(min=1, help="Number of outputs to show per text, best first.")
    ] = 1,
    max_new_tokens: Annotated[
        int | None,
        typer.Option("--max-new-tokens", "-n", min=1, help="Most tokens of an output. Default: the model's setting."),
    ] = None,
    length_penalty: Annotated[
        float | None,
        typer.Option(help="With beams: higher values prefer longer outputs. Default: the model's setting."),
    ] = None,
    device: DeviceOption = AUTO,
    dtype: DTypeOption = AUTO,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per text: text, outputs.")] = False,
) -> None:
    """Convert each TEXT to another text, and print the outputs, one per line; a terminal also shows short texts.

    The bundled model turns English words into phonemes.
    """
    check_names(device, dtype)
    wanted = _gather(texts or [], file)
    arguments = _arguments(num_beams, num_return_sequences, max_new_tokens, length_penalty)
    transducer = load_transducer(model, arguments, device, dtype)
    unknown = check_texts(transducer, wanted)
    if unknown:
        more = f", and {len(unknown) - 1} more texts" if len(unknown) > 1 else ""
        print_note(f"{shortened(unknown[0])!r}{more}: the model has no token for some of the characters")
    longest = max(map(len, wanted))
    beside = sys.stdout.isatty() and longest <= SHORT
    for index, (text, outputs) in enumerate(_shown_late(transducer.run(wanted), len(wanted))):
        if as_json:
            typer.echo(json.dumps({"text": text, "outputs": outputs}, ensure_ascii=False))
            continue
        if index and num_return_sequences > 1:
            typer.echo()
        for output in outputs:
            typer.echo(f"{typer.style(text.ljust(longest), bold=True)}  {output}" if beside else output)


def load_transducer(name: str, arguments: dict[str, Any], device: str = AUTO, dtype: str = AUTO) -> Transducer:
    """Loads a bundled model, a folder or a hub id.

    Args:
        name: The model.
        arguments: Arguments of `generate`.
        device, dtype: The values of `--device` and `--dtype`.

    Raises:
        UserError: if there is no such model, device or number format, the model is not a sequence-to-sequence model,
            or `arguments` ask for more outputs than beams, or for longer outputs than the model can write.
    """
    place = locate(name)
    load_libraries()
    placement = resolve_placement(device, dtype)
    kind = kind_of(place, PAIRS)
    from ..evaluation.streaming import input_limit

    model, tokenizer = load(place, kind, placement)
    own = model.generation_config
    beams = arguments.get("num_beams", own.num_beams) or 1
    _check_outputs(arguments["num_return_sequences"], beams)
    new = arguments.get("max_new_tokens")
    limit = input_limit(getattr(model.config, "decoder", model.config))
    if new is not None and limit is not None and new >= limit:
        raise UserError(f"--max-new-tokens {new}: the model writes at most {limit - 1} tokens")
    return Transducer(model, tokenizer, {"do_sample": False, **arguments, "num_beams": beams})


def _check_outputs(outputs: int, beams: int) -> None:
    if outputs > beams:
        raise UserError(
            f"--num-return-sequences {outputs}: {beams} beams give no more than {beams} outputs; give "
            f"--num-beams {outputs} or more"
        )


def check_texts(transducer: Transducer, texts: list[str]) -> list[str]:
    """Refuses texts that are longer than the model takes, before it reads any.

    Returns:
        The texts with characters that the model has no token for.

    Raises:
        UserError: names the text and what would be right.
    """
    from ..evaluation.decoding import encode_sources
    from ..evaluation.streaming import input_limit

    tokenizer, config = transducer.tokenizer, transducer.model.config
    limit = input_limit(getattr(config, "encoder", config))
    with spinner("Tokenising"):
        sources = encode_sources(tokenizer, texts)
    names = [repr(shortened(text)) for text in texts]
    check_lengths(names, list(map(len, sources)), limit, "shorten it")
    return [text for text, ids in zip(texts, sources) if tokenizer.unk_token_id in ids]


def _gather(arguments: list[str], file: Path | None) -> list[str]:
    """The texts of the command line, of stdin or of a file; refuses empty texts."""
    if file is not None:
        if arguments:
            raise typer.BadParameter(
                f"{file} holds the texts; leave out the file, or {shortened(arguments[0])!r}", param_hint="'--file'"
            )
        return _lines(file)
    for argument in arguments:
        if argument != STDIN and not argument.strip():
            raise typer.BadParameter(f"{argument!r} is empty; give a text", param_hint="TEXT")
    return gather_texts(arguments, metavar="TEXT", example=EXAMPLE, kind="text")


def _lines(file: Path) -> list[str]:
    from ..errors import RecipeError
    from ..evaluation.texts import read_text

    try:
        lines = [line.strip() for line in read_text(file).splitlines()]
    except RecipeError as error:
        raise UserError(f"--file {file}: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line:
            raise UserError(f"--file {file}: line {number} is empty; give one text per line")
    if not lines:
        raise UserError(f"--file {file} holds no text; expected one per line")
    return lines


def _arguments(
    num_beams: int | None, num_return_sequences: int, max_new_tokens: int | None, length_penalty: float | None
) -> dict[str, Any]:
    if length_penalty is not None and not math.isfinite(length_penalty):
        raise typer.BadParameter(f"{length_penalty:g} must be a finite number", param_hint="'--length-penalty'")
    if num_beams is not None:
        _check_outputs(num_return_sequences, num_beams)
    arguments = {"num_beams": num_beams, "max_new_tokens": max_new_tokens, "length_penalty": length_penalty}
    given = {name: value for name, value in arguments.items() if value is not None}
    return {"num_return_sequences": num_return_sequences, **given}


def _shown_late(made: Iterator[Any], total: int) -> Iterator[Any]:
    """Yields the items of `made`, with a progress bar on stderr if that is a terminal and it takes longer than two
    seconds.
    """
    from ..evaluation.progress import LateBar

    with LateBar("Generating", total) as bar:
        for item in made:
            bar.advance(1)
            yield item
