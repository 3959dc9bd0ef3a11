"""Packed documents for the EMA in blocks: a layout in which every document starts with a block."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..layout import is_readable, positions_in_documents


class PackedBlocks(NamedTuple):
    """Where the tokens of packed rows go, so that no block holds two documents.

    Attributes:
        size: Tokens per block.
        slot_of_token: (B, L).
        token_of_slot: (B, blocks * size); L where a slot is empty.
        document_of_slot: (B, blocks * size) numbers of documents from 1 on; 0 where a slot is empty.
    """

    size: int
    slot_of_token: torch.Tensor
    token_of_slot: torch.Tensor
    document_of_slot: torch.Tensor

    @property
    def continues(self) -> torch.Tensor:
        """(B, blocks) bool, whether a block belongs to the document of the block before."""
        first = self.document_of_slot[:, :: self.size]
        return F.pad(first[:, 1:] == first[:, :-1], (1, 0))

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        """(B, L, d) to (B, blocks * size, d), empty slots zero."""
        x = F.pad(x, (0, 0, 0, 1))
        return x.gather(1, self.token_of_slot.unsqueeze(-1).expand(-1, -1, x.shape[-1]))

    def gather(self, y: torch.Tensor) -> torch.Tensor:
        """(B, blocks * size, d) back to (B, L, d)."""
        return y.gather(1, self.slot_of_token.unsqueeze(-1).expand(-1, -1, y.shape[-1]))


def packed_blocks(reset: torch.Tensor, size: int, documents: int | None = None) -> PackedBlocks:
    """Makes the layout; once in a forward pass, for all layers.

    Args:
        reset: (B, L) bool, True at the first token of every document.
        size: Tokens per block.
        documents: An upper bound of the documents in a row. Without it the number of blocks is read from the tensors,
            for which the host has to wait for a device.
    """
    batch, length = reset.shape
    positions = positions_in_documents(reset)
    place = positions % size
    block = (place == 0).cumsum(dim=1) - 1
    exact = documents is None or is_readable(reset)
    blocks = int(block.max()) + 1 if exact else length // size + (documents or 0)
    slot_of_token = block * size + place
    token = torch.arange(length, device=reset.device).expand(batch, length)
    empty = torch.full((batch, blocks * size), length, device=reset.device)
    token_of_slot = empty.scatter(1, slot_of_token, token)
    document = F.pad((positions == 0).cumsum(dim=1), (0, 1))
    return PackedBlocks(size, slot_of_token, token_of_slot, document.gather(1, token_of_slot))
