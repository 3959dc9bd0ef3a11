"""What copying alone reaches: the target of the most similar training source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from rich.progress import track

from .pairs import Pair


class Neighbour:
    r"""Answers with the target of the training source that shares most with a source.

    A source is its set of three-character pieces, ends included; with \(n(g)\) the number of the \(N\) training
    sources that have piece \(g\), and \(w(g) = \log(1 + N / n(g))\), the similarity of two sources is Dice's,

        2 * sum of w over common pieces / (sum of w over the one's + sum of w over the other's)

    Of equally similar sources the first one counts, and of its targets the first.

    Args:
        pairs: The training pairs.
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.targets: dict[str, str] = {}
        for source, target in pairs:
            self.targets.setdefault(source, target)
        self.sources = list(self.targets)
        pieces = [_pieces(source) for source in track(self.sources, description="Comparing sources")]
        counts = Counter(piece for some in pieces for piece in some)
        self.weights = {piece: float(np.log1p(len(pieces) / count)) for piece, count in counts.items()}
        self.totals = np.array([self._total(some) for some in pieces])
        places: dict[str, list[int]] = {piece: [] for piece in counts}
        for index, some in enumerate(pieces):
            for piece in some:
                places[piece].append(index)
        self.places = {piece: np.array(some, dtype=np.int32) for piece, some in places.items()}

    def _total(self, pieces: set[str]) -> float:
        return sum(self.weights[piece] for piece in sorted(pieces) if piece in self.weights)

    def __call__(self, source: str) -> str:
        """The target of the nearest neighbour of `source`."""
        known = [piece for piece in sorted(_pieces(source)) if piece in self.weights]
        common = np.zeros(len(self.sources))
        for piece in known:
            common[self.places[piece]] += self.weights[piece]
        similarity = 2 * common / np.maximum(self.totals + self._total(set(known)), 1e-9)
        return self.targets[self.sources[int(similarity.argmax())]]


def _pieces(source: str) -> set[str]:
    text = f" {source} "
    return {text[start : start + 3] for start in range(len(text) - 2)}
