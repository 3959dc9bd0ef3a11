"""Scores by hand, and sacrebleu's where it defines them."""

from __future__ import annotations

import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mega_transformers.errors import RecipeError
from mega_transformers.evaluation.metrics import METRICS, score, signatures, symbol_error_rate


def distance(first, second):
    """Levenshtein's, by its definition."""
    if not first or not second:
        return len(first) + len(second)
    return min(
        distance(first[1:], second) + 1,
        distance(first, second[1:]) + 1,
        distance(first[1:], second[1:]) + (first[0] != second[0]),
    )


@given(st.text("AB", max_size=5), st.lists(st.text("AB", min_size=1, max_size=5), min_size=1, max_size=3))
def test_symbol_error_rate_is_the_least_edit_distance(output, references):
    spaced = [" ".join(reference) for reference in references]
    distances = [distance(output, reference) for reference in references]
    closest = references[distances.index(min(distances))]
    assert symbol_error_rate([" ".join(output)], [spaced]) == pytest.approx(min(distances) / len(closest))


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
    assert "nrefs:var" in signatures(["bleu"], fewer)["bleu"] and "nrefs:2" in signatures(["chrf"], two)["chrf"]
    assert signatures(["exact_match"], two) == {}


def test_whether_more_is_better():
    perfect, wrong = (score([text], [["A B C D"]], list(METRICS)) for text in ("A B C D", "X"))
    assert {name for name, better in METRICS.items() if (perfect[name] > wrong[name]) == better} == set(METRICS)


@pytest.mark.parametrize(
    ("metric", "module", "package"),
    [("chrf", "sacrebleu.metrics", "sacrebleu"), ("symbol_error_rate", "jiwer", "jiwer")],
)
def test_a_missing_package_is_named(monkeypatch, metric, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    message = rf"{metric} needs the package {package}: pip install 'mega-transformers\[train\]'"
    with pytest.raises(RecipeError, match=message):
        score(["a"], [["a"]], [metric])
