"""Dropout with 16 random bits an element."""

import pytest
import torch

from mega_transformers.ops.dropout import dropout, keep_mask, kept_share


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("p", [0.1, 0.5, 1e-3])
def test_masks_are_independent_draws(p, dtype):
    torch.manual_seed(0)
    n = 400_001
    mask = keep_mask((n,), p, dtype, torch.device("cpu")).double()
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    deviation = (p * (1 - p) / n) ** 0.5
    assert abs(mask.mean() - kept_share(p)) < 5 * deviation
    assert abs(kept_share(p) - (1 - p)) <= 2**-17
    # neighbours come from one random number: they must not know of each other
    for lag in (1, 2, 3, 4):
        both = (mask[lag:] * mask[:-lag]).mean() - mask.mean() ** 2
        assert abs(both) < 5 * p * (1 - p) / n**0.5


def test_values_and_gradients_are_those_of_one_mask():
    torch.manual_seed(0)
    x = torch.randn(7, 33, dtype=torch.float64, requires_grad=True)
    y = dropout(x, 0.3)
    kept = y != 0
    assert 0 < kept.sum() < kept.numel()
    assert torch.allclose(y[kept], x[kept] / kept_share(0.3))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(gradient, kept.double() / kept_share(0.3))

    def replayed(x):
        torch.manual_seed(1)
        return dropout(x, 0.3)

    assert torch.autograd.gradcheck(replayed, x) and torch.autograd.gradgradcheck(replayed, x)


def test_torch_func_and_seeds():
    x = torch.randn(50)
    torch.manual_seed(3)
    first = dropout(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.5), first) and not torch.equal(dropout(x, 0.5), first)
    gradient = torch.func.grad(lambda x: dropout(x, 0.5).sum())(x)
    assert set(gradient.unique().tolist()) == {0.0, 2.0}
