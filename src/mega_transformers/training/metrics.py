"""How outputs are judged beside their references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .pair_recipe import METRICS
from .schema import RecipeError


def score(predictions: Sequence[str], references: Sequence[Sequence[str]], metrics: Sequence[str]) -> dict[str, float]:
    """Scores of outputs.

    Args:
        predictions: An output for each source.
        references: The right outputs of each source, one or more.
        metrics: Names of `pair_recipe.METRICS`: `"bleu"` and `"chrf"` are sacrebleu's, over the whole, from 0 to 100;
            `"exact_match"` is the part of the sources whose output is one of the references, and
            `"sequence_error_rate"` the rest; `"symbol_error_rate"` is the sum of the edit distances to the closest
            reference, in symbols parted by white space, over the sum of these references' lengths.

    Raises:
        RecipeError: for BLEU or chrF without sacrebleu.
    """
    return {name: _score(name, predictions, references) for name in metrics}


def _score(name: str, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    if name in ("bleu", "chrf"):
        return _metric(name).corpus_score(list(predictions), _streams(references)).score
    if name == "symbol_error_rate":
        return symbol_error_rate(predictions, references)
    assert name in METRICS
    right = sum(prediction in some for prediction, some in zip(predictions, references)) / len(predictions)
    return right if name == "exact_match" else 1 - right


def signature(name: str, references: Sequence[Sequence[str]]) -> str | None:
    """sacrebleu's description of how a metric was computed; None for metrics that are not its."""
    if name not in ("bleu", "chrf"):
        return None
    metric = _metric(name)
    metric.corpus_score([some[0] for some in references], _streams(references))
    return str(metric.get_signature())


def symbol_error_rate(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """See `score`. Of references that are equally close, the first one counts."""
    errors = length = 0
    for prediction, some in zip(predictions, references):
        symbols = prediction.split()
        distances = [(edit_distance(symbols, other), len(other)) for other in map(str.split, some)]
        distance, own = min(distances, key=lambda pair: pair[0])
        errors, length = errors + distance, length + own
    return errors / length


def edit_distance(first: Sequence[str], second: Sequence[str]) -> int:
    """The least number of insertions, deletions and replacements that turn one sequence into the other."""
    row = list(range(len(second) + 1))
    for index, symbol in enumerate(first, start=1):
        diagonal, row[0] = row[0], index
        for column, other in enumerate(second, start=1):
            diagonal, row[column] = (
                row[column],
                min(row[column] + 1, row[column - 1] + 1, diagonal + (symbol != other)),
            )
    return row[-1]


def _metric(name: str) -> Any:
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError:
        raise RecipeError(f"{name} needs the package sacrebleu: pip install 'mega-transformers[train]'") from None
    return BLEU() if name == "bleu" else CHRF()


def _streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """sacrebleu's order: the first references of all sources, the second ones, ...; None where there is none."""
    most = max(map(len, references))
    return [[some[index] if index < len(some) else None for some in references] for index in range(most)]
