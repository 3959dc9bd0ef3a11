"""Forms of cross-attention against its definition: values, weights and every gradient."""

import itertools

import pytest
import torch

import mega_transformers.ops.crossing as crossing_module
from mega_transformers.ops.attention import attention_cross
from mega_transformers.ops.crossing import Crossing
from mega_transformers.ops.relative_bias import RotaryBias, SimpleBias

B, Z, H = 3, 6, 7
MASKS = {
    "none": None,
    "right": [[1] * 9, [1] * 4 + [0] * 5, [1] + [0] * 8],
    "left": [[0] * 3 + [1] * 6, [1] * 9, [0] * 8 + [1]],
    "gap": [[1, 0, 1, 1, 0, 0, 1, 1, 1], [1] * 9, [0, 1, 0, 1, 0, 1, 0, 1, 0]],
    "nothing": [[0] * 9, [1] * 9, [1] * 9],
}
BIASES = ("rotary", "simple", "none")
RULES = {
    "whole": {},
    "later": {"start": 5},
    "leading": {"leading": torch.tensor([0, 2, 4])},
    "columns": {"count_padding": True, "leading": torch.tensor([0, 2, 4])},
}


def problem(bias, dtype, n=5, columns=9):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    q, k, v = draw(B, n, Z), draw(B, columns, Z), draw(B, columns, H)
    if bias == "rotary":
        parameters = (draw(1, Z), draw(1, Z))
        return (q, k, v), parameters, RotaryBias(*parameters)
    if bias == "simple":
        parameters = (draw(2 * 20 - 1),)
        return (q, k, v), parameters, SimpleBias(*parameters, 19)
    return (q, k, v), (), None


def gradients(output, leaves):
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return torch.autograd.grad((output * weight).sum(), leaves, allow_unused=True)


@pytest.mark.parametrize(("backend", "activation"), [
    ("blockwise", "softmax"), ("blockwise", "laplace"), ("blockwise", "relu2"), ("sdpa", "softmax"),
])  # fmt: skip
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("blocks", [1, 3])
def test_forms_agree(backend, activation, bias, dtype, blocks, monkeypatch):
    tensors, parameters, module = problem(bias, dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 3e-5
    monkeypatch.setattr(crossing_module, "BUDGET", 9 * -(-5 // blocks))
    for mask, fields in itertools.product(MASKS.values(), RULES.values()):
        mask = None if mask is None else torch.tensor(mask)
        rule = Crossing.build(mask, 9, 5, **fields)
        results = []
        for form in ("reference", backend):
            output, _ = attention_cross(*tensors, module, rule, activation=activation, backend=form)
            results.append((output, *gradients(output, (*tensors, *parameters))))
        for expected, got in zip(*results):
            assert got.isfinite().all()
            assert (got - expected).abs().max() <= tolerance * (1 + expected.abs().max())


@pytest.mark.parametrize("activation", ["softmax", "laplace", "relu2"])
@pytest.mark.parametrize("bias", BIASES)
def test_definition(activation, bias):
    """The reference, written out for one query at a time."""
    (q, k, v), _, module = problem(bias, torch.float64)
    mask = torch.tensor(MASKS["left"])
    rule = Crossing.build(mask, 9, 5, start=2, leading=torch.tensor([1, 0, 0]))
    output, weights = attention_cross(q, k, v, module, rule, activation=activation, need_weights=True)
    for row, t in itertools.product(range(B), range(5)):
        seen = mask[row].nonzero().flatten()
        query_position = 2 + t - (1 if row == 0 else 0)
        scale = Z**-0.5 if activation == "softmax" else 1 / len(seen)
        scores = torch.stack([q[row, t] @ k[row, j] for j in seen]) * scale
        if module is not None:
            scores = scores + module.at(torch.arange(len(seen)) - query_position)
        if activation == "softmax":
            expected = scores.softmax(0)
        elif activation == "relu2":
            expected = scores.clamp(min=0) ** 2
        else:
            expected = 0.5 * (1 + torch.erf((scores - 0.5**0.5) / ((0.25 / torch.pi) ** 0.5 * 2**0.5)))
        assert torch.allclose(weights[row, 0, t, seen], expected, atol=1e-12)
        assert not weights[row, 0, t, mask[row] == 0].any()
        assert torch.allclose(output[row, t], expected @ v[row, seen], atol=1e-12)


def test_a_source_of_padding_gives_nothing():
    (q, k, v), _, module = problem("rotary", torch.float64)
    rule = Crossing.build(torch.tensor(MASKS["nothing"]), 9, 5)
    for activation in ("softmax", "laplace", "relu2"):
        output, _ = attention_cross(q, k, v, module, rule, activation=activation)
        assert not output[0].any() and output[1:].all()


def test_dropout_keeps_the_mean():
    (q, k, v), _, module = problem("simple", torch.float64)
    rule = Crossing.build(None, 9, 5)
    with torch.no_grad():
        whole, _ = attention_cross(q, k, v, module, rule)
        torch.manual_seed(0)
        draws = torch.stack([attention_cross(q, k, v, module, rule, dropout=0.3)[0] for _ in range(3000)])
    assert (draws[0] - whole).abs().max() > 0.01
    assert (draws.mean(0) - whole).abs().max() < 0.05


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"activation": "relu"}, "activation='relu' is unknown"),
        ({"backend": "flex"}, "backend='flex' is unknown"),
        ({"backend": "sdpa", "activation": "laplace"}, "computes softmax only"),
        ({"backend": "sdpa", "need_weights": True}, "returns no weights"),
    ],
)
def test_unknown_and_impossible_requests_are_refused(request_, message):
    (q, k, v), _, module = problem("simple", torch.float64)
    with pytest.raises(ValueError, match=message):
        attention_cross(q, k, v, module, Crossing.build(None, 9, 5), **request_)
