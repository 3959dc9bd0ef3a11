"""Scores by hand, and sacrebleu's where it defines them."""

from __future__ import annotations

import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mega_transformers.training.metrics import edit_distance, score, signature, symbol_error_rate
from mega_transformers.training.neighbour import Neighbour
from mega_transformers.training.schema import RecipeError


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("ab", "ba", 2), ("abc", "abc", 0)],
)
def test_edit_distances_by_hand(first, second, distance):
    assert edit_distance(first, second) == edit_distance(second, first) == distance


@given(st.text("ab", max_size=6), st.text("ab", max_size=6), st.text("ab", max_size=6))
def test_edit_distance_is_a_metric(first, second, third):
    assert (edit_distance(first, second) == 0) == (first == second)
    assert edit_distance(first, third) <= edit_distance(first, second) + edit_distance(second, third)
    assert abs(len(first) - len(second)) <= edit_distance(first, second) <= max(len(first), len(second))


def test_error_rates_by_hand():
    outputs = ["A B C", "X", ""]
    references = [["A C", "A B C"], ["A B", "X Y Z"], ["Q"]]
    # distances 0, 2 (to the first of two equally close ones, of length 2) and 1, over 3 + 2 + 1
    assert symbol_error_rate(outputs, references) == pytest.approx(3 / 6)
    scores = score(outputs, references, ["exact_match", "sequence_error_rate", "symbol_error_rate"])
    assert scores == pytest.approx({"exact_match": 1 / 3, "sequence_error_rate": 2 / 3, "symbol_error_rate": 0.5})


def test_bleu_and_chrf_take_the_references_there_are():
    from sacrebleu import corpus_bleu, corpus_chrf

    outputs = ["The cat sat on the mat.", "A dog barked at me."]
    two = [["A cat was on the mat.", "The cat sat on a mat."], ["The dog barked at us.", "A dog was loud."]]
    streams = [[some[index] for some in two] for index in range(2)]
    scores = score(outputs, two, ["bleu", "chrf"])
    assert scores["bleu"] == corpus_bleu(outputs, streams).score
    assert scores["chrf"] == corpus_chrf(outputs, streams).score
    # without the second one of the second sentence, BLEU by its definition
    fewer = [two[0], two[1][:1]]
    bleu = score(outputs, fewer, ["bleu"])["bleu"]
    # n-grams of both outputs that a reference has, of 13, 11, 9, 7; lengths are equal, so that nothing is taken off
    assert bleu == pytest.approx(100 * math.prod((11 / 13, 8 / 11, 5 / 9, 2 / 7)) ** 0.25)
    assert score(["a b c d"], [["a b c d"]], ["bleu", "chrf"]) == pytest.approx({"bleu": 100, "chrf": 100})
    assert "nrefs:var" in signature("bleu", fewer) and "nrefs:2" in signature("chrf", two)
    assert signature("exact_match", two) is None


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(
        RecipeError, match=r"chrf needs the package sacrebleu: pip install 'mega-transformers\[train\]'"
    ):
        score(["a"], [["a"]], ["chrf"])


def test_the_nearest_neighbour():
    neighbour = Neighbour(
        [("the black cat", "A"), ("the white dog", "B"), ("a black bird", "C"), ("the black cat", "D")]
    )
    assert neighbour("the black cat") == "A"
    assert neighbour("white dogs") == "B"
    assert neighbour("my black bird") == "C"
    assert neighbour("xyz") == "A"
