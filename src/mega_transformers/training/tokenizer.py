"""Tokenizers: byte-level BPEs for running text and for pairs, and one of symbols for words and phonemes.

`max_length` is the number of tokens that the model is trained for. A RecipeError reports tokenizers that cannot be
trained or loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    ByteLevelBPETokenizer,
    Regex,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast, RobertaTokenizer

from ..assets import model_path
from ..errors import RecipeError

PAIR_SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
SPECIAL_TOKENS = (*PAIR_SPECIAL_TOKENS, "<mask>")


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, max_length: int, add_eos: bool = True, add_prefix_space: bool = False
) -> Any:
    """A byte-level BPE trained on texts, of exactly `vocab_size` entries.

    The special tokens have ids 0 to 4 in the order of `SPECIAL_TOKENS`. `<mask>` includes the space before it, so that
    it replaces a word with its space, as in "The <mask> of".

    Args:
        texts: Documents.
        vocab_size: Entries, including special tokens and the 256 bytes.
        max_length: Tokens of the model's texts.
        add_eos: Whether to put `<s>` and `</s>` around a text, like a `RobertaTokenizer`; otherwise only `<s>` before
            it, for models that continue a text.
        add_prefix_space: Whether a word at the start of a text is the same token as after a space.
    """
    trained = _trained(texts, vocab_size, SPECIAL_TOKENS, add_prefix_space)
    model = json.loads(trained.to_str())["model"]
    fields: dict[str, Any] = {
        "vocab": model["vocab"],
        "merges": [tuple(merge) for merge in model["merges"]],
        "mask_token": AddedToken("<mask>", lstrip=True, special=True),
    }
    tokenizer = RobertaTokenizer(**fields, model_max_length=max_length, add_prefix_space=add_prefix_space)
    if add_eos:
        return tokenizer
    backend = tokenizer.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.cls_token_id)]
    )
    # a RobertaTokenizer would add the </s> again when it is loaded
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=max_length, **tokenizer.special_tokens_map
    )


def byte_tokenizer(max_length: int, add_eos: bool = True, add_prefix_space: bool = False) -> Any:
    """As `train_tokenizer`, with one token per byte and no training."""
    return train_tokenizer([], len(SPECIAL_TOKENS) + 256, max_length, add_eos, add_prefix_space)


def _trained(texts: Iterable[str], vocab_size: int, special: tuple[str, ...], add_prefix_space: bool) -> Tokenizer:
    trained = ByteLevelBPETokenizer(add_prefix_space=add_prefix_space)
    trained.train_from_iterator(texts, vocab_size, 2, show_progress=True, special_tokens=list(special))
    if trained.get_vocab_size() < vocab_size:
        raise RecipeError(
            f"tokenizer.vocab_size={vocab_size}, but the train texts give only {trained.get_vocab_size()} entries; "
            "lower it, or give more text"
        )
    return trained._tokenizer


def load_tokenizer(path: Path | str) -> Any:
    """The fast tokenizer of a folder, of a bundled model, or of a model on the hub."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_path(str(path)))
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(f"no tokenizer can be loaded from {path}: {error}") from None
    # transformers made a tokenizer from a configuration alone
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise RecipeError(f"no tokenizer can be loaded from {path}: the model's folder has no tokenizer")
    if not tokenizer.is_fast:
        raise RecipeError(f"the tokenizer in {path} has no tokenizer.json; save it with a fast tokenizer")
    return tokenizer


def put_space_before_words(tokenizer: Any) -> None:
    """Gives words that are tokenised one by one the same tokens as after a space in a text."""
    words = tokenizer.backend_tokenizer.pre_tokenizer
    if hasattr(words, "add_prefix_space"):
        words.add_prefix_space = True
        # both settings are saved
        tokenizer.add_prefix_space = tokenizer.init_kwargs["add_prefix_space"] = True


def train_pair_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> Any:
    """A byte-level BPE for sources and targets, of exactly `vocab_size` entries.

    The special tokens have ids 0 to 3 in the order of `PAIR_SPECIAL_TOKENS`. A text ends with `</s>`. A word at its
    start is the same token as after a space; decoded text does not start with a space.
    """
    backend = _trained(texts, vocab_size, PAIR_SPECIAL_TOKENS, add_prefix_space=True)
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    return eos_tokenizer(backend, max_length)


def symbol_tokenizer(texts: Iterable[str], max_length: int) -> Any:
    """A tokenizer for pairs of words and symbols, such as "cat" and "K AE T", without training.

    A run of capital letters is a token, and so is any other character except white space. The entries are
    `PAIR_SPECIAL_TOKENS`, then those of `texts` in alphabetical order; others become `<unk>`. A text ends with `</s>`.
    Decoding puts spaces between tokens. The tokenizer says `lowercase_source=True` (in `init_kwargs`): convert words
    to lower case before you pass them to it.
    """
    single = pre_tokenizers.Split(Regex("[^A-Z]"), "isolated")
    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), single])
    entries = {piece for text in set(texts) for piece, _ in split.pre_tokenize_str(text)}
    vocabulary = {token: index for index, token in enumerate([*PAIR_SPECIAL_TOKENS, *sorted(entries)])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = split
    return eos_tokenizer(backend, max_length, lowercase_source=True)


def eos_tokenizer(backend: Tokenizer, max_length: int, **fields: Any) -> Any:
    """A fast tokenizer of `backend`, which has `PAIR_SPECIAL_TOKENS`; every text ends with `</s>`."""
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", backend.token_to_id("</s>"))]
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
