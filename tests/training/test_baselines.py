from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from mega_transformers.training.baselines import NgramBaselines, Trigram

# ids: 0 = <s> (special), 1..4 words; counts by hand
#   1 2 1 3 1 2 -> c(1)=3, c(2)=2, c(3)=1, c(4)=0; N=6, V=4
TOKENS = np.array([0, 1, 2, 1, 3, 1, 2], dtype=np.uint16)


@pytest.fixture
def baselines():
    return NgramBaselines(5, [0]).fit(TOKENS)


def test_unigram_by_hand(baselines):
    assert baselines.unigram.tolist() == pytest.approx([0, 4 / 10, 3 / 10, 2 / 10, 1 / 10])
    assert baselines.first_guess == 1


def test_bigram_by_hand(baselines):
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
    assert baselines.bigram(left, right).tolist() == pytest.approx(expected)
    assert baselines.bigram_guess.tolist() == [1, 2, 1, 1, 1]


def test_probabilities_sum_to_one():
    generator = np.random.default_rng(0)
    fitted = NgramBaselines(30, [0, 1]).fit(generator.integers(0, 25, 400))
    words = np.arange(30)
    assert fitted.unigram.sum() == pytest.approx(1)
    for left in range(30):
        bigram = fitted.bigram(np.full(30, left), words)
        assert bigram[2:].sum() == pytest.approx(1)
        assert bigram[2:].max() == pytest.approx(bigram[fitted.bigram_guess[left]])


def test_scores_by_hand(baselines):
    scores = baselines.score(np.array([1, 4]), np.array([2, 1]))
    assert scores["unigram"].summary()["cross_entropy"] == pytest.approx(-(math.log(0.3) + math.log(0.4)) / 2)
    assert scores["unigram"].summary()["accuracy"] == 0.5
    assert scores["bigram"].summary()["cross_entropy"] == pytest.approx(-(math.log(2.6 / 5) + math.log(0.4)) / 2)
    assert scores["bigram"].summary()["accuracy"] == 1.0
    assert scores["bigram"].summary()["perplexity"] == pytest.approx(1 / math.sqrt(2.6 / 5 * 0.4))


def slow_trigram(tokens, vocab_size, never):
    """p(w | u, v) with dictionaries, one formula after the other."""
    ordinary = [token for token in range(vocab_size) if token not in never]
    unigrams = Counter(tokens)
    total = sum(unigrams[token] for token in ordinary)
    after = defaultdict(Counter)
    for size in (2, 3):
        for place in range(len(tokens) - size + 1):
            *context, last = tokens[place : place + size]
            if last not in never:
                after[tuple(context)][last] += 1

    def unigram(w):
        return (unigrams[w] + 1) / (total + len(ordinary))

    def witten_bell(context, w, shorter):
        seen = after[context]
        return (seen[w] + len(seen) * shorter) / (sum(seen.values()) + len(seen)) if seen else shorter

    def trigram(u, v, w):
        return witten_bell((u, v), w, witten_bell((v,), w, unigram(w)))

    return trigram, lambda v, w: witten_bell((v,), w, unigram(w))


def test_trigram_is_the_slow_one():
    generator = np.random.default_rng(0)
    never = [1, 3]
    # pairs that repeat and pairs that do not; 1 and 3 occur, but are never predicted
    train = (generator.integers(0, 4, 300) + generator.integers(0, 5, 300)).astype(np.uint16)
    test = generator.choice([0, 2, 4, 5, 6, 7, 8, 9, 10], 80).astype(np.uint16)
    fitted = Trigram(11, never).fit(train)
    trigram, bigram = slow_trigram(train.tolist(), 11, never)
    everything = np.stack(np.meshgrid(*[np.arange(11)] * 3, indexing="ij")).reshape(3, -1)
    everything = everything[:, ~np.isin(everything[2], never)]
    expected = [trigram(*row) for row in everything.T.tolist()]
    assert fitted.trigram(*everything).tolist() == pytest.approx(expected)
    tokens = test.tolist()
    nats = -math.log(bigram(*tokens[:2])) - sum(math.log(trigram(*tokens[i : i + 3])) for i in range(len(tokens) - 2))
    assert fitted.nats(test) == pytest.approx(nats)


def test_trigram_sums_to_one():
    generator = np.random.default_rng(1)
    fitted = Trigram(12, [0]).fit(generator.integers(1, 12, 200))
    for left, middle in ((1, 2), (3, 3), (0, 5), (0, 0)):
        total = fitted.trigram(np.full(12, left), np.full(12, middle), np.arange(12))[1:].sum()
        assert total == pytest.approx(1)


@pytest.mark.parametrize("tokens", [[1], [1, 2], [0, 0, 0]])
def test_trigram_of_next_to_nothing_backs_off(tokens):
    fitted = Trigram(5, [0]).fit(np.array(tokens))
    left, middle, right = (np.array([token]) for token in (3, 4, 2))
    assert fitted.trigram(left, middle, right) == pytest.approx(fitted.unigram[2])
    assert np.isfinite(fitted.nats(np.array([3, 4])))
