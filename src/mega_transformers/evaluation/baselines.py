"""Baselines: n-gram models of tokens, and the target of the nearest training source."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


class Ngram:
    r"""Witten and Bell's interpolated n-gram models (1991, method C), from counts.

    With \(c\) the counts in the training tokens, \(V\) the number of tokens that may be predicted, \(N\) of their
    occurrences, and \(T(u)\) of the different ones seen after a context \(u\), whose last tokens are \(u'\):

        p(w)     = (c(w) + 1) / (N + V)
        p(w | u) = (c(u, w) + T(u) p(w | u')) / (c(u) + T(u))

    Args:
        tokens: (tokens,) ids to count.
        vocab_size: Ids are below it.
        never: Ids that are never predicted.
        order: The most tokens of an n-gram; at most 3.
    """

    def __init__(self, tokens: np.ndarray, vocab_size: int, never: Iterable[int], order: int) -> None:
        self.vocab_size = vocab_size
        tokens = np.asarray(tokens, dtype=np.int64)
        ordinary = np.ones(vocab_size, dtype=bool)
        ordinary[list(never)] = False
        counts = np.bincount(tokens, minlength=vocab_size) * ordinary
        self.unigram = np.where(ordinary, (counts + 1) / (counts.sum() + ordinary.sum()), 0.0)
        # for each longer n-gram: the n-grams as numbers, their counts, the contexts, and the contexts' counts and
        # followers
        self.tables = []
        for n in range(2, order + 1):
            grams = self._number([tokens[k : len(tokens) - n + 1 + k] for k in range(n)])
            grams, counts = np.unique(grams[ordinary[tokens[n - 1 :]]], return_counts=True)
            contexts, first = np.unique(grams // vocab_size, return_index=True)
            ends = np.append(first, len(grams))
            totals = np.diff(np.append(0, counts.cumsum())[ends])
            self.tables.append((grams, counts, contexts, totals, np.diff(ends)))

    def _number(self, columns: Sequence[np.ndarray]) -> np.ndarray:
        number = np.zeros_like(columns[0])
        for column in columns:
            number = number * self.vocab_size + column
        return number

    def probability(self, *columns: np.ndarray) -> np.ndarray:
        """p(last | those before it), elementwise, for one to `order` arrays of ids in the order of the text."""
        columns = tuple(np.asarray(column, dtype=np.int64) for column in columns)
        if len(columns) == 1:
            return self.unigram[columns[0]]
        shorter = self.probability(*columns[1:])
        grams, counts, contexts, totals, followers = self.tables[len(columns) - 2]
        context = self._number(columns[:-1])
        count = _look_up(grams, counts, context * self.vocab_size + columns[-1])
        types = _look_up(contexts, followers, context)
        total = _look_up(contexts, totals, context) + types
        return np.where(total > 0, (count + types * shorter) / np.maximum(total, 1), shorter)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The values at the `wanted` entries of the sorted `keys`; 0 for missing keys."""
    if not len(keys):
        return np.zeros(len(wanted), dtype=np.int64)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)


def nearest_neighbours(sources: Sequence[str], targets: Sequence[str], queries: Sequence[str]) -> list[str]:
    """For each query the target of the most similar training source: the cosine of their tf-idf of character trigrams.

    If several sources are equally similar, the first one counts.
    """
    from rich.progress import track
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 3), lowercase=False)
    known = vectorizer.fit_transform(sources).T.tocsc()
    found: list[str] = []
    for start in track(range(0, len(queries), 256), description="Nearest neighbours"):
        similarity = vectorizer.transform(queries[start : start + 256]) @ known
        found += [targets[int(index)] for index in np.asarray(similarity.argmax(axis=1)).ravel()]
    return found
