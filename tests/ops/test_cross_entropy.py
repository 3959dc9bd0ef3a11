"""The fused head and loss against PyTorch's."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import grad

from mega_transformers.ops import cross_entropy
from mega_transformers.ops.cross_entropy import linear_cross_entropy


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("ignored", ["none", "some", "all"])
@pytest.mark.parametrize("use_logits", [False, True])
def test_equals_cross_entropy_with_every_gradient(monkeypatch, with_bias, ignored, use_logits):
    monkeypatch.setattr(cross_entropy, "CPU_BUDGET", 40)
    torch.manual_seed(0)
    hidden = torch.randn(13, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(11, dtype=torch.float64, requires_grad=True) if with_bias else None
    labels = torch.randint(0, 11, (13,))
    if ignored == "some":
        labels[::3] = -100
    elif ignored == "all":
        labels[:] = -100
    mix = torch.randn(13, 11, dtype=torch.float64)
    inputs = [t for t in (hidden, weight, bias) if t is not None]

    logits = F.linear(hidden, weight, bias)
    expected = F.cross_entropy(logits, labels, reduction="sum")
    total, got_logits = linear_cross_entropy(hidden, weight, bias, labels)
    assert torch.allclose(total, expected)
    assert torch.equal(got_logits, logits)
    if use_logits:  # distillation, say: a second loss on the same logits
        expected = expected + (logits * mix).sum()
        total = total + (got_logits * mix).sum()
    for a, b in zip(grad(total * 0.5, inputs), grad(expected * 0.5, inputs)):
        assert torch.allclose(a, b, atol=1e-12)


def test_half_precision_accumulates_in_float32():
    torch.manual_seed(0)
    hidden, weight = torch.randn(64, 16), torch.randn(100, 16)
    labels = torch.randint(0, 100, (64,))
    with torch.autocast("cpu", torch.bfloat16):
        total, logits = linear_cross_entropy(hidden, weight, None, labels)
    assert logits.dtype == torch.bfloat16
    assert total.dtype == torch.float32
    assert torch.allclose(total, F.cross_entropy(logits.float(), labels, reduction="sum"), rtol=1e-5)


@pytest.mark.parametrize("with_bias", [True, False])
def test_second_derivatives(with_bias):
    hidden = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True) if with_bias else None
    labels = torch.tensor([0, -100, 4, 2, 2, -100, 1])
    inputs = (hidden, weight) if bias is None else (hidden, weight, bias)

    def run(hidden, weight, bias=None):
        return linear_cross_entropy(hidden, weight, bias, labels)

    assert torch.autograd.gradcheck(run, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, inputs, check_fwd_over_rev=True)
