"""Cross entropy of texts of any length under a causal language model, read piece by piece."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import DynamicCache

from ..errors import RecipeError
from ..models.mega.compat_mega import cache_argument
from ..models.mega.validation_mega import positions_limit
from .progress import LateBar
from .reading import Reading
from .texts import TextSize, documents_of, encoded_batches


@dataclass(frozen=True)
class TextScore:
    """Cross entropy of a text. Scores of several texts can be added.

    Args:
        size: Characters, words and documents of the text.
        nats: Cross entropy of all scored tokens, in nats.
        tokens: Number of scored tokens.
        seconds: Time that it took.
    """

    size: TextSize
    nats: float
    tokens: int
    seconds: float

    def __add__(self, other: TextScore) -> TextScore:
        return TextScore(
            self.size + other.size,
            self.nats + other.nats,
            self.tokens + other.tokens,
            self.seconds + other.seconds,
        )

    def summary(self) -> dict[str, float]:
        """Perplexity per token and word, bits per character, seconds and tokens per second."""
        speed = self.tokens / max(self.seconds, 1e-9)
        return {
            **self.size.scores(self.nats, self.tokens),
            "seconds": self.seconds,
            "tokens_per_second": speed,
        }


def read_tokens(text: str, tokenizer: Any, clean: list[str], documents: str) -> tuple[np.ndarray, TextSize]:
    """Turns a text into one row of ids (tokens,), and measures its size.

    A tokenizer with different tokens for start and end of a document puts them around every document. If it has one
    token for both, or only one for the end, that token goes before the first document and after every document.

    Args:
        text: The text.
        tokenizer: A fast tokenizer.
        clean: Names of cleaners, such as `wikitext`, to apply in this order.
        documents: How the text is split: `whole`, `lines`, `paragraphs`, `sections` or `articles`.

    Raises:
        RecipeError: for a text without documents.
    """
    pieces = documents_of(text, clean, documents)
    if not pieces:
        raise RecipeError(f"the text holds no document{', cleaned with ' if clean else ''}{', '.join(clean)}")
    size = TextSize()
    size.add(text, pieces)
    start = tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    before, after = ([] if start in (None, end) else [start]), ([] if end is None else [end])
    # without a start token, a document follows the end token of the one before
    lines = [[] if before else after]
    for batch in encoded_batches(pieces, tokenizer):
        lines.append([token for ids in batch for token in (*before, *ids, *after)])
    return np.concatenate([np.array(line, dtype=np.int32) for line in lines]), size


def score_text(
    model: Any, tokens: np.ndarray, size: TextSize, reading: Reading, description: str = "Reading"
) -> TextScore:
    """Scores a whole text, and measures the time.

    Args:
        model, reading, description: As in `score_tokens`.
        tokens: (tokens,) ids, as `read_tokens` returns them.
        size: Size of the text, as `read_tokens` returns it.

    Raises:
        RecipeError: as `score_tokens`.
    """
    began = time.perf_counter()
    nats = score_tokens(model, tokens, reading, description)
    return TextScore(size, nats, len(tokens) - 1, time.perf_counter() - began)


def score_tokens(model: Any, tokens: np.ndarray, reading: Reading, description: str = "Reading") -> float:
    """Sum of the cross entropies of all tokens but the first, in nats. Each is predicted once, from tokens before it.

    Args:
        model: A causal language model of transformers.
        tokens: (tokens,) ids, at least two.
        reading: How they are cut into inputs.
        description: Label of the progress bar, which appears on stderr if this takes longer than two seconds.

    Raises:
        RecipeError: for fewer than two tokens, for longer inputs than the model takes, and in mode full for a model
        without a cache.
    """
    length = len(tokens) - 1
    with LateBar(description, max(length, 1)) as bar:
        total = 0.0
        for new, nats in score_pieces(model, tokens, reading):
            total += nats
            bar.advance(new)
    return total


def score_pieces(model: Any, tokens: np.ndarray, reading: Reading) -> Iterator[tuple[int, float]]:
    """Yields, for each input, the number of tokens that it predicts and their total nats.

    Raises:
        RecipeError: as `score_tokens`.
    """
    length = len(tokens) - 1
    if length < 1:
        raise RecipeError(f"{len(tokens)} tokens leave nothing to predict; give a longer text")
    _check_limit(model.config, length, reading)
    arguments: dict[str, Any] = {"use_cache": False}
    if reading.mode == "full":
        arguments = {"use_cache": True, _cache_argument(model): DynamicCache(config=model.config)}
    few_logits = model._supports_logits_to_keep()
    was_training = model.training
    model.eval()
    try:
        for begin, new, end in reading.spans(length):
            ids = torch.from_numpy(tokens[begin : end + 1].astype(np.int64)).to(model.device)
            if few_logits:
                arguments["logits_to_keep"] = end - new
            with torch.inference_mode():  # not around the loop, which would include the consumer of the pieces
                logits = model(input_ids=ids[:-1].unsqueeze(0), **arguments).logits[0, new - end :].float()
                nats = F.cross_entropy(logits, ids[new - end :], reduction="sum").item()
            yield end - new, nats
    finally:
        model.train(was_training)


def input_limit(config: Any) -> int | None:
    """The most tokens a model takes at once, cache included, or None."""
    if config.model_type != "mega":
        return getattr(config, "max_position_embeddings", None)
    return positions_limit(config)


def text_limit(config: Any, tokenizer: Any) -> int | None:
    """The most tokens of a text that a model takes at once, or None.

    For models that count positions from an offset, such as RoBERTa, only the tokenizer knows the limit.
    """
    limit = input_limit(config)
    if config.model_type == "mega":
        return limit
    return min(tokenizer.model_max_length, limit or sys.maxsize)


def _check_limit(config: Any, length: int, reading: Reading) -> None:
    limit = input_limit(config)
    if limit is None:
        return
    if reading.mode == "full" and length > limit:
        raise RecipeError(
            f"the text has {length:,} tokens, but the model takes at most {limit:,} at once; use mode "
            f"sliding or chunk with a window of at most {limit:,}"
        )
    if reading.mode != "full" and min(reading.window, length) > limit:
        raise RecipeError(f"window={reading.window} is above the {limit:,} tokens that the model takes; lower it")


def _cache_argument(model: Any) -> str:
    try:
        return cache_argument(model)
    except ValueError as error:
        raise RecipeError(f"{error}, so it cannot carry a state; use mode sliding or chunk") from None


def is_causal(model: Any) -> bool:
    """Whether a model's first outputs stay the same when a later token changes."""
    first, second = (torch.tensor([[0, 1, last]], device=model.device) for last in (0, 1))
    with torch.inference_mode():
        before, after = (model(input_ids=ids, use_cache=False)[0][:, :2] for ids in (first, second))
    tolerance = max(1e-3, 16 * torch.finfo(before.dtype).eps)  # rounding may depend on later tokens
    return torch.allclose(before, after, rtol=tolerance, atol=tolerance)


def check_causal(model: Any) -> None:
    """Refuses a model whose predictions depend on later tokens.

    Raises:
        RecipeError: for such a model.
    """
    if not is_causal(model):
        raise RecipeError(
            f"{type(model).__name__} sees the tokens that it predicts: its predictions change with later tokens; "
            "give a causal language model"
        )
