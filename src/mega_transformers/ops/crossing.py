"""Who sees what of a source: the rule of cross-attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from .continuation import BUDGET, QueryBlock


@dataclass(frozen=True)
class Crossing:
    """Queries of a target over the columns of a source; made once per forward pass by `build`, shared by all layers.

    A query sees every source token that is no padding. The bias goes by absolute positions: that of a key less that of
    its query (authors' `GatedCrossAttention`).

    Attributes:
        length: Target tokens n per row.
        columns: Source columns S.
        start: Column of the first target token, those of earlier forward passes counted: an integer, or a tensor (1,)
            where its value is not to be looked at.
        mask: (B, S) bool, True at source tokens that are no padding; None if all are.
        shift: (B, 1, 1) to be added to the offsets of columns, because positions are counted from the first real token
            of source and target; None if 0 everywhere.
        shared: The blocks of `blocks`, where there is one, made once for all layers.
    """

    length: int
    columns: int
    start: int | torch.Tensor = 0
    mask: torch.Tensor | None = None
    shift: torch.Tensor | None = None
    shared: list[QueryBlock] = field(default_factory=list)

    @classmethod
    def build(
        cls,
        source_mask: torch.Tensor | None,
        columns: int,
        length: int,
        *,
        start: int | torch.Tensor = 0,
        leading: torch.Tensor | None = None,
        count_padding: bool = False,
    ) -> Crossing:
        """Makes the rule.

        Args:
            source_mask: (B, S), 1 or True at source tokens that are no padding; None if all are.
            columns: Source columns S.
            length: Target tokens n.
            start: Column of the first target token.
            leading: (B,) padding columns in front of the target; None for 0.
            count_padding: Whether positions are columns, padding in front counted. Otherwise the first real token of
                source and target has position 0, so that padding on the left changes nothing.
        """
        mask = None if source_mask is None else source_mask.to(torch.bool)
        can_look = not torch.compiler.is_compiling() and (mask is None or mask.device.type == "cpu")
        if mask is not None and can_look and bool(mask.all()):
            mask = None
        if torch.is_tensor(start):
            start = start.clone()  # a cache counts on in place
        shift = None
        if not count_padding:
            if mask is not None and not (can_look and bool(mask[:, 0].all())):
                shift = -mask.int().argmax(dim=1)
            if leading is not None:
                shift = leading if shift is None else leading + shift
        return cls(length, columns, start, mask, None if shift is None else shift.view(-1, 1, 1))

    @property
    def range(self) -> tuple[int, int]:
        """Least and greatest offset that may occur, where `start` is an integer."""
        assert isinstance(self.start, int)
        low, high = 1 - self.start - self.length, self.columns - 1 - self.start
        if self.shift is None:
            return low, high
        return low - self.columns, high + self.start + self.length

    def offsets(self, device: torch.device, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Positions of keys less those of the queries `start ... stop - 1`, by default all: (B or 1, n, S)."""
        stop = self.length if stop is None else stop
        of_key = torch.arange(self.columns, device=device)
        of_query = torch.arange(start, stop, device=device).unsqueeze(1) + self.start
        offsets = (of_key - of_query).unsqueeze(0)
        return offsets if self.shift is None else offsets + self.shift.to(device)

    def visible(self, device: torch.device) -> torch.Tensor | None:
        """(B, 1, S) bool, None if all is visible."""
        return None if self.mask is None else self.mask.to(device).unsqueeze(1)

    def blocks(self, device: torch.device) -> Iterator[QueryBlock]:
        """The queries in blocks whose scores fit into `BUDGET`."""
        height = max(1, BUDGET // self.columns)
        if self.length > height:
            for start in range(0, self.length, height):
                yield self._block(start, min(self.length, start + height), device)
            return
        if not self.shared:
            self.shared.append(self._block(0, self.length, device))
        yield from self.shared

    def _block(self, start: int, stop: int, device: torch.device) -> QueryBlock:
        in_order = isinstance(self.start, int) and self.shift is None
        offsets = None if in_order else self.offsets(device, start, stop)
        offset = -(start + self.start) if isinstance(self.start, int) else 0
        return QueryBlock(start, stop, 0, self.columns, self.visible(device), offset, offsets)
