"""Adaptive input (arXiv 1809.10853) and adaptive softmax (arXiv 1609.04309): a vocabulary in clusters of decreasing
width.

Ids are sorted by frequency and cut into clusters; rarer tokens have narrower vectors, which a projection widens. One
softmax is over the tokens of the first cluster and one entry for each other cluster (a tail); another is within each
tail.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F

from .cross_entropy import linear_cross_entropy
from .few_rows import linear_few_rows
from .layout import is_readable

Factors = tuple[torch.Tensor, torch.Tensor | None]
"""A matrix (rows, d) and None, or its two factors (rows, e) and (e, d)."""


def adaptive_embedding_reference(
    ids: torch.Tensor, clusters: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """The definition of `adaptive_embedding`: rows of a table of the whole vocabulary, all of one width."""
    return torch.cat([words @ projection.t() for words, projection in clusters])[ids]


def adaptive_embedding(
    ids: torch.Tensor, clusters: Sequence[tuple[torch.Tensor, torch.Tensor]], padding_idx: int | None = None
) -> torch.Tensor:
    """Token vectors of different widths, projected to one width.

    Every cluster is read for every id, with zeros for ids of other clusters. The tails are narrow, so this costs
    little; unlike selecting the ids of a cluster, it neither waits for a GPU nor breaks a graph.

    Args:
        ids: (...) int64 below the sum of the sizes.
        clusters: For each cluster, its token vectors (size, width) and its projection (d, width).
        padding_idx: An id whose vector gets no gradient.

    Returns:
        (..., d).
    """
    parts: list[torch.Tensor] = []
    start = 0
    for words, projection in clusters:
        size, own = words.shape[0], ids - start
        padding = None if padding_idx is None else padding_idx - start
        vectors = F.embedding(own.clamp(0, size - 1), words, padding if padding in range(size) else None)
        outside = (own < 0) | (own >= size)
        parts.append(linear_few_rows(vectors.masked_fill(outside.unsqueeze(-1), 0), projection, None))
        start += size
    return reduce(torch.add, parts)


def adaptive_log_probs_reference(
    hidden: torch.Tensor, head: Sequence[Factors], tails: Sequence[Factors]
) -> torch.Tensor:
    """The definition of `adaptive_log_probs`: log p(cluster) + log p(token given the cluster), from two softmaxes."""
    choices = torch.log_softmax(hidden @ torch.cat([_product(matrix) for matrix in head]).t(), dim=-1)
    words = choices.shape[-1] - len(tails)
    clusters = [choices[..., :words]]
    for tail, matrix in enumerate(tails):
        cluster = choices[..., words + tail].unsqueeze(-1)
        clusters.append(cluster + torch.log_softmax(hidden @ _product(matrix).t(), dim=-1))
    return torch.cat(clusters, dim=-1)


def adaptive_log_probs(
    hidden: torch.Tensor, head: Sequence[Factors], tails: Sequence[Factors], dropout: float = 0.0
) -> torch.Tensor:
    """Log-probabilities of all tokens.

    Args:
        hidden: (..., d).
        head: Matrices whose rows are, in order, the tokens of the first cluster and one entry for each tail.
        tails: The matrix of the tokens of each tail.
        dropout: Dropout between the factors of a tail.

    Returns:
        (..., V), float32 at least.
    """
    scores = torch.cat([_scores(hidden, matrix) for matrix in head], dim=-1)
    choices = scores - torch.logsumexp(scores, dim=-1, keepdim=True)
    words = choices.shape[-1] - len(tails)
    clusters = [choices[..., :words]]
    for tail, matrix in enumerate(tails):
        scores = _scores(hidden, matrix, dropout)
        cluster = choices[..., words + tail].unsqueeze(-1)
        clusters.append(scores - (torch.logsumexp(scores, dim=-1, keepdim=True) - cluster))
    return torch.cat(clusters, dim=-1)


def adaptive_cross_entropy(
    hidden: torch.Tensor,
    labels: torch.Tensor,
    head: Sequence[Factors],
    tails: Sequence[Factors],
    dropout: float = 0.0,
    ignore_index: int = -100,
) -> torch.Tensor:
    """Sum of -log p(label), on a CPU, a tail is computed only for positions whose label is in it.

    Every matrix gets a gradient, even if it is zero: training on several devices waits for all gradients.

    Args:
        hidden: (T, d).
        labels: (T,) int64 below V; `ignore_index` is skipped.
        head, tails, dropout: As in `adaptive_log_probs`.
        ignore_index: The label to ignore.

    Returns:
        A scalar, float32 at least.
    """
    first = start = sum(weight.shape[0] for weight, _ in head) - len(tails)
    choices, losses = labels, []
    for tail, (weight, projection) in enumerate(tails):
        inside = (labels >= start) & (labels < start + weight.shape[0])
        own = torch.where(inside, labels - start, ignore_index)
        rows: slice | torch.Tensor = inside.nonzero().squeeze(1) if is_readable(inside) else slice(None)
        vectors = _projected(hidden[rows], projection, dropout)
        losses.append(linear_cross_entropy(vectors, weight, None, own[rows], ignore_index)[0])
        choices = choices.masked_fill(inside, first + tail)
        start += weight.shape[0]
    head_weight = torch.cat([_product(matrix) for matrix in head]) if len(head) > 1 else _product(head[0])
    losses.append(linear_cross_entropy(hidden, head_weight, None, choices, ignore_index)[0])
    return reduce(torch.add, losses)


def _product(matrix: Factors) -> torch.Tensor:
    weight, projection = matrix
    return weight if projection is None else weight @ projection


def _projected(hidden: torch.Tensor, projection: torch.Tensor | None, dropout: float = 0.0) -> torch.Tensor:
    vectors = hidden if projection is None else linear_few_rows(hidden, projection, None)
    return F.dropout(vectors, dropout) if dropout else vectors


def _scores(hidden: torch.Tensor, matrix: Factors, dropout: float = 0.0) -> torch.Tensor:
    """(..., d) -> (..., rows), float32 at least."""
    weight, projection = matrix
    scores = linear_few_rows(_projected(hidden, projection, dropout), weight, None)
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
