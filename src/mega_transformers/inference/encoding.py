"""Models with their tokenizers, and batches of ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.nn.utils.rnn import pad_sequence

from ..evaluation.decoding import PLAIN
from ..evaluation.streaming import text_limit
from ..evaluation.texts import CHARACTERS_PER_BATCH

MASK = "attention_mask"
Parts: TypeAlias = tuple[Any, ...]
"""A text as (text,), or a pair of texts as (first, second); a text can be a list of words."""


@dataclass
class TextModel:
    """A model that reads texts: base class of `TokenEncoder`, `Classifier` and `Tagger`.

    Args:
        model: A model of transformers in evaluation mode.
        tokenizer: Its tokenizer.
        cut: Number of tokens to cut texts to; None for whole texts.
    """

    model: Any
    tokenizer: Any
    cut: int | None = None

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.model.config

    @property
    def capacity(self) -> int | None:
        """Most tokens that the model takes; None for any number."""
        return text_limit(self.config, self.tokenizer)

    @property
    def limit(self) -> int | None:
        """Most tokens of a text that is not cut; None for any number."""
        return self.capacity

    @property
    def max_rows(self) -> int | None:
        """The most texts of a batch, or None."""
        return None

    def count(self, texts: Sequence[Parts]) -> list[int]:
        """Number of tokens of each text or pair before it is cut, with special tokens.

        Args:
            texts: The texts.
        """
        return token_counts(self.tokenizer, texts)

    def encoded(self, texts: Sequence[Parts], **options: Any) -> tuple[Any, dict[str, torch.Tensor]]:
        """The output of the tokenizer for texts, and the same as tensors (B, L) with a mask.

        Args:
            texts: B texts or pairs.
            options: For the tokenizer.
        """
        encoded = encode(self.tokenizer, texts, self.cut, **options)
        padding = self.tokenizer.pad_token_id
        return encoded, padded(encoded, 0 if padding is None else padding, self.model.device)


def token_counts(tokenizer: Any, texts: Sequence[Parts], **options: Any) -> list[int]:
    """The number of tokens of each text or pair of texts, with special tokens.

    Args:
        tokenizer: The tokenizer.
        texts: The texts.
        options: Options of the tokenizer.
    """
    counts: list[int] = []
    batch: list[Parts] = []
    size = 0
    for number, text in enumerate(texts, start=1):
        batch.append(text)
        size += sum(map(len, text))
        if size >= CHARACTERS_PER_BATCH or number == len(texts):
            counts += map(len, encode(tokenizer, batch, **options)["input_ids"])
            batch, size = [], 0
    return counts


def encode(tokenizer: Any, texts: Sequence[Parts], limit: int | None = None, **options: Any) -> Any:
    """The tokenizer's output for texts or pairs of texts, cut to `limit` tokens.

    Special tokens in a text, such as "<s>", are read as ordinary text.
    """
    if limit is not None:
        options |= {"truncation": True, "max_length": limit}
    return tokenizer(*map(list, zip(*texts)), **PLAIN, **options)


def padded(encoded: Any, padding: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Tensors (B, L) of rows of unequal lengths, padded on the right.

    Args:
        encoded: Name of a field -> its rows; includes `input_ids`.
        padding: The id of padding.
        device: The device of the tensors.
    """
    fields = {name: rows for name, rows in encoded.items() if name in ("input_ids", "token_type_ids")}
    fields[MASK] = [[1] * len(row) for row in fields["input_ids"]]
    return {
        name: pad_sequence(
            [torch.tensor(row) for row in rows], batch_first=True, padding_value=padding if name == "input_ids" else 0
        ).to(device)
        for name, rows in fields.items()
    }
