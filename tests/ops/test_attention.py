"""Every form of attention against its definition, and the rule of visibility against a double loop."""

import itertools

import pytest
import torch
from torch.autograd import grad

from mega_transformers.ops.activations import ELEMENTWISE
from mega_transformers.ops.attention import attention, blockwise
from mega_transformers.ops.relative_bias import RotaryBias, SimpleBias
from mega_transformers.ops.visibility import Visibility

ACTIVATIONS = ["softmax", "laplace", "relu2"]
BATCH, WIDTH, VALUES = 2, 6, 5


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of a few queries, so that short inputs take several."""
    monkeypatch.setattr(blockwise, "CPU_BUDGET", 40)


def make_bias(kind, dtype=torch.float64):
    if kind == "simple":
        parameters = [torch.randn(41, dtype=dtype, requires_grad=True)]
        return SimpleBias(parameters[0], 20), parameters
    if kind == "rotary":
        parameters = [torch.randn(1, WIDTH, dtype=dtype, requires_grad=True) for _ in range(2)]
        return RotaryBias(*parameters), parameters
    return None, []


def make_mask(padding, length):
    mask = torch.ones(BATCH, length, dtype=torch.long)
    if padding == "right":
        mask[0, (length + 1) // 2 :] = 0
    elif padding == "left":
        mask[0, : length // 2] = 0
    elif padding == "row":
        mask[1] = 0
    return None if padding == "none" else mask


def who_sees_whom(mask, length, chunk, causal, starts):
    """The rule, written as it is said."""
    seen = torch.zeros(BATCH, length, length, dtype=torch.bool)
    for row in range(BATCH):
        real = [True] * length if mask is None else mask[row].bool().tolist()
        first_real = real.index(True) if any(real) else 0
        document, position, documents, positions = 0, 0, [], []
        for t in range(length):
            if starts is not None and starts[row, t]:
                document, position = document + 1, 0
            if t == first_real:
                position = 0
            documents.append(document)
            positions.append(position if t >= first_real else position - 10**6)
            position += 1
        for i, j in itertools.product(range(length), repeat=2):
            same_chunk = chunk is None or positions[i] // chunk == positions[j] // chunk
            seen[row, i, j] = real[j] and documents[i] == documents[j] and same_chunk and (not causal or j <= i)
    return seen


def by_definition(q, k, v, bias, seen, activation):
    length = q.shape[1]
    scores = q @ k.transpose(1, 2)
    matrix = 0.0
    if bias is not None:
        diagonals = bias.diagonals(length)
        offsets = torch.arange(length) - torch.arange(length)[:, None]
        matrix = diagonals[offsets + length - 1]
    if activation == "softmax":
        weights = (scores * WIDTH**-0.5 + matrix).masked_fill(~seen, -1e300).softmax(-1)
    else:
        count = seen.sum(-1, keepdim=True).clamp(min=1)
        weights = ELEMENTWISE[activation].function(scores / count + matrix)
    return weights.masked_fill(~seen, 0.0) @ v


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("padding", ["none", "right", "left", "row"])
@pytest.mark.parametrize("kind", ["none", "simple", "rotary"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_forms_agree_with_the_rule(activation, kind, padding, packed):
    torch.manual_seed(0)
    for length, chunk, causal in itertools.product((1, 4, 11), (None, 4, 5, 16), (False, True)):
        q, k = (torch.randn(BATCH, length, WIDTH, dtype=torch.float64, requires_grad=True) for _ in range(2))
        v = torch.randn(BATCH, length, VALUES, dtype=torch.float64, requires_grad=True)
        bias, parameters = make_bias(kind)
        mask = make_mask(padding, length)
        starts = None
        if packed:
            starts = torch.zeros(BATCH, length, dtype=torch.bool)
            starts[:, ::3] = True
        rule = Visibility.build(mask, length, chunk_size=chunk, causal=causal, document_starts=starts)
        seen = who_sees_whom(mask, length, chunk, causal, starts)
        real = torch.ones(BATCH, length, dtype=torch.bool) if mask is None else mask.bool()
        # what a padded query outputs is nobody's business
        weight = torch.randn_like(v) * real.unsqueeze(-1)
        inputs = [q, k, v, *parameters]

        output = by_definition(q, k, v, bias, seen, activation)
        expected = [output * real.unsqueeze(-1), *grad((output * weight).sum(), inputs)]
        for backend in ["reference", "blockwise", *(["sdpa"] if activation == "softmax" else [])]:
            output, _ = attention(q, k, v, bias, rule, activation=activation, backend=backend)
            got = [output * real.unsqueeze(-1), *grad((output * weight).sum(), inputs)]
            for name, a, b in zip(["output", "q", "k", "v", "bias", "bias"], got, expected):
                error = (a - b).abs().max() / (1 + b.abs().max())
                assert error < 1e-12, (backend, name, length, chunk, causal)


@pytest.mark.parametrize("kind", ["none", "simple", "rotary"])
@pytest.mark.parametrize("causal", [False, True])
def test_flex_attention_agrees(kind, causal):
    torch.manual_seed(0)
    q, k = (torch.randn(BATCH, 9, 8) for _ in range(2))
    v = torch.randn(BATCH, 9, 16)
    bias = None
    if kind == "simple":
        bias = SimpleBias(torch.randn(41), 20)
    elif kind == "rotary":
        bias = RotaryBias(torch.randn(1, 8), torch.randn(1, 8))
    for mask in (None, make_mask("left", 9), make_mask("row", 9)):
        rule = Visibility.build(mask, 9, chunk_size=4, causal=causal)
        expected, _ = attention(q, k, v, bias, rule, backend="reference")
        got, _ = attention(q, k, v, bias, rule, backend="flex")
        assert torch.allclose(got, expected, atol=2e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", ["simple", "rotary"])
def test_float32(activation, kind):
    torch.manual_seed(1)
    q, k = (torch.randn(1, 50, WIDTH, requires_grad=True) for _ in range(2))
    v = torch.randn(1, 50, VALUES, requires_grad=True)
    bias, parameters = make_bias(kind, torch.float32)
    rule = Visibility.build(None, 50, chunk_size=20)
    results = []
    for backend in ("reference", "blockwise"):
        output, _ = attention(q, k, v, bias, rule, activation=activation, backend=backend)
        results.append([output, *grad(output.square().sum(), [q, k, v, *parameters])])
    for got, want in zip(*results):
        assert ((got - want).abs().max() / (1 + want.abs().max())) < 2e-6


def test_weights_have_a_chunk_axis():
    q = k = torch.randn(2, 11, 4)
    v = torch.randn(2, 11, 3)
    output, weights = attention(q, k, v, None, Visibility.build(None, 11, chunk_size=4), need_weights=True)
    assert weights.shape == (2, 3, 4, 4)
    assert torch.allclose((weights[:, :2] @ v[:, :8].view(2, 2, 4, 3)).view(2, 8, 3), output[:, :8], atol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dropout_is_replayed_in_the_backward_pass(activation):
    """The gradient of a linear function of v is that function's matrix: it must use the forward pass' dropout."""
    torch.manual_seed(0)
    q, k = (torch.randn(1, 12, 4, dtype=torch.float64) for _ in range(2))
    v = torch.randn(1, 12, 3, dtype=torch.float64, requires_grad=True)
    rule = Visibility.build(None, 12)
    output, _ = attention(q, k, v, None, rule, activation=activation, dropout=0.5, backend="blockwise")
    (gradient,) = grad(output.sum(), v)
    assert torch.allclose((gradient * v).sum(), output.sum())
    full, _ = attention(q, k, v, None, rule, activation=activation, backend="blockwise")
    assert not torch.allclose(full, output)


def test_dropout_keeps_the_expectation():
    torch.manual_seed(0)
    q = k = torch.zeros(1, 64, 2)
    v = torch.ones(1, 64, 200)
    output, _ = attention(q, k, v, None, Visibility.build(None, 64), dropout=0.25, backend="blockwise")
    # 64 queries, each a mean of 64 weights kept with probability 0.75: the standard error is below 0.01
    assert abs(output.mean().item() - 1) < 0.05


def test_unknown_and_impossible_requests_are_refused():
    q = k = torch.randn(1, 4, 2)
    v = torch.randn(1, 4, 3)
    rule = Visibility.build(None, 4)
    with pytest.raises(ValueError, match="known are softmax, laplace, relu2"):
        attention(q, k, v, None, rule, activation="tanh")
    with pytest.raises(ValueError, match="known are reference"):
        attention(q, k, v, None, rule, backend="magic")
    with pytest.raises(ValueError, match="softmax only"):
        attention(q, k, v, None, rule, activation="laplace", backend="sdpa")
    with pytest.raises(ValueError, match="returns no weights"):
        attention(q, k, v, None, rule, need_weights=True, backend="sdpa")
    with pytest.raises(ValueError, match="holds"):
        attention(q, k, v, SimpleBias(torch.zeros(5), 2), rule)


def test_second_derivatives_are_refused_by_the_blocks():
    """They have a backward pass of their own; `backend="reference"` gives second derivatives."""
    q, k, v = (torch.randn(1, 9, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    rule = Visibility.build(None, 9, chunk_size=None, causal=True)
    output, _ = attention(q, k, v, None, rule, backend="blockwise")
    with pytest.raises(RuntimeError, match="blockwise attention has no second derivatives"):
        grad(output.square().sum(), q, create_graph=True)
    assert torch.autograd.gradgradcheck(lambda *qkv: attention(*qkv, None, rule, backend="reference")[0], (q, k, v))
