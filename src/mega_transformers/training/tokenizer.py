"""Tokenizers: byte-level BPEs for running text and for pairs, and one of symbols for words and phonemes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import RecipeError

PAIR_SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
SPECIAL_TOKENS = (*PAIR_SPECIAL_TOKENS, "<mask>")


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, max_length: int, add_eos: bool = True, add_prefix_space: bool = False
) -> Any:
    """A byte-level BPE trained on texts.

    The special tokens have ids 0 to 4 in the order of `SPECIAL_TOKENS`. `<mask>` takes the space before it, so that
    it stands for a word with its space, as in "The <mask> of".

    Args:
        texts: Documents.
        vocab_size: Entries at most, special tokens and the 256 bytes included.
        max_length: Tokens that the model was trained for.
        add_eos: Whether it puts `<s>` and `</s>` around a text, as a `RobertaTokenizer` does; else only `<s>` before
            it, for models that continue a text.
        add_prefix_space: Whether a word at the start of a text is the same token as after a space.

    Raises:
        RecipeError: if the texts hold too little for this many entries.
    """
    from tokenizers import AddedToken, ByteLevelBPETokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast, RobertaTokenizer

    trained = ByteLevelBPETokenizer(add_prefix_space=add_prefix_space)
    trained.train_from_iterator(
        texts, vocab_size=vocab_size, min_frequency=2, special_tokens=list(SPECIAL_TOKENS), show_progress=True
    )
    _check_size(trained.get_vocab_size(), vocab_size)
    model = json.loads(trained.to_str())["model"]
    arguments: dict[str, Any] = {
        "vocab": model["vocab"],
        "merges": [tuple(merge) for merge in model["merges"]],
        "mask_token": AddedToken("<mask>", lstrip=True, special=True),
        "model_max_length": max_length,
        "add_prefix_space": add_prefix_space,
    }
    tokenizer = RobertaTokenizer(**arguments)
    if add_eos:
        return tokenizer
    backend = tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.cls_token_id)]
    )
    # a RobertaTokenizer would put the </s> back when it is loaded
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=max_length, **tokenizer.special_tokens_map
    )


def load_tokenizer(path: Path | str) -> Any:
    """The tokenizer of a folder, or of a model on the hub.

    Raises:
        RecipeError: if there is none, or one that is not fast.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(f"no tokenizer can be loaded from {path}: {error}") from None
    # what transformers makes of a configuration alone
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise RecipeError(f"no tokenizer can be loaded from {path}: there is none beside the model")
    if not tokenizer.is_fast:
        raise RecipeError(f"the tokenizer in {path} has no tokenizer.json; save it with a fast tokenizer")
    return tokenizer


def byte_tokenizer(max_length: int, add_eos: bool = True, add_prefix_space: bool = False) -> Any:
    """As `train_tokenizer`, with one token a byte: nothing is learnt."""
    return train_tokenizer([], len(SPECIAL_TOKENS) + 256, max_length, add_eos, add_prefix_space)


def train_pair_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> Any:
    """A byte-level BPE for both sides of pairs.

    The special tokens have ids 0 to 3 in the order of `PAIR_SPECIAL_TOKENS`. A text ends with `</s>`. A word at its
    start is the same token as behind a space; what is decoded has no space at its start.

    Args:
        texts: Sources and targets.
        vocab_size: Entries at most, special tokens and the 256 bytes included.
        max_length: Tokens that the model was trained for.

    Raises:
        RecipeError: if the texts hold too little for this many entries.
    """
    from tokenizers import ByteLevelBPETokenizer, decoders

    trained = ByteLevelBPETokenizer(add_prefix_space=True)
    trained.train_from_iterator(
        texts, vocab_size=vocab_size, min_frequency=2, special_tokens=list(PAIR_SPECIAL_TOKENS), show_progress=True
    )
    _check_size(trained.get_vocab_size(), vocab_size)
    backend = trained._tokenizer
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    return _pair_tokenizer(backend, max_length)


def symbol_tokenizer(texts: Iterable[str], max_length: int) -> Any:
    """A tokenizer for pairs of words and symbols, such as "cat" and "K AE T": no part of it is learnt.

    A run of capital letters is a token, and so is any other character that is no white space; the entries are those of
    `texts`, in alphabetical order behind `PAIR_SPECIAL_TOKENS`, and others become `<unk>`. A text ends with `</s>`.
    Decoding puts spaces between tokens. The tokenizer says `lowercase_source=True` (in `init_kwargs`): a word with
    capitals is to be written small before it is given to it.

    Args:
        texts: Sources and targets.
        max_length: Tokens that the model was trained for.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    split = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("[^A-Z]"), "isolated")]
    )
    entries = {piece for text in set(texts) for piece, _ in split.pre_tokenize_str(text)}
    vocabulary = {token: index for index, token in enumerate([*PAIR_SPECIAL_TOKENS, *sorted(entries)])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = split
    return _pair_tokenizer(backend, max_length, lowercase_source=True)


def _pair_tokenizer(backend: Any, max_length: int, **fields: Any) -> Any:
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    end = backend.token_to_id("</s>")
    backend.post_processor = TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", end)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=max_length,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        **fields,
    )


def _check_size(entries: int, wanted: int) -> None:
    if entries < wanted:
        raise RecipeError(
            f"tokenizer.vocab_size={wanted}, but the train texts only give {entries} entries; lower it, or give more "
            "text"
        )
