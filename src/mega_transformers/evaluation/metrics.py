"""Evaluates outputs against references, with sacrebleu and jiwer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import RecipeError

MAX_BEAMS = 1000
# metric -> whether higher is better
METRICS = {
    "bleu": True,
    "chrf": True,
    "exact_match": True,
    "sequence_error_rate": False,
    "symbol_error_rate": False,
}


def score(predictions: Sequence[str], references: Sequence[Sequence[str]], metrics: Sequence[str]) -> dict[str, float]:
    """Scores of outputs.

    Args:
        predictions: One output for each source.
        references: One or more correct outputs for each source.
        metrics: Names of `METRICS`: `"bleu"` and `"chrf"` are sacrebleu's corpus scores, from 0 to 100;
            `"exact_match"` is the share of the sources whose output is one of the references, and
            `"sequence_error_rate"` is 1 minus that; `"symbol_error_rate"` is the sum of the edit distances to the
            closest reference, in symbols separated by white space, over the sum of these references' lengths.

    Raises:
        RecipeError: for a metric whose package is missing.
    """
    return {name: _score(name, predictions, references) for name in metrics}


def _score(name: str, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    if name in ("bleu", "chrf"):
        return _sacrebleu(name).corpus_score(list(predictions), _streams(references)).score
    if name == "symbol_error_rate":
        return symbol_error_rate(predictions, references)
    assert name in METRICS
    right = sum(prediction in some for prediction, some in zip(predictions, references)) / len(predictions)
    return right if name == "exact_match" else 1 - right


def signatures(metrics: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, str]:
    """sacrebleu's signatures of its metrics among `metrics`."""
    found = {}
    for name in metrics:
        if name in ("bleu", "chrf"):
            metric = _sacrebleu(name)
            metric.corpus_score([some[0] for some in references], _streams(references))
            found[name] = str(metric.get_signature())
    return found


def symbol_error_rate(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """See `score`. If several references are equally close, the first one counts."""
    try:
        from jiwer import process_words
    except ImportError:
        raise _missing("symbol_error_rate", "jiwer") from None
    errors = length = 0
    for prediction, some in zip(predictions, references):
        counts = (process_words(reference, prediction) for reference in some)
        distances = [
            (one.substitutions + one.deletions + one.insertions, one.hits + one.substitutions + one.deletions)
            for one in counts
        ]
        distance, own = min(distances, key=lambda pair: pair[0])
        errors, length = errors + distance, length + own
    return errors / length


def _sacrebleu(name: str) -> Any:
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError:
        raise _missing(name, "sacrebleu") from None
    return BLEU() if name == "bleu" else CHRF()


def _missing(metric: str, package: str) -> RecipeError:
    return RecipeError(f"{metric} needs the package {package}: pip install 'mega-transformers[train]'")


def _streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """sacrebleu's order: the first references of all sources, the second ones, ...; None for a missing one."""
    most = max(map(len, references))
    return [[some[index] if index < len(some) else None for some in references] for index in range(most)]
