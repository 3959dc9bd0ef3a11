"""Outputs of sequence-to-sequence models for many sources, in batches of similar lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .batches import batches_by_length

# special tokens in a text are ordinary text; callers report texts that are too long
PLAIN = {"split_special_tokens": True, "verbose": False}
DECODING = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}


def encode_sources(tokenizer: Any, sources: Sequence[str], limit: int | None = None) -> list[list[int]]:
    """Ids of source texts, cut to `limit` tokens with the tokenizer's end."""
    prepared = [prepared_source(tokenizer, source) for source in sources]
    options = {} if limit is None else {"truncation": True, "max_length": limit}
    return tokenizer(prepared, **PLAIN, **options)["input_ids"]


def encode_targets(tokenizer: Any, targets: Sequence[str]) -> list[list[int]]:
    """Ids of target texts, with the tokenizer's end."""
    return tokenizer(text_target=list(targets), **PLAIN)["input_ids"]


def generate_outputs(
    model: Any, tokenizer: Any, sources: Sequence[list[int]], tokens_per_batch: int = 4096, **arguments: Any
) -> Iterator[tuple[int, list[str]]]:
    """Yields the outputs of a model in evaluation mode: pairs of a source's index and its outputs, best first.

    Args:
        model: A sequence-to-sequence model of transformers.
        tokenizer: Its tokenizer.
        sources: Ids of each source.
        tokens_per_batch: Most source tokens of a batch, with padding and beams.
        arguments: Arguments of `generate`.
    """
    beams, outputs = arguments.get("num_beams") or 1, arguments.get("num_return_sequences") or 1
    for batch in batches_by_length([len(ids) for ids in sources], tokens_per_batch // max(beams, outputs)):
        inputs = tokenizer.pad({"input_ids": [sources[index] for index in batch]}, return_tensors="pt")
        with torch.inference_mode():
            ids = model.generate(
                inputs["input_ids"].to(model.device),
                attention_mask=inputs["attention_mask"].to(model.device),
                **arguments,
            )
        texts = tokenizer.batch_decode(ids, **DECODING)
        for row, index in enumerate(batch):
            yield index, texts[row * outputs : (row + 1) * outputs]


def prepared_source(tokenizer: Any, text: str) -> str:
    """A source text as the tokenizer expects it: in lower case if the tokenizer has `lowercase_source`."""
    return text.lower() if tokenizer.init_kwargs.get("lowercase_source") else text
