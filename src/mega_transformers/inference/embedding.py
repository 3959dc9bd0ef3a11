"""A vector for each text of any length: the pooled vectors of its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import DynamicCache

from ..evaluation.batches import Advance
from ..evaluation.streaming import is_causal
from ..long_inputs import can_encode, encode
from ..models.mega.compat_mega import cache_argument
from ..models.mega.modeling_mega import last_real_token
from ..models.mega.modeling_mega_classification import first_real_token, mean_of_real_tokens
from .encoding import MASK, Parts, TextModel, token_counts

POOLINGS = ("mean", "first", "last", "max")
PIECE = 4096  # tokens of a long text to read or pool at a time


def pool(hidden_states: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Pools the vectors of tokens: one vector for each row, (B, d), float32.

    Args:
        hidden_states: (B, L, d).
        mask: (B, L), 1 at tokens and 0 at padding.
        pooling: `"mean"` of all tokens, the `"first"` or `"last"` token, or the `"max"` of each feature.
    """
    hidden_states = hidden_states.float()
    if pooling == "max":
        return hidden_states.masked_fill(mask.unsqueeze(-1) == 0, -torch.inf).amax(dim=1)
    of = {"mean": mean_of_real_tokens, "first": first_real_token, "last": last_real_token}
    return of[pooling](hidden_states, mask)


@dataclass
class TokenEncoder(TextModel):
    """A model without a head (the encoder of an encoder-decoder) that turns texts into vectors, by pooling its tokens.

    Args:
        model, tokenizer, cut: See `TextModel`.
        pooling: `"mean"`, `"first"`, `"last"` or `"max"`. None means the last token in a causal model, the only one
            that has seen all others, and the mean in any other model.
    """

    pooling: str | None = None

    def __post_init__(self) -> None:
        config = self.model.config
        if config.model_type == "mega":
            self.causal = config.is_decoder and not config.bidirectional
        else:
            self.causal = is_causal(self.model)
        self.pooling = self.pooling or ("last" if self.causal else "mean")

    @torch.inference_mode()
    def vectors(self, texts: Sequence[Parts], advance: Advance = lambda tokens: None) -> np.ndarray:
        """Vectors of texts: (n, d), float32. A single long text is read in pieces that the EMA's states connect.

        Args:
            texts: n texts.
            advance: Called with the number of tokens read.
        """
        _, batch = self.encoded(texts)
        if len(texts) == 1 and batch[MASK].shape[1] > PIECE and (self.causal or can_encode(self.model)):
            read = self._read_on if self.causal else self._read_both_ways
            return self._pooled(read(batch["input_ids"], advance)).cpu().numpy()
        vectors = pool(self.model(**batch)[0], batch[MASK], str(self.pooling))
        advance(int(batch[MASK].sum()))
        return vectors.cpu().numpy()

    def _read_on(self, ids: torch.Tensor, advance: Advance) -> Iterator[torch.Tensor]:
        """The hidden states of one row of ids (1, L), piece by piece; each piece sees the earlier ones."""
        cache = {cache_argument(self.model): DynamicCache(config=self.model.config), "use_cache": True}
        for piece in ids.split(PIECE, dim=1):
            yield self.model(input_ids=piece, **cache)[0]
            advance(piece.shape[1])

    def _read_both_ways(self, ids: torch.Tensor, advance: Advance) -> Iterator[torch.Tensor]:
        """The same for a bidirectional model: one layer after the other reads all pieces."""
        layers, left = self.model.config.num_hidden_layers, 0

        def watch(tokens: int) -> None:
            nonlocal left
            done, left = divmod(left + tokens, layers)
            advance(done)

        yield from encode(self.model, ids, progress=watch).split(PIECE, dim=1)

    def _pooled(self, pieces: Iterator[torch.Tensor]) -> torch.Tensor:
        """The pooled vector (1, d) of a row, from the hidden states (1, n, d) of its pieces."""
        vectors, sizes = [], []
        for hidden_states in pieces:
            mask = torch.ones(hidden_states.shape[:2], dtype=torch.int64, device=hidden_states.device)
            vectors.append(pool(hidden_states, mask, str(self.pooling)))
            sizes.append(hidden_states.shape[1])
        if self.pooling in ("first", "last"):
            return vectors[0 if self.pooling == "first" else -1]
        every = torch.stack(vectors)
        if self.pooling == "max":
            return every.amax(dim=0)
        return (every * torch.tensor(sizes, device=every.device).view(-1, 1, 1)).sum(dim=0) / sum(sizes)


class SentenceEncoder(TextModel):
    """A `SentenceTransformer`, which pools tokens in its own way.

    Args:
        model: The `SentenceTransformer`.
        cut: Number of tokens to cut texts to; None for whole texts.
    """

    pooling = "sentence-transformers"

    def __init__(self, model: Any, cut: int | None = None) -> None:
        super().__init__(model, model.tokenizer, cut)
        self._limit = model.max_seq_length
        if cut is not None:
            model.max_seq_length = cut

    @property
    def config(self) -> Any:
        """Configuration of its transformers model."""
        return self.model[0].auto_model.config

    @property
    def limit(self) -> int | None:
        """Most tokens of a text that is not cut."""
        return self._limit

    def count(self, texts: Sequence[Parts]) -> list[int]:
        """Number of tokens of each text before it is cut, with special tokens and those of the model's prompt.

        Args:
            texts: The texts.
        """
        prompt = self.model.prompts.get(self.model.default_prompt_name) or ""
        return token_counts(self.tokenizer, [(prompt + text,) for (text,) in texts])

    def vectors(self, texts: Sequence[Parts], advance: Advance = lambda tokens: None) -> np.ndarray:
        """Vectors of texts: (n, d), float32.

        Args:
            texts: n texts.
            advance: Called with the number of tokens read.
        """
        vectors = self.model.encode([text for (text,) in texts], batch_size=len(texts), show_progress_bar=False)
        advance(sum(self.count(texts)))
        return np.asarray(vectors, dtype=np.float32)


def normalized(vectors: np.ndarray) -> np.ndarray:
    """Scales vectors (n, d) to length 1. A vector of zeros stays as it is.

    Args:
        vectors: (n, d).
    """
    return F.normalize(torch.from_numpy(vectors), dim=1).numpy()
