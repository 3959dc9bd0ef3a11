"""Counts by hand and by brute force, and the nearest neighbour."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest

from mega_transformers.evaluation.baselines import Ngram, nearest_neighbours

# ids: 0 = <s> (special), 1..4 words; counts by hand
#   1 2 1 3 1 2 -> c(1)=3, c(2)=2, c(3)=1, c(4)=0; N=6, V=4
TOKENS = np.array([0, 1, 2, 1, 3, 1, 2], dtype=np.int32)


def test_unigram_by_hand():
    ngram = Ngram(TOKENS, 5, [0], order=1)
    assert ngram.probability(np.arange(5)).tolist() == pytest.approx([0, 4 / 10, 3 / 10, 2 / 10, 1 / 10])


def test_bigram_by_hand():
    # right of 1: 2, 3, 2 -> 3 tokens, 2 types; right of <s>: 1; right of 4 and of nothing counted: the unigram
    left, right = np.array([1, 1, 1, 1, 0, 4, 2]), np.array([2, 3, 1, 4, 1, 3, 1])
    expected = [
        (2 + 2 * 0.3) / 5,
        (1 + 2 * 0.2) / 5,
        (0 + 2 * 0.4) / 5,
        (0 + 2 * 0.1) / 5,
        (1 + 1 * 0.4) / 2,
        0.2,
        (1 + 1 * 0.4) / 2,
    ]
    assert Ngram(TOKENS, 5, [0], order=2).probability(left, right).tolist() == pytest.approx(expected)


def slow(tokens, vocab_size, never):
    """p(w | context) with dictionaries, one formula after the other."""
    ordinary = [token for token in range(vocab_size) if token not in never]
    unigrams = Counter(tokens)
    total = sum(unigrams[token] for token in ordinary)
    after = defaultdict(Counter)
    for size in (2, 3):
        for place in range(len(tokens) - size + 1):
            *context, last = tokens[place : place + size]
            if last not in never:
                after[tuple(context)][last] += 1

    def probability(*context_and_word):
        *context, word = context_and_word
        if not context:
            return (unigrams[word] + 1) / (total + len(ordinary))
        seen, shorter = after[tuple(context)], probability(*context[1:], word)
        return (seen[word] + len(seen) * shorter) / (sum(seen.values()) + len(seen)) if seen else shorter

    return probability


@pytest.mark.parametrize("order", [1, 2, 3])
def test_ngrams_are_the_slow_ones(order):
    generator = np.random.default_rng(0)
    never = [1, 3]
    # pairs that repeat and pairs that do not; 1 and 3 occur, but are never predicted
    train = (generator.integers(0, 4, 300) + generator.integers(0, 5, 300)).astype(np.int32)
    fitted, probability = Ngram(train, 11, never, order=3), slow(train.tolist(), 11, never)
    everything = np.stack(np.meshgrid(*[np.arange(11)] * order, indexing="ij")).reshape(order, -1)
    everything = everything[:, ~np.isin(everything[-1], never)]
    expected = [probability(*row) for row in everything.T.tolist()]
    assert fitted.probability(*everything).tolist() == pytest.approx(expected)
    # an n-gram model holds the shorter ones
    assert Ngram(train, 11, never, order).probability(*everything).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_probabilities_sum_to_one(order):
    fitted = Ngram(np.random.default_rng(1).integers(0, 25, 400), 30, [0, 1], order)
    for context in np.random.default_rng(2).integers(0, 30, (40, order - 1)):
        columns = [*(np.full(30, token) for token in context), np.arange(30)]
        assert fitted.probability(*columns)[2:].sum() == pytest.approx(1)


@pytest.mark.parametrize("tokens", [[1], [1, 2], [0, 0, 0]])
def test_next_to_nothing_backs_off(tokens):
    fitted = Ngram(np.array(tokens), 5, [0], order=3)
    left, middle, right = (np.array([token]) for token in (3, 4, 2))
    assert fitted.probability(left, middle, right) == pytest.approx(fitted.probability(right))
    assert fitted.probability(right) > 0


def test_the_nearest_neighbour():
    sources = ["the black cat", "the white dog", "a black bird", "the black cat"]
    queries = ["the black cat", "white dogs", "my black bird", "xyz"]
    # of equal ones, and where nothing is alike, the first
    assert nearest_neighbours(sources, "ABCD", queries) == ["A", "B", "C", "A"]
    many = [f"{number:05d}" for number in range(600)]
    assert nearest_neighbours(many, many, many) == many  # more than one batch of queries
