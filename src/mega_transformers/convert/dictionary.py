"""fairseq's dictionaries, as tokenizers that give the same ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import ConversionError

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
"""Ids 0 to 3; those of a dictionary's lines follow."""

WHITESPACE = r"[\s\x{1c}-\x{1f}\x{85}]+"
"""What Python, hence fairseq, takes for white space."""


def read_dictionary(path: Path) -> list[str]:
    """The words of a dict.txt, by id.

    Raises:
        ConversionError: for a file that is none.
    """
    if not path.is_file():
        raise ConversionError(f"there is no dictionary {path}")
    try:
        lines = path.read_bytes().decode("utf-8").rstrip("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ConversionError(f"{path} is no UTF-8, as a dictionary of fairseq is: {error.reason}") from error
    words = list(SPECIAL)
    known = set(words)
    for number, line in enumerate(lines, 1):
        word, _, count = line.rstrip("\r").rpartition(" ")
        if not word or not count.isdigit():
            raise ConversionError(
                f"{path}, line {number}: expected a word and its count, as in 'ship 12', got {line[:40]!r}"
            )
        if word in known:
            raise ConversionError(f"{path}, line {number}: {word!r} is there a second time; its id would be ambiguous")
        known.add(word)
        words.append(word)
    return words


def make_tokenizer(words: list[str], start: str, first: str | None, closed: bool, max_length: int | None) -> Any:
    """A tokenizer that cuts at white space and looks words up, as fairseq does with text that is cut into its units.

    Args:
        words: By id.
        start: The token with which a text begins, <s> or </s>.
        first: What is put before a text, or None.
        closed: Whether </s> is put behind a text.
        max_length: Tokens that the model takes, or None for any number.
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
        # a text's "<s>" is a word like others, as for fairseq
        split_special_tokens=True,
        **arguments,
    )
