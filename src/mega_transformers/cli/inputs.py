"""Texts from arguments, stdin and files, and how many a command reads at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .runtime import UserError, gather_texts, print_note, shortened, spinner

if TYPE_CHECKING:
    from ..inference.texts import Text

FileOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--file",
        "-f",
        help="File to read. In a .csv, .tsv or .jsonl file, each row of --column is a text; any other file is one "
        "text, or one text per line with --lines. May be compressed (.gz). Can be repeated.",
    ),
]
LinesOption = Annotated[
    bool, typer.Option("--lines", help="Read each line of a text file as a text; blank lines are skipped.")
]
MaxLengthOption = Annotated[
    int | None, typer.Option(min=1, help="Cut texts to this many tokens. Default: no text is cut.")
]
BatchSizeOption = Annotated[int, typer.Option(min=1, help="Most texts in a batch.")]
MaxTokensOption = Annotated[
    int, typer.Option(min=1, help="Most tokens in a batch, padding included. A longer text gets a batch of its own.")
]
BATCH_SIZE, MAX_TOKENS = 32, 8192


def gather(
    arguments: list[str] | None,
    files: list[Path] | None,
    columns: list[str] | None,
    lines: bool,
    pair: bool = False,
    *,
    example: str,
) -> list[Text]:
    """The texts from the command line, stdin and files, in that order.

    Args:
        arguments: The TEXT arguments; without any, and without files, stdin is read.
        files, lines: The values of `--file` and `--lines`.
        columns: The values of `--column`.
        pair: Whether the texts are pairs, separated by a tab.
        example: A correct command, for messages.

    Raises:
        typer.BadParameter: for no text, an empty text, and options that contradict each other.
        UserError: for files and pairs that cannot be read.
    """
    from ..errors import RecipeError
    from ..inference.texts import COLUMNS, is_table, line_text, read_file

    given = arguments or []
    for argument in given:
        if not argument.strip():
            raise typer.BadParameter(f"{argument!r} is empty; give a text", param_hint="TEXT")
    tables = [path for path in files or [] if is_table(path)]
    if columns and not tables:
        raise typer.BadParameter(f"{columns[0]!r}: no --file is a .csv, .tsv or .jsonl file", param_hint="'--column'")
    if lines and len(tables) == len(files or []):
        raise typer.BadParameter("no --file is a text file, which --lines is for", param_hint="'--lines'")
    wanted = columns or list(COLUMNS[: 1 + pair])
    if len(wanted) != 1 + pair:
        needs = "two columns with --pair" if pair else "one column"
        raise typer.BadParameter(f"{', '.join(wanted)}: give {needs}", param_hint="'--column'")
    try:
        texts: list[Text] = []
        if given or not files:
            found = gather_texts(given, metavar="TEXT", example=example, kind="pair of texts" if pair else "text")
            texts = [line_text(str(number), text, pair) for number, text in enumerate(found, start=1)]
        for path in files or []:
            texts += read_file(path, wanted, lines)
    except RecipeError as error:
        raise UserError(str(error)) from None
    for argument in given:
        if len(argument) < 256 and Path(argument).is_file():
            print_note(f"{argument!r} is read as a text; to read the file, give --file {argument}")
    return texts


def described(text: Text) -> dict[str, str]:
    """The fields of a JSON object that identify a text; the contents of whole files are left out."""
    fields = {} if text.whole else {"text": text.text, "text_pair": text.pair}
    return {"id": text.id, **{key: value for key, value in fields.items() if value is not None}}


def name_of(text: Text) -> str:
    """The name of a text in messages and tables: the path of a whole file, else the beginning of the text."""
    return text.id if text.whole else shortened(" ".join(" | ".join(text.parts).split()))


def check_cut(reader: Any, cut: int | None) -> None:
    """Refuses a `--max-length` that leaves no room for text or is more than the model takes.

    Args:
        reader: A `TextModel` or `SentenceEncoder`.
        cut: The value of `--max-length`.

    Raises:
        UserError: names the valid range.
    """
    if cut is None:
        return
    least, most = reader.tokenizer.num_special_tokens_to_add(pair=True) + 2, reader.capacity
    if cut < least or (most is not None and cut > most):
        bounds = f"at least {least}" if most is None else f"{least} to {most}"
        raise UserError(f"--max-length {cut}: expected {bounds} for this model")


def counted(reader: Any, texts: Sequence[Text], max_length: int | None) -> list[int]:
    """The number of tokens of each text for a reader (`inference.encoding.TextModel`); prints how many texts are cut.

    Raises:
        UserError: for texts longer than the model takes, and texts without a token.
    """
    with spinner("Tokenising"):
        counts = reader.count([text.parts for text in texts])
    names = [repr(name_of(text)) for text in texts]
    if max_length is None:
        more = "" if reader.capacity == reader.limit else ", or a greater length to read more of it"
        check_lengths(names, counts, reader.limit, f"give --max-length {reader.limit} to cut it{more}")
    elif longer := sum(count > max_length for count in counts):
        print_note(f"{longer} of {len(texts)} texts are cut to {max_length} tokens; the longest has {max(counts):,}")
    for name, count in zip(names, counts):
        if not count:
            raise UserError(f"{name} has no token that the model knows; leave out this text")
    counts = [min(count, max_length or count) for count in counts]
    note_long_texts(names, counts, reader.config)
    return counts


def check_lengths(names: Sequence[str], counts: Sequence[int], limit: int | None, remedy: str) -> None:
    """Refuses texts longer than a model takes.

    Args:
        names: The name of each text, for messages.
        counts: The number of tokens of each text.
        limit: The most tokens, or None.
        remedy: What the user can do.

    Raises:
        UserError: for the first such text.
    """
    for name, count in zip(names, counts):
        if limit is not None and count > limit:
            raise UserError(f"{name} has {count} tokens, but the model takes at most {limit}; {remedy}")


def note_long_texts(names: Sequence[str], counts: Sequence[int], config: Any) -> None:
    """Prints which texts have more tokens than a Mega without chunks is made for."""
    if config.model_type != "mega" or config.use_chunking:
        return
    for name, count in zip(names, counts):
        if count > config.max_positions:
            print_note(
                f"{name} has {count} tokens, more than the max_positions={config.max_positions} the model is made "
                "for; its rotary positions continue beyond that, but the answers may be worse"
            )
