"""Relative position biases of Mega as vectors of diagonals.

Both kinds depend on `key position - query position` only, so a bias for n queries and n keys is a vector of 2n - 1
numbers, `diagonals[(j - i) + n - 1]` for query i and key j (authors' `RelativePositionalBias` modules).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F


def simple_diagonals(rel_pos_bias: torch.Tensor, length: int, centre: int) -> torch.Tensor:
    """Diagonals of the learned bias.

    Args:
        rel_pos_bias: The parameter, a vector whose entry `centre` belongs to a key at the query's own position.
        length: Number n of queries and keys, at most `centre + 1`.
        centre: Index of the main diagonal.

    Returns:
        Vector of 2n - 1 numbers, a view of the parameter.

    Raises:
        ValueError: if the parameter has no entries for that many positions.
    """
    low, high = centre - length + 1, centre + length
    if low < 0 or high > rel_pos_bias.numel():
        raise ValueError(
            f"length={length} is more than the {centre + 1} positions that this relative_positional_bias='simple' "
            "holds; shorten the input, use chunking, or use relative_positional_bias='rotary'"
        )
    return rel_pos_bias[low:high]


def _rotation_angles(positions: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of `positions` times 10000^(-k / (width / 2)), k = 0 ... width / 2 - 1, in float64."""
    half = width // 2
    exponents = torch.arange(half, device=positions.device, dtype=torch.float64) / -half
    angles = positions.to(torch.float64).unsqueeze(-1) * torch.pow(10000.0, exponents)
    return angles.cos(), angles.sin()


def rotary_diagonals(alpha: torch.Tensor, beta: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """The rotary bias <R_i alpha, R_j beta> at some offsets j - i.

    Args:
        alpha, beta: The parameters, z numbers each (any shape), z even.
        offsets: (...) integers.

    Returns:
        (...) in the dtype of the parameters.
    """
    width = alpha.numel()
    cos, sin = (table.to(alpha.dtype) for table in _rotation_angles(offsets, width))
    a1, a2 = alpha.reshape(2, width // 2)
    b1, b2 = beta.reshape(2, width // 2)
    return cos @ (a1 * b1 + a2 * b2) + sin @ (a2 * b1 - a1 * b2)


def rotary_features(vector: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """`vector` (z numbers) rotated to the integer positions (...): shape (..., z).

    The rotary bias is an inner product of such features, so appending those of `alpha` to the queries and those of
    `beta` to the keys adds the bias inside any attention kernel.
    """
    cos, sin = _rotation_angles(positions, vector.numel())
    cos, sin = cos.to(vector.dtype), sin.to(vector.dtype)
    first, second = vector.reshape(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def toeplitz(diagonals: torch.Tensor, rows: int | None = None, start: int = 0) -> torch.Tensor:
    """Rows `start ... start + rows - 1` of the matrix M[i, j] = diagonals[..., (j - i) + n - 1].

    Args:
        diagonals: (..., 2n - 1).
        rows: Number of rows; n by default.
        start: First row.

    Returns:
        (..., rows, n).
    """
    n = (diagonals.shape[-1] + 1) // 2
    rows = n - start if rows is None else rows
    # window a of the diagonals is row n - 1 - a
    first = n - start - rows
    return diagonals[..., first : first + rows + n - 1].unfold(-1, n, 1).flip(-2)


def sum_diagonals(matrix: torch.Tensor) -> torch.Tensor:
    """Adjoint of `toeplitz`: sums (..., r, n) along j - i = constant to (..., r + n - 1), lowest diagonal first."""
    rows, columns = matrix.shape[-2:]
    width = rows + columns - 1
    # flipped row a must start in column a: pad it by one column more than `width` and read with rows of `width`
    skewed = F.pad(matrix.flip(-2), (0, rows)).flatten(-2)[..., : rows * width]
    return skewed.unflatten(-1, (rows, width)).sum(-2)


class BiasTable(NamedTuple):
    """The values of a bias at consecutive offsets: `values` (n,), of which entry `zero` belongs to offset 0."""

    values: torch.Tensor
    zero: int

    def at(self, offsets: torch.Tensor) -> torch.Tensor:
        """The bias at offsets (...), anything where the table has no entry."""
        return self.values[(self.zero + offsets).clamp(0, self.values.shape[0] - 1)]

    def rows(self, offset: int, rows: int, columns: int) -> torch.Tensor:
        """The bias (rows, columns) at offsets `offset + column - row`; 0 above the last entry."""
        first = self.zero + offset - (rows - 1)
        window = self.values[first : first + rows + columns - 1]
        if window.shape[0] < rows + columns - 1:
            window = F.pad(window, (0, rows + columns - 1 - window.shape[0]))
        return window.unfold(0, columns, 1).flip(0) if rows > 1 else window.unsqueeze(0)


class SimpleBias(NamedTuple):
    """A learned bias: the parameter vector and the index of its main diagonal."""

    rel_pos_bias: torch.Tensor
    centre: int

    def diagonals(self, length: int) -> torch.Tensor:
        """See `simple_diagonals`."""
        return simple_diagonals(self.rel_pos_bias, length, self.centre)

    def at(self, offsets: torch.Tensor) -> torch.Tensor:
        """The bias at offsets (...), 0 where the parameter has no entry."""
        index = offsets + self.centre
        last = self.rel_pos_bias.numel() - 1
        return self.rel_pos_bias[index.clamp(0, last)].masked_fill((index < 0) | (index > last), 0.0)

    def table(self, low: int, high: int) -> BiasTable:
        """The bias at offsets low ... high, 0 where the parameter has no entry."""
        start, stop, size = self.centre + low, self.centre + high + 1, self.rel_pos_bias.numel()
        first, last = min(max(start, 0), size), min(max(stop, 0), size)
        if first == last:
            return BiasTable(self.rel_pos_bias.new_zeros(stop - start), -low)
        return BiasTable(F.pad(self.rel_pos_bias[first:last], (first - start, stop - last)), -low)


class RotaryBias(NamedTuple):
    """The rotary bias <R_i alpha, R_j beta>."""

    alpha: torch.Tensor
    beta: torch.Tensor

    def diagonals(self, length: int) -> torch.Tensor:
        """The bias at offsets 1 - length ... length - 1; see `rotary_diagonals`."""
        return self.table(1 - length, length - 1).values

    def at(self, offsets: torch.Tensor) -> torch.Tensor:
        """The bias at offsets (...); see `rotary_diagonals`."""
        return rotary_diagonals(self.alpha, self.beta, offsets)

    def table(self, low: int, high: int) -> BiasTable:
        """The bias at offsets low ... high."""
        return BiasTable(self.at(torch.arange(low, high + 1, device=self.alpha.device)), -low)

    def query_features(self, positions: torch.Tensor) -> torch.Tensor:
        """What to append to queries at positions (...): (..., z); see `rotary_features`."""
        return rotary_features(self.alpha, positions)

    def key_features(self, positions: torch.Tensor) -> torch.Tensor:
        """What to append to keys at positions (...): (..., z)."""
        return rotary_features(self.beta, positions)


RelativeBias = SimpleBias | RotaryBias
