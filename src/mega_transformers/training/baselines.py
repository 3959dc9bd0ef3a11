"""What counting alone reaches: a unigram and a bigram model of masked tokens, a trigram model of next ones."""

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
        count = _look_up(self.pairs, self.pair_counts, left * self.vocab_size + right)
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


class Trigram(NgramBaselines):
    r"""A trigram model of the next token, from counts.

    As `NgramBaselines`, and one step further, with \(T(u, v)\) the number of different tokens seen after \(u, v\):

        p(w | u, v) = (c(u, v, w) + T(u, v) p(w | v)) / (c(u, v) + T(u, v))

    Here `special_ids` are only those that never follow anything: the ends and starts of documents are predicted.
    """

    def fit(self, tokens: np.ndarray) -> Trigram:
        """Counts a line of training tokens (tokens,)."""
        super().fit(tokens)
        size = self.vocab_size
        tokens = np.asarray(tokens).astype(np.int64)
        context, right = tokens[:-2] * size + tokens[1:-1], tokens[2:]
        counted = self.ordinary[right]
        self.triples, self.triple_counts = np.unique((context * size + right)[counted], return_counts=True)
        self.contexts, first = np.unique(self.triples // size, return_index=True)
        ends = np.append(first, len(self.triples))
        self.context_types = np.diff(ends)
        self.context_tokens = np.diff(np.append(0, self.triple_counts.cumsum())[ends])
        return self

    def trigram(self, left: np.ndarray, middle: np.ndarray, right: np.ndarray) -> np.ndarray:
        """p(right | left, middle), elementwise."""
        context = left * self.vocab_size + middle
        count = _look_up(self.triples, self.triple_counts, context * self.vocab_size + right)
        types = _look_up(self.contexts, self.context_types, context)
        total = _look_up(self.contexts, self.context_tokens, context) + types
        bigram = self.bigram(middle, right)
        return np.where(total > 0, (count + types * bigram) / np.maximum(total, 1), bigram)

    def nats(self, tokens: np.ndarray) -> float:
        """The cross entropy, summed, of a line of tokens (tokens,) but the first; the second is a bigram's."""
        tokens = np.asarray(tokens).astype(np.int64)
        first = -np.log(self.bigram(tokens[:1], tokens[1:2])).sum()
        return float(first - np.log(self.trigram(tokens[:-2], tokens[1:-1], tokens[2:])).sum())


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Of sorted `keys`, the values of `wanted`; 0 for those that are none."""
    if not len(keys):
        return np.zeros(len(wanted), dtype=np.int64)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
