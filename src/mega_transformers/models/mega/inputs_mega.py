"""The input of the first block: embeddings, and the starts of packed documents."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from ...layers import MegaAdaptiveEmbedding, MegaDropout, MegaSequenceNorm
from .configuration_mega import MegaConfig
from .validation_mega import values_can_be_checked


class MegaValueEmbeddings(nn.Module):
    """x * weight + bias: a vector for a real number (authors' `RealNumberEmbedding`)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(B, L) of any dtype -> (B, L, d)."""
        return torch.addcmul(self.bias, values.unsqueeze(-1), self.weight).to(self.weight.dtype)

    def initialize(self) -> None:
        """The authors' initial weights: N(0, 1), and biases N(0, 0.1^2)."""
        init.normal_(self.weight)
        init.normal_(self.bias, std=0.1)


class MegaEmbeddings(nn.Module):
    """Embeddings of tokens or values, with optional scale, projection, types, norm and dropout."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        d = config.hidden_size
        width = config.embedding_size or d
        self.scale = math.sqrt(d) if config.scale_embeddings else None
        self.word_embeddings: nn.Module | None = None
        self.value_embeddings = MegaValueEmbeddings(d) if config.input_type == "values" else None
        if config.adaptive_input:
            self.word_embeddings, width = MegaAdaptiveEmbedding(config), d
        elif self.value_embeddings is None:
            self.word_embeddings = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        self.projection = nn.Linear(width, d, bias=False) if width != d else None
        self.token_type_embeddings = (
            nn.Embedding(config.type_vocab_size, d) if config.add_token_type_embeddings else None
        )
        self.norm = MegaSequenceNorm(config) if config.normalize_embeddings else None
        self.dropout = MegaDropout(config.embedding_dropout_prob, config.use_feature_dropout)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        token_type_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        input_values: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Ids or values (B, L) or their embeddings, and token types (B, L), 0 by default -> (B, L, d)."""
        if inputs_embeds is not None:
            embeddings = inputs_embeds
        elif self.value_embeddings is not None:
            embeddings = self.value_embeddings(input_values)
        else:
            embeddings = self.word_embeddings(input_ids)  # type: ignore[misc]
        if self.scale is not None:
            embeddings = embeddings * self.scale
        if self.projection is not None:
            embeddings = self.projection(embeddings)
        if self.token_type_embeddings is not None:
            if token_type_ids is None:
                token_type_ids = torch.zeros(1, 1, dtype=torch.int64, device=embeddings.device)
            embeddings = embeddings + self.token_type_embeddings(token_type_ids)
        if self.norm is not None:
            embeddings = self.norm(embeddings)
        return self.dropout(embeddings)


def document_starts_of(
    shape: tuple[int, int],
    position_ids: torch.Tensor | None,
    cu_seq_lens: torch.Tensor | None,
    seq_idx: torch.Tensor | None,
) -> tuple[torch.Tensor | None, int | None]:
    """The starts of packed documents, from the output of `DataCollatorWithFlattening`.

    Args:
        shape: (batch, length).
        position_ids: (B or 1, L), restarting in every document.
        cu_seq_lens: (documents + 1,) boundaries, for a batch of one row.
        seq_idx: (B, L) numbers of documents.

    Returns:
        (B, L) bool, True at the first token of every document, or None for one document per row; and an upper bound of
        the documents in a row, which only `cu_seq_lens` gives without reading values.
    """
    bound = None
    if seq_idx is not None:
        starts = F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0), value=True)
    elif cu_seq_lens is not None:
        if shape[0] != 1:
            raise ValueError(f"cu_seq_lens_q describes one packed row, but the batch has {shape[0]}; flatten it")
        bound = cu_seq_lens.numel() - 1
        starts = torch.zeros(shape[1] + 1, dtype=torch.bool, device=cu_seq_lens.device)
        starts = starts.index_fill(0, cu_seq_lens.long(), True)[:-1].unsqueeze(0)
    elif position_ids is not None:
        starts = F.pad(position_ids[:, 1:] != position_ids[:, :-1] + 1, (1, 0), value=True)
    else:
        return None, None
    if starts.shape[1] != shape[1] or starts.shape[0] not in (1, shape[0]):
        raise ValueError(
            f"position_ids or seq_idx have shape {tuple(starts.shape)}, but must be (batch, length) = {shape}"
        )
    if values_can_be_checked(starts) and not bool(starts[:, 1:].any()):
        return None, None
    if bound is None:  # the only read of a device's values, as in transformers itself for position_ids
        bound = int(starts.sum(dim=1).max())
    return starts.expand(shape), bound
