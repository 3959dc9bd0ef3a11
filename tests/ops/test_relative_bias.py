"""Tables, features and Toeplitz matrices against element-by-element definitions."""

import pytest
import torch

from mega_transformers.ops.relative_bias import BiasTable, RotaryBias, SimpleBias, sum_diagonals, toeplitz


@pytest.mark.parametrize(("rows", "columns"), [(5, 5), (2, 6), (6, 2), (1, 4)])
def test_toeplitz_places_diagonals(rows, columns):
    diagonals = torch.randn(3, rows + columns - 1)
    matrix = toeplitz(diagonals, rows, columns)
    assert matrix.shape == (3, rows, columns)
    for i in range(rows):
        for j in range(columns):
            assert torch.equal(matrix[:, i, j], diagonals[:, j - i + rows - 1])


def test_sum_diagonals_is_the_adjoint_of_toeplitz():
    diagonals, other = torch.randn(8, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    assert torch.allclose((toeplitz(diagonals, 5, 4) * other).sum(), (diagonals * sum_diagonals(other)).sum())
    assert sum_diagonals(torch.ones(2, 3)).tolist() == [1, 2, 2, 1]


def test_rotary_is_an_inner_product_of_rotated_vectors():
    alpha, beta = torch.randn(1, 6, dtype=torch.float64), torch.randn(1, 6, dtype=torch.float64)
    bias, positions = RotaryBias(alpha, beta), torch.arange(7)
    of_query, of_key = bias.query_features(positions), bias.key_features(positions)
    assert torch.allclose(of_query @ of_key.T, bias.table(-6, 6).tile(0, 7, 7)[0])
    # halves are rotated against each other: position 0 leaves them alone
    assert torch.equal(of_query[0], alpha[0])


@pytest.mark.parametrize("place", [0, 40_000, 10_000_000])
def test_rotary_positions_are_exact_far_out(place):
    """4.40.2 computed positions in the parameters' dtype: wrong past 256 in bfloat16."""
    alpha, beta = torch.randn(1, 6), torch.randn(1, 6)
    positions = torch.arange(place, place + 100)
    angles = positions.double().unsqueeze(-1) * 10000.0 ** (-torch.arange(3, dtype=torch.float64) / 3)
    a, b = (torch.complex(*x.double().view(2, 3)) for x in (alpha, beta))
    expected = (torch.polar(torch.ones_like(angles), angles) * b * a.conj()).real.sum(-1)
    assert torch.allclose(RotaryBias(alpha, beta).table(place, place + 99).values.double(), expected, atol=1e-5)
    features = RotaryBias(alpha, beta).key_features(positions).double()
    turned = torch.polar(torch.ones_like(angles), angles) * b
    assert torch.allclose(features, torch.cat([turned.real, turned.imag], dim=-1), atol=1e-5)
    half = RotaryBias(alpha.bfloat16(), beta.bfloat16()).table(place, place + 99).values
    assert torch.allclose(half.double(), expected, atol=0.2)


@pytest.mark.parametrize("bias", [RotaryBias(torch.randn(1, 6), torch.randn(1, 6)), SimpleBias(torch.randn(19), 9)])
def test_tiles_are_parts_of_the_whole(bias):
    whole = bias.table(-8, 8).tile(0, 9, 9)[0]
    table = bias.table(-6, 4)
    assert table.zero == 6 and table.values.shape == (11,)
    assert torch.allclose(table.tile(-1, 2, 5)[0], whole[2:4, 1:6])
    # 0 where the table has no entry, anything there for a distance per row
    assert torch.allclose(table.tile(-8, 1, 17)[0, 0], torch.cat([torch.zeros(2), table.values, torch.zeros(4)]))
    several = table.tiles(torch.tensor([-1, 0]), 2, 3)
    assert torch.allclose(several[:1], table.tile(-1, 2, 3)) and torch.allclose(several[1:], table.tile(0, 2, 3))


def test_no_entry_at_all():
    assert not BiasTable(torch.ones(3), 1).tile(9, 2, 2).any() and not BiasTable(torch.ones(3), 1).tile(-9, 2, 2).any()


def test_simple_bias_indexes_around_its_centre():
    parameter = torch.arange(19.0)
    assert SimpleBias(parameter, 9).table(-2, 2).values.tolist() == [7, 8, 9, 10, 11]
    # trained checkpoints with chunks use the front of the vector
    assert SimpleBias(parameter, 3).table(-2, 2).values.tolist() == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="length=5 is more than the 4 positions"):
        SimpleBias(parameter, 3).table(-4, 4)
