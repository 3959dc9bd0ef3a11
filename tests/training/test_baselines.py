from __future__ import annotations

import math

import numpy as np
import pytest

from mega_transformers.training.baselines import NgramBaselines

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
