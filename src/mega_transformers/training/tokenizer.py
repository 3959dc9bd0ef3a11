"""Training of a byte-level BPE with RoBERTa's special tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .schema import RecipeError

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int, closed: bool = True) -> Any:
    """A byte-level BPE trained on texts.

    The special tokens have ids 0 to 4 in the order of `SPECIAL_TOKENS`. `<mask>` takes the space before it, so that
    it stands for a word with its space, as in "The <mask> of".

    Args:
        texts: Documents.
        vocab_size: Entries at most, special tokens and the 256 bytes included.
        max_length: Tokens that the model was trained for.
        closed: Whether it puts `<s>` and `</s>` around a text, as a `RobertaTokenizer` does; else only `<s>` before
            it, for models that go on where a text ends.

    Raises:
        RecipeError: if the texts hold too little for this many entries.
    """
    from tokenizers import AddedToken, ByteLevelBPETokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast, RobertaTokenizer

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        texts, vocab_size=vocab_size, min_frequency=2, special_tokens=list(SPECIAL_TOKENS), show_progress=True
    )
    if trained.get_vocab_size() < vocab_size:
        raise RecipeError(
            f"tokenizer.vocab_size={vocab_size}, but the train texts only give {trained.get_vocab_size()} entries; "
            "lower it, or give more text"
        )
    model = json.loads(trained.to_str())["model"]
    arguments: dict[str, Any] = {
        "vocab": model["vocab"],
        "merges": [tuple(merge) for merge in model["merges"]],
        "mask_token": AddedToken("<mask>", lstrip=True, special=True),
        "model_max_length": max_length,
    }
    tokenizer = RobertaTokenizer(**arguments)
    if closed:
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
        RecipeError: if there is none, or one without a mask token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(f"no tokenizer can be loaded from {path}: {error}") from None
    if not tokenizer.is_fast:
        raise RecipeError(f"the tokenizer in {path} has no tokenizer.json; save it with a fast tokenizer")
    return tokenizer


def encode_documents(tokenizer: Any, documents: list[str]) -> list[list[int]]:
    """Ids of each document, without special tokens; text that looks like one is plain text."""
    backend = tokenizer.backend_tokenizer
    before = backend.encode_special_tokens
    backend.encode_special_tokens = True
    try:
        return [encoding.ids for encoding in backend.encode_batch_fast(documents, add_special_tokens=False)]
    finally:
        backend.encode_special_tokens = before
