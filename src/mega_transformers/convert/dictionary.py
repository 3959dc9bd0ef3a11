"""Makes tokenizers from fairseq's dictionaries, with the same ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import ConversionError

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
"""Ids 0 to 3; the lines of a dictionary follow."""

WHITESPACE = r"[\s\x{1c}-\x{1f}\x{85}]+"
"""White space as Python, and so fairseq, defines it."""


def read_dictionary(path: Path) -> list[str]:
    """The entries of a dict.txt, by id.

    Raises:
        ConversionError: for a file that is not a dictionary.
    """
    if not path.is_file():
        raise ConversionError(f"there is no dictionary {path}")
    try:
        lines = path.read_bytes().decode("utf-8").rstrip("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ConversionError(
            f"{path} is not valid UTF-8, so it is not a dictionary of fairseq: {error.reason}"
        ) from error
    words = list(SPECIAL)
    known = set(words)
    for number, line in enumerate(lines, 1):
        word, _, count = line.rstrip("\r").rpartition(" ")
        if not word or not count.isdigit():
            raise ConversionError(
                f"{path}, line {number}: expected a word and its count, as in 'ship 12', got {line[:40]!r}"
            )
        if word in known:
            raise ConversionError(f"{path}, line {number}: {word!r} occurs twice; its id would be ambiguous")
        known.add(word)
        words.append(word)
    return words


def make_tokenizer(words: list[str], start: str, first: str | None, closed: bool, max_length: int | None) -> Any:
    """A tokenizer that splits at white space and looks up the parts, as fairseq does with tokenised text.

    Args:
        words: The entries, by id.
        start: The token that begins a text, <s> or </s>.
        first: A token to put before a text, or None.
        closed: Whether to put </s> after a text.
        max_length: Most tokens that the model takes, or None.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WHITESPACE), behavior="removed")
    before = [] if first is None else [first]
    after = ["</s>"] if closed else []
    if before or after:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            pair=[*before, "$A", *after, "$B", *after],
            special_tokens=[(token, ids[token]) for token in (*before, *after)],
        )
    arguments: dict[str, Any] = {"model_max_length": max_length} if max_length else {}
    if "<mask>" in ids:
        arguments["mask_token"] = "<mask>"
    if first is not None and first != start:
        arguments["cls_token"] = first
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=start,
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        # "<s>" in a text is an ordinary word, as in fairseq
        split_special_tokens=True,
        **arguments,
    )
