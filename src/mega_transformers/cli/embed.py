"""`mega embed`: vectors for texts of any length."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..assets import DEFAULT_MODEL
from .device import AUTO, DeviceOption, DTypeOption, Placement, check_names, resolve_placement
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
from .loading import ENCODER, Location, ModelOption, load, loading, locate
from .outputs import check_output_file, replaced, shortest
from .runtime import UserError, load_libraries, print_note
from .tables import bar_width, probability_bar

if TYPE_CHECKING:
    import numpy as np

    from ..inference.texts import Text

EXAMPLE = 'mega embed "A text." "Another text."'
# the description of each pooling
POOLINGS = {
    "mean": "mean of the tokens",
    "first": "the first token",
    "last": "the last token",
    "max": "maximum of the tokens",
}
ROWS = 20  # rows of the table
NUMBERS = 4  # numbers of a vector in the table
NARROW = 72  # narrower terminals get no vectors


@dataclass(frozen=True)
class Run:
    """The vectors (texts, d) of texts, their numbers of tokens, and the seconds taken."""

    vectors: np.ndarray
    counts: list[int]
    seconds: float

    def describe(self, memory: int | None) -> str:
        """Tokens, seconds, speed and, if known, memory in bytes."""
        total = sum(self.counts)
        said = f"{total:,} tokens in {self.seconds:.1f} s, {total / max(self.seconds, 1e-9):,.0f} tokens per second"
        return said if memory is None else f"{said}, {memory / 1e9:.2f} GB of memory at most"


def embed(
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT",
            help="Texts to embed. '-' reads stdin, one text per line; so does leaving out both TEXT and --file.",
        ),
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    file: FileOption = None,
    lines: LinesOption = False,
    column: Annotated[
        str | None,
        typer.Option(
            help="Column of a table that holds the texts: its name, or its number in a table without a "
            "header. Default: text."
        ),
    ] = None,
    pooling: Annotated[
        str | None,
        typer.Option(
            help="How to pool the token vectors of a text: mean, max, first or last. Default: the setting of a "
            "sentence-transformers folder; else last for causal models and mean for others."
        ),
    ] = None,
    normalize: Annotated[bool, typer.Option("--normalize", help="Scale vectors to length 1.")] = False,
    query: Annotated[
        str | None, typer.Option(help="Show the texts closest to this one, by cosine. Default: none.")
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Texts to show with --query.")] = 5,
    max_length: MaxLengthOption = None,
    batch_size: BatchSizeOption = BATCH_SIZE,
    max_tokens: MaxTokensOption = MAX_TOKENS,
    device: DeviceOption = AUTO,
    dtype: DTypeOption = AUTO,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="NumPy file (.npz) to write: vectors (texts, size), ids, tokens. Default: none."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per text: id, text, tokens, vector.")
    ] = False,
) -> None:
    """Turn each TEXT, of any length, into a vector.

    Any model will do; its head is not used. Vectors do not depend on the other texts in a batch.
    """
    check_names(device, dtype)
    if pooling not in (None, *POOLINGS):
        raise UserError(f"--pooling {pooling}: expected mean, first, last or max")
    if output is not None:
        if output.suffix != ".npz":
            raise UserError(f"--output {output}: expected a file name that ends in .npz")
        check_output_file("--output", output)
    if query is not None and not query.strip():
        raise typer.BadParameter("the text is empty", param_hint="'--query'")
    wanted = gather(texts, file, None if column is None else [column], lines, example=EXAMPLE)
    encoder = load_encoder(model, pooling, max_length, device, dtype)
    run = _run(encoder, wanted, max_length, batch_size, max_tokens, normalize, query)
    if output is not None:
        _write(output, wanted, run)
    if query is not None:
        _show_nearest(query, wanted, run.vectors, top_k, as_json)
    elif as_json:
        for text, vector, tokens in zip(wanted, run.vectors, run.counts):
            found = {**described(text), "tokens": tokens, "vector": list(map(shortest, vector))}
            typer.echo(json.dumps(found, ensure_ascii=False))
    else:
        _show(f"{model}, {POOLINGS.get(encoder.pooling, encoder.pooling)}", wanted, run, encoder.model.device)


def load_encoder(
    name: str, pooling: str | None = None, cut: int | None = None, device: str = AUTO, dtype: str = AUTO
) -> Any:
    """A `TokenEncoder`, or a `SentenceEncoder` for a sentence-transformers folder if `pooling` is not given.

    Args:
        name: The model.
        pooling: See `TokenEncoder`.
        cut: The number of tokens to cut texts to.
        device, dtype: The values of `--device` and `--dtype`.

    Raises:
        UserError: if there is no such model, device or number format, or the model does not read texts.
    """
    place = locate(name)
    load_libraries()
    placement = resolve_placement(device, dtype)
    from ..inference.embedding import SentenceEncoder, TokenEncoder

    encoder: Any
    if pooling is None and _is_sentence_transformer(place):
        encoder = SentenceEncoder(_load_sentence_transformer(place, placement), cut)
    else:
        model, tokenizer = load(place, ENCODER, placement)
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
        encoder = TokenEncoder(model, tokenizer, cut, pooling)
    check_cut(encoder, cut)
    return encoder


def _is_sentence_transformer(place: Location) -> bool:
    from transformers.utils import cached_file

    silent = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    return cached_file(str(place.folder or place.name), "modules.json", **silent) is not None


def _load_sentence_transformer(place: Location, placement: Placement) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise UserError(
            f"the model {place.name} needs the package sentence-transformers: pip install "
            "'mega-transformers[embed]'; or give a --pooling to do without it"
        ) from None
    with loading(place):
        return SentenceTransformer(
            str(place.folder or place.name),
            device=str(placement.device),
            local_files_only=place.cached_only,
            model_kwargs={"dtype": placement.dtype},
        )


def _run(
    encoder: Any,
    texts: list[Text],
    max_length: int | None,
    batch_size: int,
    max_tokens: int,
    normalize: bool,
    query: str | None,
) -> Run:
    """The vectors of the texts and, last, of the query."""
    import numpy as np

    from ..evaluation.batches import by_length
    from ..inference.embedding import normalized
    from ..inference.texts import Text

    every = texts if query is None else [*texts, Text("query", query)]
    counts = counted(encoder, every, max_length)
    began = time.perf_counter()
    vectors = by_length(
        lambda batch, advance: encoder.vectors([every[index].parts for index in batch], advance),
        counts,
        max_tokens,
        batch_size,
        "Embedding",
    )
    found = np.stack(vectors)
    return Run(normalized(found) if normalize else found, counts, time.perf_counter() - began)


def _write(path: Path, texts: list[Text], run: Run) -> None:
    import numpy as np

    vectors = run.vectors[: len(texts)]
    with replaced(path) as partial, partial.open("wb") as file:
        np.savez(
            file,
            vectors=vectors,
            ids=np.array([text.id for text in texts]),
            tokens=np.array(run.counts[: len(texts)]),
        )
    print_note(f"{path} holds {len(vectors):,} vectors of {vectors.shape[1]} numbers")


def _show(title: str, texts: list[Text], run: Run, device: Any) -> None:
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text as Shown

    from ..evaluation.memory import peak_memory
    from ..inference.embedding import normalized

    console = Console(highlight=False)
    memory = None
    with suppress(ImportError):  # not known on this system
        memory = peak_memory(device)
    several = len(texts) > 1
    columns = [Column("text", no_wrap=True, overflow="ellipsis", ratio=1), Column("tokens", justify="right")]
    columns += [Column("cosine with 1st", justify="right")] * several
    shown = NUMBERS if console.width >= NARROW else 0
    if shown:
        columns.append(Column(f"{shown} of {run.vectors.shape[1]} numbers", justify="right", no_wrap=True))
    caption = run.describe(memory)
    if len(texts) > ROWS:
        caption = f"and {len(texts) - ROWS:,} more: --json or --output gives all\n{caption}"
    table = Table(*columns, title=title, caption=caption, expand=True)
    units = normalized(run.vectors[:ROWS])
    for text, vector, tokens, unit in zip(texts[:ROWS], run.vectors, run.counts, units):
        cosine = [f"{float(unit @ units[0]):.3f}"] * several
        numbers = [" ".join(f"{x:6.3f}" for x in vector[:shown])] if shown else []
        table.add_row(Shown(name_of(text)), f"{tokens:,}", *cosine, *numbers)
    console.print(table)


def _show_nearest(query: str, texts: Sequence[Text], vectors: np.ndarray, top_k: int, as_json: bool) -> None:
    """The texts whose vectors have the greatest cosine with the last vector, the query's."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text as Shown

    from ..inference.embedding import normalized

    units = normalized(vectors)
    cosines = units[:-1] @ units[-1]
    best = (-cosines).argsort(kind="stable")[:top_k]
    if as_json:
        for index in best:
            found = {**described(texts[index]), "cosine": shortest(cosines[index])}
            typer.echo(json.dumps(found, ensure_ascii=False))
        return
    console = Console(highlight=False)
    width = bar_width(console)
    table = Table(
        Column("#", justify="right"),
        Column("cosine", justify="right"),
        Column("", width=width, no_wrap=True),
        Column("text", overflow="fold"),
        title=Shown(f"nearest to {query!r}"),
    )
    for rank, index in enumerate(best, start=1):
        cosine = float(cosines[index])
        table.add_row(str(rank), f"{cosine:.3f}", probability_bar(cosine, width), Shown(name_of(texts[index])))
    console.print(table)
