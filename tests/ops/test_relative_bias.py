"""Diagonals, features and Toeplitz matrices against element-by-element definitions."""

import pytest
import torch

from mega_transformers.ops.relative_bias import (
    RotaryBias,
    SimpleBias,
    rotary_diagonals,
    simple_diagonals,
    sum_diagonals,
    toeplitz,
)


def test_toeplitz_places_diagonals_and_rows():
    diagonals = torch.randn(3, 9)
    matrix = toeplitz(diagonals)
    for i in range(5):
        for j in range(5):
            assert torch.equal(matrix[:, i, j], diagonals[:, j - i + 4])
    assert torch.equal(toeplitz(diagonals, 2, 1), matrix[:, 1:3])


def test_sum_diagonals_is_the_adjoint_of_toeplitz():
    diagonals, other = torch.randn(9, dtype=torch.float64), torch.randn(5, 5, dtype=torch.float64)
    assert torch.allclose((toeplitz(diagonals) * other).sum(), (diagonals * sum_diagonals(other)).sum())
    assert sum_diagonals(torch.ones(2, 3)).tolist() == [1, 2, 2, 1]


def test_rotary_is_an_inner_product_of_rotated_vectors():
    alpha, beta = torch.randn(1, 6, dtype=torch.float64), torch.randn(1, 6, dtype=torch.float64)
    bias, positions = RotaryBias(alpha, beta), torch.arange(7)
    of_query, of_key = bias.query_features(positions), bias.key_features(positions)
    assert torch.allclose(of_query @ of_key.T, toeplitz(RotaryBias(alpha, beta).diagonals(7)))
    # halves are rotated against each other: position 0 leaves them alone
    assert torch.equal(of_query[0], alpha[0])


def test_rotary_positions_are_exact_far_out():
    """4.40.2 computed positions in the parameters' dtype: wrong past 256 in bfloat16."""
    alpha, beta = torch.randn(1, 6, dtype=torch.float64), torch.randn(1, 6, dtype=torch.float64)
    offsets = torch.arange(-40_000, 40_000)
    far = rotary_diagonals(alpha.float(), beta.float(), offsets)
    assert torch.allclose(
        far.double(), rotary_diagonals(alpha.float().double(), beta.float().double(), offsets), atol=1e-5
    )


@pytest.mark.parametrize(
    "bias",
    [RotaryBias(torch.randn(1, 6), torch.randn(1, 6)), SimpleBias(torch.randn(19), 9)],
    ids=["rotary", "simple"],
)
def test_tables_hold_what_diagonals_and_single_offsets_give(bias):
    table = bias.table(-6, 4)
    assert table.zero == 6
    assert torch.allclose(table.values, bias.diagonals(7)[:11])
    assert torch.allclose(table.at(torch.arange(-6, 5)), bias.at(torch.arange(-6, 5)))
    # rows 2 and 3 of queries, columns 1 ... 5 of keys
    rows = table.rows(-1, 2, 5)
    assert torch.allclose(rows, toeplitz(bias.diagonals(7))[2:4, 1:6])


@pytest.mark.parametrize(("low", "high"), [(-12, 0), (-12, 12), (-3, 11), (-30, -20), (15, 18)])
def test_simple_bias_is_0_beyond_its_parameter(low, high):
    simple = SimpleBias(torch.randn(19), 9)
    offsets = torch.arange(low, high + 1)
    expected = torch.tensor([float(simple.rel_pos_bias[9 + o]) if -9 <= o <= 9 else 0.0 for o in offsets.tolist()])
    assert torch.equal(simple.table(low, high).values, expected)
    assert torch.equal(simple.at(offsets), expected)


def test_simple_bias_indexes_around_its_centre():
    parameter = torch.arange(19.0)
    assert simple_diagonals(parameter, 3, 9).tolist() == [7, 8, 9, 10, 11]
    # trained checkpoints with chunks use the front of the vector
    assert simple_diagonals(parameter, 3, 3).tolist() == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="length=5 is more than the 4 positions"):
        simple_diagonals(parameter, 5, 3)
