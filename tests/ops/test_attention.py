"""Every form of attention against its definition, for every kind of layout; values, weights and every gradient."""

import itertools

import pytest
import torch
from layouts import BATCH, cached_cases, cross_cases, self_cases
from torch.autograd import grad

from mega_transformers.ops.activations import ELEMENTWISE
from mega_transformers.ops.attention import attention, fused, tiled
from mega_transformers.ops.layout import self_attention_layout
from mega_transformers.ops.relative_bias import RotaryBias, SimpleBias

ACTIVATIONS = ["softmax", "laplace", "relu2"]
WIDTH, VALUES = 6, 5
CASES = [*self_cases(), *cached_cases(), *cross_cases()]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles of a few queries, so that short inputs take several."""
    monkeypatch.setattr(tiled, "CPU_BUDGET", 40)


def make_bias(kind, dtype=torch.float64):
    if kind == "simple":
        parameters = [torch.randn(41, dtype=dtype, requires_grad=True)]
        return SimpleBias(parameters[0], 20), parameters
    if kind == "rotary":
        parameters = [torch.randn(1, WIDTH, dtype=dtype, requires_grad=True) for _ in range(2)]
        return RotaryBias(*parameters), parameters
    return None, []


def by_definition(q, k, v, bias, case, activation):
    scores, matrix = q @ k.transpose(1, 2), 0.0
    if bias is not None:
        low, high = int(case.distances.min()), int(case.distances.max())
        values, zero = bias.table(max(low, -bias.reach), min(high, bias.reach))
        matrix = values[(zero + case.distances).clamp(0, len(values) - 1)]
    seen = case.seen
    if activation == "softmax":
        weights = (scores * WIDTH**-0.5 + matrix).masked_fill(~seen, -1e300).softmax(-1)
    else:
        count = seen.sum(-1, keepdim=True).clamp(min=1)
        weights = ELEMENTWISE[activation].function(scores / count + matrix)
    return weights.masked_fill(~seen, 0.0) @ v


def draw(case, dtype=torch.float64):
    q = torch.randn(BATCH, case.layout.queries, WIDTH, dtype=dtype, requires_grad=True)
    k = torch.randn(BATCH, case.layout.keys, WIDTH, dtype=dtype, requires_grad=True)
    v = torch.randn(BATCH, case.layout.keys, VALUES, dtype=dtype, requires_grad=True)
    return [q, k, v]


def forms(activation):
    return ["reference", "tiled", *(["flex"] if activation == "softmax" else [])]


@pytest.mark.parametrize("kind", ["none", "simple", "rotary"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_forms_agree_with_the_definition(activation, kind):
    torch.manual_seed(0)
    for case in CASES:
        inputs, (bias, parameters) = draw(case), make_bias(kind)
        # what a padded query outputs is nobody's business
        weight = torch.randn(BATCH, case.layout.queries, VALUES, dtype=torch.float64) * case.real_queries.unsqueeze(-1)
        output = by_definition(*inputs, bias, case, activation)
        expected = [output * weight, *grad((output * weight).sum(), [*inputs, *parameters])]
        for backend in ("reference", "tiled", None):
            output, _ = attention(*inputs, bias, case.layout, activation=activation, backend=backend)
            got = [output * weight, *grad((output * weight).sum(), [*inputs, *parameters])]
            for name, a, b in zip(["output", "q", "k", "v", "bias", "bias"], got, expected):
                error = (a - b).abs().max() / (1 + b.abs().max())
                assert error < 1e-12, (backend, name, case.name)


@pytest.mark.parametrize("kind", ["none", "simple", "rotary"])
def test_float32(kind):
    torch.manual_seed(1)
    for case, activation in itertools.product(CASES, ACTIVATIONS):
        inputs, (bias, parameters) = draw(case, torch.float32), make_bias(kind, torch.float32)
        results = []
        for backend in ("reference", "tiled"):
            output, _ = attention(*inputs, bias, case.layout, activation=activation, backend=backend)
            results.append([output, *grad(output.square().sum(), [*inputs, *parameters])])
        # a gradient that is 0 has the rounding errors of what cancels out in it
        scale = 1 + max(want.abs().max() for want in results[0])
        for want, got in zip(*results):
            assert (got - want).abs().max() / scale < 5e-6, (case.name, activation)


@pytest.mark.parametrize("kind", ["none", "simple", "rotary"])
def test_flex_attention_agrees(kind):
    torch.manual_seed(0)
    for case in CASES[:: 7 if kind == "rotary" else 23]:
        q, k, v = (x.detach() for x in draw(case, torch.float32))
        bias, _ = make_bias(kind, torch.float32)
        with torch.no_grad():
            expected, _ = attention(q, k, v, bias, case.layout, backend="reference")
            got, _ = attention(q, k, v, bias, case.layout, backend="flex")
        assert torch.allclose(got, expected, atol=5e-6), case.name


def flash_by_definition(qkv, borders, longest, dropout, causal):
    """What the variable-length kernel of a GPU computes, segment by segment."""
    assert not dropout
    (q, k, v), (of_queries, of_keys), outputs = qkv, borders, []
    for a, b, c, d in zip(of_queries[:-1], of_queries[1:], of_keys[:-1], of_keys[1:]):
        assert b - a <= longest[0] and d - c <= longest[1]
        if b > a:
            scores = torch.einsum("qhw,khw->hqk", q[a:b], k[c:d])
            if causal:
                ahead = torch.ones(b - a, d - c, dtype=torch.bool).triu(int(d - c) - int(b - a) + 1)
                scores = scores.masked_fill(ahead, float("-inf"))
            outputs.append(torch.einsum("hqk,khw->qhw", scores.softmax(-1), v[c:d]))
    return torch.cat(outputs)


@pytest.mark.parametrize("kind", ["none", "rotary"])
def test_fused_kernels_are_given_the_right_problem(monkeypatch, kind):
    """The way to a GPU's kernels, with the kernels' own definition in their place."""
    monkeypatch.setattr(fused, "flash", flash_by_definition)
    monkeypatch.setattr(fused, "JUNK", 3)
    torch.manual_seed(0)
    tried = 0
    for case in CASES:
        layout = case.layout
        plain_continuation = layout.causal and not layout.has_gaps and layout.chunk is None
        if not isinstance(layout.offset, int) or not (layout.queries == layout.keys or plain_continuation):
            continue
        inputs, (bias, parameters) = draw(case), make_bias(kind)
        weight = torch.randn(BATCH, layout.queries, VALUES, dtype=torch.float64) * case.real_queries.unsqueeze(-1)
        results = []
        for backend in ("reference", "fused"):
            output, _ = attention(*inputs, bias, layout, backend=backend)
            results.append([output * weight, *grad((output * weight).sum(), [*inputs, *parameters])])
        for got, want in zip(*results):
            assert ((got - want).abs().max() / (1 + want.abs().max())) < 1e-12, case.name
        tried += 1
    assert tried > 50


def test_weights_have_a_chunk_axis():
    q = k = torch.randn(2, 11, 4)
    v = torch.randn(2, 11, 3)
    output, weights = attention(q, k, v, None, self_attention_layout(None, 11, chunk_size=4), need_weights=True)
    assert weights.shape == (2, 3, 4, 4)
    assert torch.allclose((weights[:, :2] @ v[:, :8].view(2, 2, 4, 3)).view(2, 8, 3), output[:, :8], atol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_weights_are_what_values_are_multiplied_by(activation):
    torch.manual_seed(0)
    for case in CASES:
        q, k, _ = draw(case)
        eye = torch.eye(case.layout.keys, dtype=q.dtype).expand(BATCH, -1, -1)
        output, weights = attention(q, k, eye, None, case.layout, activation=activation, need_weights=True)
        plain, _ = attention(q, k, eye, None, case.layout, activation=activation)
        real = case.real_queries.unsqueeze(-1)
        assert torch.allclose(output * real, plain * real, atol=1e-12), case.name
        if weights.shape[2:] == output.shape[1:]:
            assert torch.equal(weights[:, 0], output), case.name


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dropout_is_replayed_in_the_backward_pass(activation):
    """The gradient of a linear function of v is that function's matrix: it must use the forward pass' dropout."""
    torch.manual_seed(0)
    q, k = (torch.randn(1, 12, 4, dtype=torch.float64) for _ in range(2))
    v = torch.randn(1, 12, 3, dtype=torch.float64, requires_grad=True)
    layout = self_attention_layout(None, 12)
    output, _ = attention(q, k, v, None, layout, activation=activation, dropout=0.5, backend="tiled")
    (gradient,) = grad(output.sum(), v)
    assert torch.allclose((gradient * v).sum(), output.sum())
    full, _ = attention(q, k, v, None, layout, activation=activation, backend="tiled")
    assert not torch.allclose(full, output)


@pytest.mark.parametrize("backend", ["tiled", "reference"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dropout_keeps_the_expectation(activation, backend):
    torch.manual_seed(0)
    q = k = torch.zeros(1, 64, 2)
    v = torch.ones(1, 64, 200)
    options = {"activation": activation, "backend": backend}
    bias = SimpleBias(torch.ones(127), 63)
    output, _ = attention(q, k, v, bias, self_attention_layout(None, 64), dropout=0.25, **options)
    whole, _ = attention(q, k, v, bias, self_attention_layout(None, 64), **options)
    # 64 queries, each a mean of 64 weights kept with probability 0.75: the standard error is below 0.01
    assert abs((output / whole).mean().item() - 1) < 0.05
    assert (output - whole).abs().max() > 0.05


def test_unknown_and_impossible_requests_are_refused():
    q = k = torch.randn(1, 4, 2)
    v = torch.randn(1, 4, 3)
    layout = self_attention_layout(None, 4)
    with pytest.raises(ValueError, match="the known values are softmax, laplace, relu2"):
        attention(q, k, v, None, layout, activation="tanh")
    with pytest.raises(ValueError, match="the known values are reference"):
        attention(q, k, v, None, layout, backend="magic")
    with pytest.raises(ValueError, match="softmax only"):
        attention(q, k, v, None, layout, activation="laplace", backend="fused")
    with pytest.raises(ValueError, match="returns no weights"):
        attention(q, k, v, None, layout, need_weights=True, backend="tiled")
    with pytest.raises(ValueError, match="length=4 is more than the 3 positions"):
        attention(q, k, v, SimpleBias(torch.zeros(5), 2), layout)


def qkv(length=9, width=3):
    return tuple(torch.randn(2, length, width, dtype=torch.float64, requires_grad=True) for _ in range(3))


@pytest.mark.parametrize("backend", ["reference", "tiled"])
@pytest.mark.parametrize("activation", ["softmax", "laplace"])
def test_gradcheck_and_gradgradcheck(activation, backend):
    torch.manual_seed(0)
    mask = torch.ones(2, 7)
    mask[0, :2] = 0
    layout = self_attention_layout(mask, 7, chunk_size=5, causal=True)
    values = torch.randn(27, dtype=torch.float64, requires_grad=True)

    def run(q, k, v, values):
        return attention(q, k, v, SimpleBias(values, 13), layout, activation=activation, backend=backend)[0]

    assert torch.autograd.gradcheck(run, (*qkv(7), values), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, (*qkv(7), values), check_fwd_over_rev=True)


def test_second_derivatives_with_dropout_are_refused():
    q, k, v = qkv()
    output, _ = attention(q, k, v, None, self_attention_layout(None, 9), dropout=0.5, backend="tiled")
    (first,) = grad(output.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match=r"second derivatives through attention with dropout=0\.5"):
        first.sum().backward()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_torch_func(activation):
    q, k, v = (x.detach() for x in qkv())
    layout = self_attention_layout(None, 9, causal=True)

    def loss(q, k, v, backend):
        return attention(q, k, v, None, layout, activation=activation, backend=backend)[0].square().sum()

    results = [torch.func.grad(loss, argnums=(0, 1, 2))(q, k, v, backend) for backend in ("reference", "tiled")]
    for got, expected in zip(*results):
        assert torch.allclose(got, expected, atol=1e-12)
    hessians = [torch.func.jacrev(torch.func.jacrev(loss))(q, k, v, b) for b in ("reference", "tiled")]
    assert torch.allclose(*hessians, atol=1e-11)
    each = torch.stack([q, 2 * q])
    results = [torch.vmap(loss, in_dims=(0, None, None, None))(each, k, v, b) for b in ("reference", "tiled")]
    assert torch.allclose(*results, atol=1e-12)
    per_sample = torch.vmap(torch.func.grad(loss), in_dims=(0, None, None, None))
    results = [per_sample(each, k, v, b) for b in ("reference", "tiled")]
    assert torch.allclose(*results, atol=1e-12)
