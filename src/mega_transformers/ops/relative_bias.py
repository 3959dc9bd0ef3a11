"""Relative position biases of Mega as vectors.

Both kinds depend on the distance, key position - query position, only: a bias of n queries and n keys is a vector of
2n - 1 numbers (authors' `RelativePositionalBias` modules).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .layout import is_open


class BiasTable(NamedTuple):
    """A bias at consecutive distances: `values` (n,), with entry `zero` at distance 0."""

    values: torch.Tensor
    zero: int

    def tile(self, distance: int, rows: int, columns: int) -> torch.Tensor:
        """(1, rows, columns) with the bias at distance `distance + j - i` at row i and column j; a view if rows = 1.

        0 beyond the entries, for keys that no query sees.
        """
        if is_open(rows + columns):  # the end of a window would tie a graph to one length
            return self.tiles(torch.full((1,), distance, device=self.values.device), rows, columns)
        first, stop = self.span(distance, rows, columns)
        window = self.values[max(first, 0) : max(stop, 0)]
        missing = rows + columns - 1 - window.shape[0]
        if missing:
            before = min(max(-first, 0), missing)
            window = F.pad(window, (before, missing - before))
        return window.view(1, 1, columns) if rows == 1 else toeplitz(window, rows, columns).unsqueeze(0)

    def span(self, distance: int, rows: int, columns: int) -> tuple[int, int]:
        """The range of entries that `tile` reads, which may exceed the existing ones: first, and one past the last."""
        first = self.zero + distance - (rows - 1)
        return first, first + rows + columns - 1

    def tiles(self, distance: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """`tile` for a distance (B,) per row of the batch: (B, rows, columns); any value beyond the entries."""
        return toeplitz(self.values[self.window(distance, rows, columns)], rows, columns)

    def window(self, distance: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """The entries that `tiles` reads: (B, rows + columns - 1) indices."""
        first = self.zero + distance - (rows - 1)
        index = first.unsqueeze(1) + torch.arange(rows + columns - 1, device=distance.device)
        return index.clamp(0, self.values.shape[0] - 1)


def toeplitz(diagonals: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """M[..., i, j] = diagonals[..., rows - 1 + j - i]: (..., rows + columns - 1) to (..., rows, columns)."""
    if is_open(rows + columns):  # the number of columns of `unfold` must not be symbolic
        row, column = (torch.arange(n, device=diagonals.device) for n in (rows, columns))
        return diagonals[..., column - row.unsqueeze(1) + (rows - 1)]
    return diagonals.unsqueeze(-2) if rows == 1 else diagonals.unfold(-1, columns, 1).flip(-2)


def sum_diagonals(matrix: torch.Tensor, scratch: torch.Tensor | None = None) -> torch.Tensor:
    """Adjoint of `toeplitz`: sums (..., r, n) along j - i = constant to (..., r + n - 1), lowest diagonal first.

    `scratch` (..., r, r + n - 1) is memory to work in.
    """
    rows, columns = matrix.shape[-2:]
    width = rows + columns - 1
    # in rows of `width`, row i must start at column rows - 1 - i
    skewed = matrix.new_empty(*matrix.shape[:-2], rows, width) if scratch is None else scratch
    skewed.zero_()
    batch = skewed.view(-1, rows * width)
    places = batch.as_strided((batch.shape[0], rows, columns), (rows * width, width - 1, 1), rows - 1)
    places.copy_(matrix.reshape(-1, rows, columns))
    return skewed.sum(-2)


def rotation_angles(positions: torch.Tensor, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Integer positions (...) times 10000^(-k / (width / 2)), k = 0 ... width / 2 - 1, modulo 2 pi: (..., width / 2).

    Positions are multiplied in integers of 2^-64 turns, whose overflow drops whole turns: exact for any length without
    float64, which some devices lack.
    """
    half = width // 2
    turns = [int(10000.0 ** (-k / half) / (2 * math.pi) * 2.0**64) for k in range(half)]
    phase = positions.unsqueeze(-1) * torch.tensor(turns).to(positions.device, non_blocking=True)
    return phase.to(dtype) * (2 * math.pi / 2.0**64)


class SimpleBias(NamedTuple):
    """A learned bias: a vector with entry `centre` at distance 0."""

    rel_pos_bias: torch.Tensor
    centre: int

    @property
    def reach(self) -> int:
        """The greatest distance with an entry."""
        return self.centre

    def table(self, low: int, high: int) -> BiasTable:
        """The bias at distances low ... high, a view of the parameter.

        Raises:
            ValueError: if the parameter has no entries for them.
        """
        if low < -self.centre or high > self.centre:
            raise ValueError(
                f"length={max(-low, high) + 1} is more than the {self.centre + 1} positions of "
                "relative_positional_bias='simple' here; shorten the input, use chunking, or use "
                "relative_positional_bias='rotary'"
            )
        return BiasTable(self.rel_pos_bias[self.centre + low : self.centre + high + 1], -low)

    def at(self, distances: torch.Tensor) -> torch.Tensor:
        """The bias at integer distances (...), all of which have an entry: (...)."""
        return self.rel_pos_bias[self.centre + distances]


class RotaryBias(NamedTuple):
    """The rotary bias <R_i alpha, R_j beta> with R_p the rotation to position p.

    Attributes:
        alpha, beta: Vectors of z numbers, z even, of any shape.
    """

    alpha: torch.Tensor
    beta: torch.Tensor

    @property
    def reach(self) -> int:
        """Greatest distance that has a bias: unlimited."""
        return 1 << 62

    def table(self, low: int, high: int) -> BiasTable:
        """The bias at distances low ... high."""
        return BiasTable(self.at(torch.arange(low, high + 1, device=self.alpha.device)), -low)

    def at(self, distances: torch.Tensor) -> torch.Tensor:
        """The bias at integer distances (...): (...)."""
        cos, sin = self._cos_and_sin(distances)
        a1, a2 = self.alpha.reshape(2, -1)
        b1, b2 = self.beta.reshape(2, -1)
        return cos @ (a1 * b1 + a2 * b2) + sin @ (a2 * b1 - a1 * b2)

    def query_features(self, positions: torch.Tensor) -> torch.Tensor:
        """Features to append to queries at integer positions (...): (..., z).

        The bias is the inner product of these features with those of the keys, so any attention kernel can add it.
        """
        return self._rotated(self.alpha, positions)

    def key_features(self, positions: torch.Tensor) -> torch.Tensor:
        """Features to append to keys at integer positions (...): (..., z)."""
        return self._rotated(self.beta, positions)

    def _cos_and_sin(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = self.alpha.dtype
        angles = rotation_angles(positions, self.alpha.numel(), torch.promote_types(dtype, torch.float32))
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def _rotated(self, vector: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        cos, sin = self._cos_and_sin(positions)
        first, second = vector.reshape(2, -1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


RelativeBias = SimpleBias | RotaryBias
