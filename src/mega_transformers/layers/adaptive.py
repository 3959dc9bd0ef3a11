"""Adaptive input and adaptive softmax, with the names and shapes of the authors' weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from transformers import initialization as init

from ..ops.adaptive import Factors, adaptive_cross_entropy, adaptive_embedding, adaptive_log_probs

if TYPE_CHECKING:
    from ..models.mega.configuration_mega import MegaConfig


class MegaMatrix(nn.Module):
    """A `weight` (rows, columns) that another module multiplies by.

    It is not an `nn.Linear`, since whatever replaces linear layers (adapters, quantisation) would have no effect here.

    Args:
        rows, columns: Shape of the weight.
        std: Standard deviation of the initial numbers; None for Xavier's uniform distribution.
        padding: Row that is initially 0; None for no such row.
    """

    def __init__(self, rows: int, columns: int, std: float | None = None, padding: int | None = None) -> None:
        super().__init__()
        self.std, self.padding = std, padding
        self.weight = nn.Parameter(torch.empty(rows, columns))

    def initialize(self) -> None:
        """Initialises a weight that was not loaded."""
        if self.std is None:
            init.xavier_uniform_(self.weight)
            return
        init.normal_(self.weight, std=self.std)
        # a row cannot be marked as loaded, unlike a whole weight
        if self.padding is not None and not getattr(self.weight, "_is_hf_initialized", False):
            init.zeros_(self.weight[self.padding])

    def forward(self) -> torch.Tensor:
        """The weight. It is read by a call, so that hooks of the module can load an offloaded weight first."""
        return self.weight

    def extra_repr(self) -> str:
        return "{}, {}".format(*self.weight.shape)


class MegaAdaptiveEmbedding(nn.Module):
    """Word embeddings in clusters of decreasing width, projected to `hidden_size` (authors' `AdaptiveInput`).

    Initially words are normal with variance 1 / width, and padding is 0.

    Args:
        config: The configuration, with `adaptive_cutoffs`.
    """

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.padding_idx = config.pad_token_id
        self.embeddings = nn.ModuleList()
        clusters = config.adaptive_clusters(config.embedding_size or config.hidden_size, config.adaptive_input_factor)
        start = 0
        for size, width in clusters:
            padding = None if self.padding_idx is None else self.padding_idx - start
            words = MegaMatrix(size, width, width**-0.5, padding if padding in range(size) else None)
            self.embeddings.append(nn.ModuleList([words, MegaMatrix(config.hidden_size, width)]))
            start += size

    @property
    def weight(self) -> torch.Tensor:
        """The words of the first cluster; like that of an `nn.Embedding`, it tells device and dtype."""
        return self.get_parameter("embeddings.0.0.weight")

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeds ids (...) as (..., d).

        Args:
            ids: (...) ids of words.
        """
        clusters = []
        for cluster in self.embeddings:
            words, projection = cast(nn.ModuleList, cluster)
            clusters.append((words(), projection()))
        return adaptive_embedding(ids, clusters, self.padding_idx)


class MegaTiedHead(nn.Module):
    """The weights of a head that shares its tokens with the first cluster of the input: these, and those of the
    clusters.
    """

    def __init__(self, words: int, width: int, size: int, clusters: int) -> None:
        super().__init__()
        matrix = MegaMatrix(words, width)
        # the head has its own projection, never the input's
        self.word_proj = matrix if width == size else nn.ModuleList([MegaMatrix(width, size), matrix])
        self.class_proj = MegaMatrix(clusters, size)

    def factors(self) -> list[Factors]:
        """Tokens and clusters as `ops.adaptive` takes them."""
        if isinstance(self.word_proj, MegaMatrix):
            words: Factors = (self.word_proj(), None)
        else:
            projection, matrix = self.word_proj
            words = (matrix(), projection())
        return [words, (self.class_proj(), None)]


class MegaAdaptiveSoftmax(nn.Module):
    """Log-probabilities of words, the rarer ones in tails of decreasing width (authors' `AdaptiveSoftmax`).

    `tied_weights` says which weights are shared with a `MegaAdaptiveEmbedding`; the model ties them.

    Args:
        config: The configuration, with `adaptive_cutoffs`.
    """

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.tied, self.tied_projections = config.tie_adaptive_weights, config.tie_adaptive_projections
        if self.tied:
            clusters = config.adaptive_clusters(config.embedding_size or d, config.adaptive_input_factor)
        else:
            clusters = config.adaptive_clusters(d, config.adaptive_softmax_factor)
        (words, width), *tails = clusters
        self.head = MegaTiedHead(words, width, d, len(tails)) if self.tied else MegaMatrix(words + len(tails), d)
        self.dropout = nn.Dropout(config.adaptive_softmax_dropout_prob)
        self.tail = nn.ModuleList()
        for size, width in tails:
            # the input's projections are stored transposed; index "1" is the authors' dropout
            projection = MegaMatrix(d, width) if self.tied_projections else MegaMatrix(width, d)
            self.tail.append(nn.ModuleDict({"0": projection, "2": MegaMatrix(size, width)}))

    def tied_weights(self) -> dict[str, str]:
        """Names of tied weights here -> their names in `MegaAdaptiveEmbedding`."""
        if not self.tied:
            return {}
        assert isinstance(self.head, MegaTiedHead)
        inner = "" if isinstance(self.head.word_proj, MegaMatrix) else "1."
        pairs = {f"head.word_proj.{inner}weight": "embeddings.0.0.weight"}
        for tail in range(len(self.tail)):
            pairs[f"tail.{tail}.2.weight"] = f"embeddings.{tail + 1}.0.weight"
            if self.tied_projections:
                pairs[f"tail.{tail}.0.weight"] = f"embeddings.{tail + 1}.1.weight"
        return pairs

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of all words, (..., V), float32 at least.

        Args:
            hidden_states: (..., d).
        """
        return adaptive_log_probs(self.dropout(hidden_states), *self._matrices(), self._tail_dropout())

    def loss(self, hidden_states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Sum of the cross entropies, a scalar.

        Args:
            hidden_states: (T, d).
            labels: (T,) ids, -100 at positions without a label.
        """
        return adaptive_cross_entropy(self.dropout(hidden_states), labels, *self._matrices(), self._tail_dropout())

    def _tail_dropout(self) -> float:
        return self.dropout.p if self.training else 0.0

    def _matrices(self) -> tuple[list[Factors], list[Factors]]:
        """Head and tails as `ops.adaptive` takes them."""
        head: list[Factors] = self.head.factors() if isinstance(self.head, MegaTiedHead) else [(self.head(), None)]
        tails: list[Factors] = []
        for tail in self.tail:
            projection, words = (matrix() for matrix in cast(nn.ModuleDict, tail).values())
            tails.append((words, projection.t() if self.tied_projections else projection))
        return head, tails
