"""What counting alone reaches on masked tokens: a unigram and a bigram model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass
class Score:
    """Sums over predicted tokens: cross entropy in nats, right first guesses, and their number."""

    nats: float = 0.0
    right: int = 0
    count: int = 0

    def add(self, nats: float, right: int, count: int) -> None:
        """Adds a batch's sums."""
        self.nats += nats
        self.right += right
        self.count += count

    def summary(self) -> dict[str, float]:
        """Mean cross entropy, its exponential, accuracy, and the number of tokens."""
        mean = self.nats / self.count
        return {
            "cross_entropy": mean,
            "perplexity": float(np.exp(mean)),
            "accuracy": self.right / self.count,
            "tokens": self.count,
        }


class NgramBaselines:
    r"""Unigram and bigram models of tokens, from counts.

    With \(c\) the counts in the training tokens, \(V\) the number of ordinary (not special) tokens, \(N\) of their
    occurrences and \(T(l)\) of the different ordinary tokens seen right of \(l\):

        p(w)     = (c(w) + 1) / (N + V)
        p(w | l) = (c(l, w) + T(l) p(w)) / (c(l) + T(l))

    The bigram model is Witten and Bell's (1991, method C), interpolated. It reads what stands to the left of a masked
    token in the model's input; where that is masked too, it is the unigram model. The first guess is the most likely
    token. Special tokens are never predicted, but are seen on the left.

    Args:
        vocab_size: Ids are below it.
        special_ids: Ids that are never predicted.
    """

    def __init__(self, vocab_size: int, special_ids: Iterable[int]) -> None:
        self.vocab_size = vocab_size
        self.ordinary = np.ones(vocab_size, dtype=bool)
        self.ordinary[list(special_ids)] = False

    def fit(self, tokens: np.ndarray) -> NgramBaselines:
        """Counts a line of training tokens (tokens,)."""
        size = self.vocab_size
        tokens = np.asarray(tokens).astype(np.int64)
        counts = np.bincount(tokens, minlength=size) * self.ordinary
        self.unigram = np.where(self.ordinary, (counts + 1) / (counts.sum() + self.ordinary.sum()), 0.0)
        self.first_guess = int(self.unigram.argmax())

        left, right = tokens[:-1], tokens[1:]
        pairs = (left * size + right)[self.ordinary[right]]
        self.pairs, self.pair_counts = np.unique(pairs, return_counts=True)
        left, right = np.divmod(self.pairs, size)
        self.follower_tokens = np.bincount(left, weights=self.pair_counts, minlength=size)
        self.follower_types = np.bincount(left, minlength=size)

        # a token never seen after `left` is likeliest if it is the unigram's first guess
        self.bigram_guess = np.full(size, self.first_guess)
        seen = self.bigram(left, right)
        order = np.lexsort((seen, left))
        last_of_left = np.flatnonzero(np.diff(left[order], append=-1))
        best = order[last_of_left]
        unseen = self.bigram(left[best], np.full(len(best), self.first_guess))
        self.bigram_guess[left[best]] = np.where(seen[best] >= unseen, right[best], self.first_guess)
        return self

    def bigram(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """p(right | left), elementwise."""
        key = left * self.vocab_size + right
        place = np.minimum(np.searchsorted(self.pairs, key), max(len(self.pairs) - 1, 0))
        count = (
            np.where(self.pairs[place] == key, self.pair_counts[place], 0) if len(self.pairs) else np.zeros(len(key))
        )
        types = self.follower_types[left]
        total = self.follower_tokens[left] + types
        unigram = self.unigram[right]
        return np.where(total > 0, (count + types * unigram) / np.maximum(total, 1), unigram)

    def score(self, left: np.ndarray, targets: np.ndarray) -> dict[str, Score]:
        """Scores of both models.

        Args:
            left: (masked,) tokens left of the masked ones, as the model sees them.
            targets: (masked,) the masked tokens, ordinary ones.
        """
        scores = {"unigram": Score(), "bigram": Score()}
        count = len(targets)
        scores["unigram"].add(
            -np.log(self.unigram[targets]).sum().item(), int((targets == self.first_guess).sum()), count
        )
        scores["bigram"].add(
            -np.log(self.bigram(left, targets)).sum().item(), int((targets == self.bigram_guess[left]).sum()), count
        )
        return scores
