"""Who sees whom: the one rule of padding, packing, chunks and causality.

A query at position m sees a key at position n when all hold: n is no padding; same document; same chunk,
floor(position / chunk_size) with positions counted from the document's first real token; n <= m if causal.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F


def positions_in_documents(starts: torch.Tensor) -> torch.Tensor:
    """Positions counted from the latest document start.

    Args:
        starts: (B, L) bool, True at the first token of every document; position 0 always counts as a start.

    Returns:
        (B, L) int64.
    """
    index = torch.arange(starts.shape[1], device=starts.device).expand_as(starts)
    latest = torch.where(starts, index, torch.zeros_like(index)).cummax(dim=1).values
    return index - latest


def aligned_slots(positions: torch.Tensor, block: int, num_blocks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A layout in which every document starts at a multiple of `block`.

    Args:
        positions: (B, L) positions in documents.
        block: Tokens per block.
        num_blocks: Blocks per row, at least what the row with most of them needs.

    Returns:
        `slot_of_token` (B, L) and `token_of_slot` (B, num_blocks * block), the latter L where a slot is empty.
    """
    batch, length = positions.shape
    offset = positions % block
    block_of_token = (offset == 0).cumsum(dim=1) - 1
    slot_of_token = block_of_token * block + offset
    token_of_slot = positions.new_full((batch, num_blocks * block), length)
    index = torch.arange(length, device=positions.device).expand(batch, length)
    return slot_of_token, token_of_slot.scatter(1, slot_of_token, index)


def count_blocks(starts: torch.Tensor, positions: torch.Tensor, block: int, documents: int | None = None) -> int:
    """Blocks per row that `aligned_slots` needs.

    Exact on the CPU; elsewhere an upper bound from `documents`, the number of documents in a row, where that is
    known, which saves a synchronisation.
    """
    if documents is not None and (starts.device.type != "cpu" or torch.compiler.is_compiling()):
        return starts.shape[1] // block + documents
    return int((positions % block == 0).sum(dim=1).max())


def take_slots(x: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Gathers (B, S, ...) by the indices (B, T) to (B, T, ...); an index of S gives zeros."""
    x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, 1))
    index = slots.reshape(*slots.shape, *([1] * (x.dim() - 2))).expand(*slots.shape, *x.shape[2:])
    return x.gather(1, index)


@dataclass(frozen=True)
class Visibility:
    """The rule for one batch, made once per forward pass by `build` and shared by all layers.

    Attributes:
        length: Tokens L per row.
        causal: Whether keys after the query are hidden.
        group_size: Tokens n per group: the chunk size, or L without chunking.
        mask: (B, L) bool, True at real tokens; None without padding.
        starts: (B, L) bool, True at the first token of every packed document; None without packing.
        num_documents: An upper bound of the documents in a row, where known without looking at values.
        token_of_slot, slot_of_token: The layout in groups where it is not a plain reshape: (B, K * n), (B, L).
        group_mask: (B * K, n) bool, True where a group holds a real token; None if all do.
        spans: First and one past the last key of each query's document, (B, L) each; only for packing without chunks.
    """

    length: int
    causal: bool
    group_size: int
    mask: torch.Tensor | None = None
    starts: torch.Tensor | None = None
    num_documents: int | None = None
    token_of_slot: torch.Tensor | None = None
    slot_of_token: torch.Tensor | None = None
    group_mask: torch.Tensor | None = None
    spans: tuple[torch.Tensor, torch.Tensor] | None = None

    @classmethod
    def build(
        cls,
        attention_mask: torch.Tensor | None,
        length: int,
        *,
        chunk_size: int | None = None,
        causal: bool = False,
        document_starts: torch.Tensor | None = None,
        num_documents: int | None = None,
    ) -> Visibility:
        """Makes the rule.

        Args:
            attention_mask: (B, L), 1 or True at real tokens; None if all are.
            length: Tokens L per row.
            chunk_size: Tokens per chunk; None for attention over the whole document.
            causal: Whether keys after the query are hidden.
            document_starts: (B, L) bool, True at the first token of every packed document.
            num_documents: An upper bound of the documents in a row, where known without looking at values.
        """
        mask = None if attention_mask is None else attention_mask.to(torch.bool)
        can_look = not torch.compiler.is_compiling() and (mask is None or mask.device.type == "cpu")
        if mask is not None and can_look and bool(mask.all()):
            mask = None
        if chunk_size is None or (document_starts is None and length <= chunk_size):
            spans = None if document_starts is None else _document_spans(document_starts)
            return cls(length, causal, length, mask, document_starts, num_documents, group_mask=mask, spans=spans)

        if document_starts is not None:
            starts, num_runs = document_starts, num_documents
            if mask is not None:
                # chunks are counted from the first real token: what stands before it becomes a run of its own
                starts = starts | (mask & (mask.cumsum(dim=1) == 1))
                num_runs = None if num_documents is None else num_documents + 1
            positions = positions_in_documents(starts)
            blocks = count_blocks(starts, positions, chunk_size, num_runs)
            slot_of_token, token_of_slot = aligned_slots(positions, chunk_size, blocks)
            return cls._in_slots(
                length, causal, chunk_size, mask, document_starts, num_documents, slot_of_token, token_of_slot
            )

        padding = -length % chunk_size
        if mask is not None and not (can_look and bool(mask[:, 0].all())):
            # left padding: chunks are counted from the first real token, so put padding behind
            first = mask.int().argmax(dim=1, keepdim=True)
            index = torch.arange(length, device=mask.device)
            token_of_slot = F.pad((index + first) % length, (0, padding), value=length)
            slot_of_token = (index - first) % length
            return cls._in_slots(length, causal, chunk_size, mask, None, None, slot_of_token, token_of_slot)
        group_mask = None
        if mask is not None:
            group_mask = F.pad(mask, (0, padding)).view(-1, chunk_size)
        elif padding:
            device = None if attention_mask is None else attention_mask.device
            real = torch.arange(length + padding, device=device) < length
            group_mask = real.view(-1, chunk_size)
        return cls(length, causal, chunk_size, mask, group_mask=group_mask)

    @classmethod
    def _in_slots(cls, length, causal, chunk_size, mask, starts, num_documents, slot_of_token, token_of_slot):
        real = torch.ones_like(slot_of_token) if mask is None else mask.int()
        group_mask = take_slots(real.unsqueeze(-1), token_of_slot).bool().view(-1, chunk_size)
        return cls(length, causal, chunk_size, mask, starts, num_documents, token_of_slot, slot_of_token, group_mask)

    @property
    def leading(self) -> torch.Tensor | None:
        """(B,) columns before each row's first real token; None if 0 everywhere."""
        if self.mask is None:
            return None
        can_look = not torch.compiler.is_compiling() and self.mask.device.type == "cpu"
        if can_look and bool(self.mask[:, 0].all()):
            return None
        return self.mask.int().argmax(dim=1)

    def pieces(self, tokens: int) -> list[tuple[slice, Visibility]]:
        """The rule cut along the length into pieces of about that many tokens that see nothing of each other.

        One piece, the whole, where groups are no plain reshape or one group is everything.
        """
        step = max(1, tokens // self.group_size) * self.group_size
        if self.token_of_slot is not None or self.starts is not None or self.length <= step:
            return [(slice(0, self.length), self)]
        masks: torch.Tensor | None = None
        if self.group_mask is not None:
            masks = self.group_mask.unflatten(0, (-1, -(-self.length // self.group_size)))
        pieces = []
        for start in range(0, self.length, step):
            stop = min(start + step, self.length)
            first, last = start // self.group_size, -(-stop // self.group_size)
            part = None if masks is None else masks[:, first:last].flatten(0, 1)
            pieces.append(
                (slice(start, stop), Visibility(stop - start, self.causal, self.group_size, group_mask=part))
            )
        return pieces

    def group(self, x: torch.Tensor) -> torch.Tensor:
        """(B, L, f) to (B * K, n, f), empty places zero."""
        if self.token_of_slot is not None:
            x = take_slots(x, self.token_of_slot)
        elif x.shape[1] % self.group_size:
            x = F.pad(x, (0, 0, 0, -x.shape[1] % self.group_size))
        return x.reshape(-1, self.group_size, x.shape[-1])

    def ungroup(self, x: torch.Tensor, batch: int) -> torch.Tensor:
        """(B * K, n, f) back to (B, L, f)."""
        x = x.reshape(batch, -1, x.shape[-1])
        if self.slot_of_token is not None:
            return x.gather(1, self.slot_of_token.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        return x[:, : self.length]

    def expanded_group_mask(self, groups: int) -> torch.Tensor | None:
        """`group_mask` for that many groups (a ragged last chunk is kept for one row of the batch only)."""
        if self.group_mask is None or self.group_mask.shape[0] == groups:
            return self.group_mask
        return self.group_mask.repeat(groups // self.group_mask.shape[0], 1)

    def visible(self, groups: int, device: torch.device) -> torch.Tensor | None:
        """The rule as a matrix, (groups or 1, n, n) bool with True where the query (row) sees the key; None if all do.

        For the plain implementations; costs n * n per group.
        """
        n = self.group_size
        visible = None
        if self.causal:
            visible = torch.ones(1, n, n, dtype=torch.bool, device=device).tril()
        if self.spans is not None:
            keys = torch.arange(n, device=device)
            first, last = self.spans
            inside = (keys >= first.unsqueeze(-1)) & (keys < last.unsqueeze(-1))
            visible = inside if visible is None else visible & inside
        mask = self.expanded_group_mask(groups)
        if mask is not None:
            mask = mask.to(device).unsqueeze(1)
            visible = mask.expand(-1, n, -1) if visible is None else visible & mask
        return visible

    def counts(self, groups: int, device: torch.device) -> torch.Tensor:
        """Number of keys each query sees, at least 1: (groups or 1, n) int64. Element-wise attention divides by it."""
        n = self.group_size
        mask = self.expanded_group_mask(groups)
        real = torch.ones(1, n, dtype=torch.int64, device=device) if mask is None else mask.to(device, torch.int64)
        seen = F.pad(real.cumsum(dim=1), (1, 0))  # real keys before each position, and in all
        index = torch.arange(n, device=device).expand(1, n)
        first, last = torch.zeros_like(index), torch.full_like(index, n)
        if self.spans is not None:
            first, last = self.spans
        if self.causal:
            last = index + 1
        rows = max(seen.shape[0], first.shape[0])
        seen, first, last = (t.expand(rows, -1) for t in (seen, first, last))
        return (seen.gather(1, last) - seen.gather(1, first)).clamp(min=1)


def _document_spans(starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First and one past the last position of each token's document, (B, L) each."""
    length = starts.shape[1]
    index = torch.arange(length, device=starts.device).expand_as(starts)
    first = index - positions_in_documents(starts)
    next_start = F.pad(torch.where(starts, index, length)[:, 1:], (0, 1), value=length)
    last = next_start.flip(1).cummin(dim=1).values.flip(1)
    return first, last
