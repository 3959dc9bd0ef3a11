"""`mega fill-mask`: what a masked language model puts in place of `<mask>`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..assets import DEFAULT_MODEL, bundled_model
from .runtime import UserError, load_libraries, print_note, spinner

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text
    from transformers import FillMaskPipeline, PreTrainedConfig, PreTrainedTokenizerBase

MASK = "<mask>"
CONTEXT = 48  # characters shown on either side of a filled mask
BAR_WIDTH = 10


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
    def limit(self) -> int | None:
        """The most tokens the model takes; None for no limit."""
        config = self.config
        if config.model_type != "mega":
            return min(self.tokenizer.model_max_length, getattr(config, "max_position_embeddings", sys.maxsize))
        if config.use_chunking or config.relative_positional_bias == "rotary":
            return None
        return config.chunk_size if config.chunk_size > 0 else config.max_positions


def fill_mask(
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT", help="Texts with one or more <mask>. '-', or none with a pipe: stdin, one per line."
        ),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="A bundled model, a folder, or an id of the Hugging Face hub.")
    ] = DEFAULT_MODEL,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Candidates per mask.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per text instead of tables.")] = False,
) -> None:
    """Fill every <mask> in TEXT and show the likeliest candidates.

    <mask> stands for the mask whatever the model's own mask token is. Each mask is filled with the other masks left
    in place, as transformers' fill-mask pipeline does.
    """
    wanted = _gather(texts or [])
    filler = load_filler(model)
    prepared = [text.replace(MASK, filler.mask_token) for text in wanted]
    check_texts(filler, prepared)
    if top_k > filler.config.vocab_size:
        raise UserError(f"--top-k {top_k}: the model's vocabulary has {filler.config.vocab_size} tokens")
    show = _print_json if as_json else _print_tables
    for index, text in enumerate(prepared):
        if index and not as_json:
            typer.echo()
        show(filler, text, _candidates(filler, text, top_k))


def _gather(arguments: list[str]) -> list[str]:
    """The texts of the command line, with stdin's lines in place of `-`."""
    if not arguments:
        if sys.stdin.isatty():
            raise typer.BadParameter(
                f'give a text, for example: mega fill-mask "The {MASK} of the United States gave a speech."',
                param_hint="TEXT",
            )
        arguments = ["-"]
    if arguments.count("-") > 1:
        raise typer.BadParameter("'-' stands for stdin and can be given once", param_hint="TEXT")
    texts: list[str] = []
    for argument in arguments:
        if argument == "-":
            lines = [line for line in map(str.strip, sys.stdin) if line]
            if not lines:
                raise UserError(f"stdin holds no text; expected one text with {MASK} per line")
            texts += lines
        else:
            texts.append(argument)
    for text in texts:
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(f"{_shortened(text)!r} is not valid UTF-8")
    return texts


def load_filler(name: str) -> Filler:
    """A bundled model, a folder's or a hub id's under transformers' fill-mask pipeline, in float32 on the CPU.

    Raises:
        UserError: if there is no such model, or it cannot fill masks.
    """
    folder = _local_folder(name)
    cached_only = folder is None and not _hub_answers(name)
    load_libraries()
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer, FillMaskPipeline

    try:
        with spinner(f"Loading {name}"):
            tokenizer = AutoTokenizer.from_pretrained(folder or name, local_files_only=cached_only)
            model, loading = AutoModelForMaskedLM.from_pretrained(
                folder or name, dtype=torch.float32, output_loading_info=True, local_files_only=cached_only
            )
    except Exception as error:  # whatever it is, the fault is in the model's files
        if cached_only:
            raise UserError(
                f"cannot load the model {name}: there is no such folder, the model hub does not answer (or "
                "HF_HUB_OFFLINE is set), and its files are not complete in the cache of earlier downloads"
            ) from error
        reason = " ".join(str(error).split())
        kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
        raise UserError(f"cannot load the model {name}: {kind}{reason}") from error
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise UserError(
            f"the model {name} has a tokenizer without vocabulary: tokenizer.json, or vocab.json and merges.txt, are "
            "missing in its folder"
        )
    if tokenizer.mask_token_id is None:
        raise UserError(f"the model {name} has a tokenizer without mask token, so it cannot fill masks")
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise UserError(
            f"the model {name} cannot fill masks: its checkpoint lacks {len(missing)} weights of a masked language "
            f"model, such as {missing[0]}"
        )
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise UserError(
            f"the model {name} and its tokenizer do not belong together: {len(tokenizer)} tokens, but embeddings for "
            f"{model.get_input_embeddings().num_embeddings}"
        )
    any_tokenizer: Any = tokenizer  # the pipeline's annotation knows one of transformers' kinds only
    pipeline = FillMaskPipeline(model=model.eval(), tokenizer=any_tokenizer, device=torch.device("cpu"))
    return Filler(model.config, tokenizer, pipeline)


def _local_folder(name: str) -> Path | None:
    """The folder that `name` says, or of the bundled model; None for what can only be a hub id."""
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"--model {name}: the folder holds no config.json, so it is no model")
        return path
    if name == DEFAULT_MODEL:
        try:
            return bundled_model(name)
        except ValueError as error:
            raise UserError(f"{error}; --model takes any folder or hub id of a masked language model") from None
    if path.exists():
        raise UserError(f"--model {name}: expected a folder with config.json, weights and tokenizer, got a file")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name.strip():
        raise UserError(f"--model {name!r}: there is no such folder")
    return None


def _hub_answers(name: str) -> bool:
    """Whether the model hub can be reached. Asks once, where loading would try again for a minute.

    Raises:
        UserError: if the hub has no such model.
    """
    from huggingface_hub import model_info
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        with spinner("Asking the model hub"):
            model_info(name, timeout=10)
    except (HFValidationError, RepositoryNotFoundError):
        raise UserError(
            f"--model {name}: there is no such folder, and the model hub has no such model, or none you may read"
        ) from None
    except Exception:  # no connection, a time-out or offline mode, in the words of whichever HTTP client
        return False
    return True


def check_texts(filler: Filler, texts: list[str]) -> None:
    """Refuses texts without mask, or longer than the model takes, before any is filled.

    Raises:
        UserError: naming the text and what would be right.
    """
    config = filler.config
    for text in texts:
        if filler.mask_token not in text:
            also = "" if filler.mask_token == MASK else f" (or the model's own {filler.mask_token})"
            raise UserError(f"no mask in {_shortened(text)!r}: write {MASK}{also} where a word is to be filled in")
        length = len(filler.tokenizer(text, verbose=False)["input_ids"])
        if filler.limit is not None and length > filler.limit:
            raise UserError(
                f"{_shortened(text)!r} has {length} tokens, but the model takes at most {filler.limit}; shorten it"
            )
        if config.model_type == "mega" and not config.use_chunking and length > config.max_positions:
            print_note(
                f"{_shortened(text)!r} has {length} tokens, more than the max_positions={config.max_positions} the "
                "model is made for; its rotary positions go on beyond, but the answers may be worse"
            )


def _candidates(filler: Filler, text: str, top_k: int) -> list[list[dict[str, Any]]]:
    """Per mask of `text`, in their order, its candidates as the pipeline gives them."""
    result: Any = filler.pipeline(text, top_k=top_k)
    return [result] if isinstance(result[0], dict) else result


def _print_json(filler: Filler, text: str, masks: list[list[dict[str, Any]]]) -> None:
    import json

    typer.echo(json.dumps({"text": text, "masks": masks}, ensure_ascii=False))


def _print_tables(filler: Filler, text: str, masks: list[list[dict[str, Any]]]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    for table in _tables(filler, text, masks):
        console.print(table)


def _tables(filler: Filler, text: str, masks: list[list[dict[str, Any]]]) -> Iterator[Table]:
    from rich import box
    from rich.bar import Bar
    from rich.table import Column, Table
    from rich.text import Text

    tokenizer = filler.tokenizer
    swallows_space = tokenizer.added_tokens_decoder[tokenizer.mask_token_id].lstrip
    parts = text.split(filler.mask_token)
    for index, candidates in enumerate(masks):
        title = f"mask {index + 1} of {len(masks)}" if len(masks) > 1 else None
        table = Table(
            Column("#", justify="right"),
            Column("token", no_wrap=True),
            Column("probability", justify="right", no_wrap=True),
            Column("", width=BAR_WIDTH, no_wrap=True),
            Column("text", overflow="fold"),
            title=title,
            title_justify="left",
            box=box.SIMPLE_HEAD,
        )
        before, after = MASK.join(parts[: index + 1]), MASK.join(parts[index + 1 :])
        for rank, candidate in enumerate(candidates, start=1):
            token, score = candidate["token_str"], candidate["score"]
            table.add_row(
                str(rank),
                Text(_visible(token), style="bold"),
                f"{score:.1%}",
                Bar(size=candidates[0]["score"], begin=0, end=score, width=BAR_WIDTH, color="cyan"),
                _filled(before, token, after, swallows_space),
            )
        yield table


def _filled(before: str, token: str, after: str, swallows_space: bool) -> Text:
    """The surroundings of a mask with a candidate in its place.

    RoBERTa's mask swallows the space before it, and its tokens bring their own; a word piece `##s` is glued on.
    """
    from rich.text import Text

    if swallows_space or token.startswith("##"):
        before = before.rstrip(" ")
    token = token.removeprefix("##")
    if not before:
        token = token.lstrip(" ")
    left = before if len(before) <= CONTEXT else "…" + before[-CONTEXT:]
    right = after if len(after) <= CONTEXT else after[:CONTEXT] + "…"
    return Text.assemble(left, (_visible(token, keep_spaces=True), "bold cyan"), right)


def _visible(token: str, keep_spaces: bool = False) -> str:
    """A token as it can stand in a table: control characters escaped, blanks alone quoted."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in token)
    if keep_spaces:
        return shown
    return shown.strip() or repr(shown)


def _shortened(text: str) -> str:
    return text if len(text) <= 2 * CONTEXT else text[: 2 * CONTEXT] + "…"
