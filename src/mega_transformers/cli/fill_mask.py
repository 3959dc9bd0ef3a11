"""`mega fill-mask`: the candidates of a masked language model for `<mask>`."""

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
EXAMPLE = f'mega fill-mask "The film received mixed {MASK} from critics."'
CONTEXT = 48  # characters shown on each side of a filled mask
NARROW = 72  # narrower tables leave out the text


@dataclass(frozen=True)
class Filler:
    """A loaded masked language model."""

    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    pipeline: FillMaskPipeline

    @property
    def mask_token(self) -> str:
        """The model's mask token."""
        return str(self.tokenizer.mask_token)

    @property
    def swallows_space(self) -> bool:
        """Whether a mask also replaces the space before it, as RoBERTa's does."""
        return bool(self.tokenizer.added_tokens_decoder[self.tokenizer.mask_token_id].lstrip)

    @property
    def limit(self) -> int | None:
        """The most tokens the model takes, or None."""
        from ..evaluation.streaming import text_limit

        return text_limit(self.config, self.tokenizer)


def fill_mask(
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT", help="Texts with one or more <mask>. '-' or no TEXT reads stdin, one text per line."
        ),
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Number of candidates per mask.")] = 5,
    device: DeviceOption = AUTO,
    dtype: DTypeOption = AUTO,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per text instead of tables.")] = False,
) -> None:
    """Fill every <mask> in TEXT and show the most likely candidates.

    Write <mask> even if the model's own mask token is another. Each mask is filled while the other masks stay in
    place, as in transformers' fill-mask pipeline.
    """
    check_names(device, dtype)
    wanted = gather_texts(texts or [], metavar="TEXT", example=EXAMPLE, kind=f"text with {MASK}")
    if model in BUNDLED_MODELS:
        check_masks(wanted)  # the mask token of other models is not known yet
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
    """Loads a bundled model, a folder or a hub id into transformers' fill-mask pipeline.

    Args:
        name: The model.
        device, dtype: The values of `--device` and `--dtype`.

    Raises:
        UserError: if there is no such model, device or number format, or the model cannot fill masks.
    """
    place = locate(name)
    load_libraries()
    placement = resolve_placement(device, dtype)
    from transformers import FillMaskPipeline

    model, tokenizer = load(place, kind_of(place, MASKED), placement)
    if tokenizer.mask_token_id is None:
        raise UserError(f"the model {name} cannot fill masks: its tokenizer has no mask token")
    pipeline = FillMaskPipeline(model=model, tokenizer=tokenizer, device=placement.device)
    return Filler(model.config, tokenizer, pipeline)


def check_masks(texts: list[str], mask_token: str = MASK) -> None:
    """Refuses texts without a mask.

    Args:
        texts: The texts.
        mask_token: The model's own mask token.

    Raises:
        UserError: names the text.
    """
    for text in texts:
        if mask_token not in text:
            also = "" if mask_token == MASK else f" (or the model's own {mask_token})"
            raise UserError(f"no mask in {shortened(text)!r}: write {MASK}{also} in place of a word")


def check_texts(filler: Filler, texts: list[str]) -> None:
    """Refuses texts without a mask, and texts longer than the model takes, before it fills any.

    Raises:
        UserError: names the text and what would be right.
    """
    check_masks(texts, filler.mask_token)
    with spinner("Tokenising"):
        lengths = [len(ids) for ids in filler.tokenizer(texts, verbose=False)["input_ids"]]
    names = [repr(shortened(text)) for text in texts]
    check_lengths(names, lengths, filler.limit, "shorten it")
    note_long_texts(names, lengths, filler.config)


def candidates_of(filler: Filler, text: str, top_k: int) -> list[list[dict[str, Any]]]:
    """The pipeline's candidates for each mask of `text`, in order."""
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
    """The text before a mask and a candidate, joined correctly.

    RoBERTa's mask replaces the space before it, and its tokens bring their own; a word piece such as `##s` is joined.
    """
    if swallows_space or token.startswith("##"):
        before = before.rstrip(" ")
    token = token.removeprefix("##")
    return before, token if before else token.lstrip(" ")


def _filled(before: str, token: str, after: str, swallows_space: bool) -> Text:
    """The context of a mask, with a candidate in its place."""
    from rich.text import Text

    before, token = fitted(before, token, swallows_space)
    left = before if len(before) <= CONTEXT else "…" + before[-CONTEXT:]
    right = after if len(after) <= CONTEXT else after[:CONTEXT] + "…"
    return Text.assemble(left, (visible(token, keep_spaces=True), "bold cyan"), right)
