"""`mega fill-mask`: what a masked language model puts in place of `<mask>`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..assets import BUNDLED_MODELS, DEFAULT_MODEL
from .device import AUTO, DeviceOption, DTypeOption, check_names, resolve_placement
from .inputs import check_lengths, note_long_texts
from .loading import MASKED, ModelOption, kind_of, load, locate
from .runtime import UserError, gather_texts, load_libraries, shortened, spinner
from .tables import bar_width, percent, probability_bar, visible

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text
    from transformers import FillMaskPipeline, PreTrainedConfig, PreTrainedTokenizerBase

MASK = "<mask>"
EXAMPLE = f'mega fill-mask "The {MASK} of the United States gave a speech."'
CONTEXT = 48  # characters shown on either side of a filled mask
NARROW = 72  # columns below which a table leaves out the text


@dataclass(frozen=True)
class Filler:
    """A masked language model that is ready to fill masks."""

    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    pipeline: FillMaskPipeline

    @property
    def mask_token(self) -> str:
        """How the model writes a mask."""
        return str(self.tokenizer.mask_token)

    @property
    def swallows_space(self) -> bool:
        """Whether a mask takes the place of the space before it too, as RoBERTa's does."""
        return bool(self.tokenizer.added_tokens_decoder[self.tokenizer.mask_token_id].lstrip)

    @property
    def limit(self) -> int | None:
        """The most tokens the model takes; None for no limit."""
        from ..evaluation.streaming import text_limit

        return text_limit(self.config, self.tokenizer)


def fill_mask(
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT", help="Texts with one or more <mask>. '-', or none with a pipe: stdin, one per line."
        ),
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Candidates per mask.")] = 5,
    device: DeviceOption = AUTO,
    dtype: DTypeOption = AUTO,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per text instead of tables.")] = False,
) -> None:
    """Fill every <mask> in TEXT and show the likeliest candidates.

    <mask> stands for the mask whatever the model's own mask token is. Each mask is filled with the other masks left
    in place, as transformers' fill-mask pipeline does.
    """
    check_names(device, dtype)
    wanted = gather_texts(texts or [], metavar="TEXT", example=EXAMPLE, kind=f"text with {MASK}")
    if model in BUNDLED_MODELS:
        check_masks(wanted)  # of other models the mask token is not known yet
    filler = load_filler(model, device, dtype)
    prepared = [text.replace(MASK, filler.mask_token) for text in wanted]
    check_texts(filler, prepared)
    if top_k > filler.config.vocab_size:
        raise UserError(f"--top-k {top_k}: the model's vocabulary has {filler.config.vocab_size} tokens")
    show = _print_json if as_json else _print_tables
    for index, text in enumerate(prepared):
        if index and not as_json:
            typer.echo()
        show(filler, text, candidates_of(filler, text, top_k))


def load_filler(name: str, device: str = AUTO, dtype: str = AUTO) -> Filler:
    """A bundled model, a folder's or a hub id's under transformers' fill-mask pipeline.

    Args:
        name: The model.
        device, dtype: As the command line gives them.

    Raises:
        UserError: if there is no such model, device or number format, or the model cannot fill masks.
    """
    place = locate(name)
    load_libraries()
    placement = resolve_placement(device, dtype)
    from transformers import FillMaskPipeline

    model, tokenizer = load(place, kind_of(place, MASKED), placement)
    if tokenizer.mask_token_id is None:
        raise UserError(f"the model {name} has a tokenizer without mask token, so it cannot fill masks")
    pipeline = FillMaskPipeline(model=model, tokenizer=tokenizer, device=placement.device)
    return Filler(model.config, tokenizer, pipeline)


def check_masks(texts: list[str], mask_token: str = MASK) -> None:
    """Refuses texts without mask.

    Args:
        texts: The texts.
        mask_token: The model's own mask token.

    Raises:
        UserError: naming the text.
    """
    for text in texts:
        if mask_token not in text:
            also = "" if mask_token == MASK else f" (or the model's own {mask_token})"
            raise UserError(f"no mask in {shortened(text)!r}: write {MASK}{also} where a word is to be filled in")


def check_texts(filler: Filler, texts: list[str]) -> None:
    """Refuses texts without mask, or longer than the model takes, before any is filled.

    Raises:
        UserError: naming the text and what would be right.
    """
    check_masks(texts, filler.mask_token)
    with spinner("Tokenising"):
        lengths = [len(ids) for ids in filler.tokenizer(texts, verbose=False)["input_ids"]]
    names = [repr(shortened(text)) for text in texts]
    check_lengths(names, lengths, filler.limit, "shorten it")
    note_long_texts(names, lengths, filler.config)


def candidates_of(filler: Filler, text: str, top_k: int) -> list[list[dict[str, Any]]]:
    """Per mask of `text`, in their order, its candidates as the pipeline gives them."""
    with spinner("Filling masks"):
        result: Any = filler.pipeline(text, top_k=top_k)
    return [result] if isinstance(result[0], dict) else result


def _print_json(filler: Filler, text: str, masks: list[list[dict[str, Any]]]) -> None:
    import json

    typer.echo(json.dumps({"text": text, "masks": masks}, ensure_ascii=False))


def _print_tables(filler: Filler, text: str, masks: list[list[dict[str, Any]]]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    for table in _tables(filler, text, masks, bar_width(console), with_text=console.width >= NARROW):
        console.print(table)


def _tables(
    filler: Filler, text: str, masks: list[list[dict[str, Any]]], width: int, with_text: bool
) -> Iterator[Table]:
    from rich import box
    from rich.table import Column, Table
    from rich.text import Text

    parts = text.split(filler.mask_token)
    for index, candidates in enumerate(masks):
        title = f"mask {index + 1} of {len(masks)}" if len(masks) > 1 else None
        table = Table(
            Column("#", justify="right"),
            Column("token", no_wrap=True),
            Column("probability", justify="right", no_wrap=True),
            Column("", width=width, no_wrap=True),
            *([Column("text", overflow="fold")] if with_text else []),
            title=title,
            title_justify="left",
            box=box.SIMPLE_HEAD,
        )
        before, after = MASK.join(parts[: index + 1]), MASK.join(parts[index + 1 :])
        for rank, candidate in enumerate(candidates, start=1):
            token, score = candidate["token_str"], candidate["score"]
            table.add_row(
                str(rank),
                Text(visible(token), style="bold"),
                percent(score),
                probability_bar(score, width),
                *([_filled(before, token, after, filler.swallows_space)] if with_text else []),
            )
        yield table


def fitted(before: str, token: str, swallows_space: bool) -> tuple[str, str]:
    """The text before a mask, and a candidate, as they stand side by side.

    RoBERTa's mask swallows the space before it, and its tokens bring their own; a word piece `##s` is glued on.
    """
    if swallows_space or token.startswith("##"):
        before = before.rstrip(" ")
    token = token.removeprefix("##")
    return before, token if before else token.lstrip(" ")


def _filled(before: str, token: str, after: str, swallows_space: bool) -> Text:
    """The surroundings of a mask with a candidate in its place."""
    from rich.text import Text

    before, token = fitted(before, token, swallows_space)
    left = before if len(before) <= CONTEXT else "…" + before[-CONTEXT:]
    right = after if len(after) <= CONTEXT else after[:CONTEXT] + "…"
    return Text.assemble(left, (visible(token, keep_spaces=True), "bold cyan"), right)
