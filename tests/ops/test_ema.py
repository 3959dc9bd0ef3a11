"""Every form of the EMA against the loop that defines it: values, every gradient, odd lengths, packing, state."""

import functools
import itertools

import pytest
import torch
from torch.autograd import grad

from mega_transformers.ops.ema import chunked as chunked_module
from mega_transformers.ops.ema import ema, ema_coefficients, ema_kernel
from mega_transformers.ops.ema.chunked import block_size, ema_chunked

BLOCK = block_size(100)
LENGTHS = [1, 3, BLOCK, BLOCK + 1, 2 * BLOCK + 22, 150]
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5}


def make_parameters(channels, states, bidirectional, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = channels * (2 if bidirectional else 1)
    shapes = [(rows, states, 1)] * 3 + [(rows, states)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def deviation(got, expected):
    return ((got - expected).abs().max() / (1 + expected.abs().max())).item()


def outputs_and_gradients(x, parameters, weight, **options):
    y, _ = ema(x, ema_coefficients(*parameters), **options)
    return [y, *grad((y * weight).sum(), [x, *parameters])]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backend", ["chunked", "direct", "fft"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("truncation", [None, 1, 5, 70])
@pytest.mark.parametrize("length", LENGTHS)
def test_forms_agree_with_reference(length, truncation, bidirectional, backend, dtype):
    torch.manual_seed(length)
    parameters = make_parameters(3, 4, bidirectional, dtype)
    x = torch.randn(2, length, 3, dtype=dtype, requires_grad=True)
    weight = torch.randn_like(x)
    options = {"bidirectional": bidirectional, "truncation": truncation}
    expected = outputs_and_gradients(x, parameters, weight, backend="reference", **options)
    for got, want in zip(outputs_and_gradients(x, parameters, weight, backend=backend, **options), expected):
        assert deviation(got, want) < TOLERANCE[dtype]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("truncation", [None, 3, 70])
@pytest.mark.parametrize("length", [2, BLOCK + 9, 3 * BLOCK])
def test_packed_documents_reset_the_state(length, truncation, bidirectional):
    torch.manual_seed(length)
    parameters = make_parameters(3, 4, bidirectional)
    x = torch.randn(2, length, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    starts = torch.rand(2, length) < 0.1
    options = {"bidirectional": bidirectional, "truncation": truncation, "reset": starts}
    expected = outputs_and_gradients(x, parameters, weight, backend="reference", **options)
    for got, want in zip(outputs_and_gradients(x, parameters, weight, backend="chunked", **options), expected):
        assert deviation(got, want) < 1e-11
    # and the definition itself: every document alone
    bounds = [0, *[t for t in range(1, length) if starts[0, t]], length]
    made = ema_coefficients(*parameters)
    alone = [
        ema(x[:1, a:b], made, bidirectional=bidirectional, truncation=truncation, backend="reference")[0]
        for a, b in itertools.pairwise(bounds)
    ]
    assert deviation(expected[0][:1], torch.cat(alone, dim=1)) < 1e-12


@pytest.mark.parametrize("length", LENGTHS)
def test_state_in_and_out_with_gradients(length):
    parameters = make_parameters(3, 4, False)
    x = torch.randn(2, length, 3, dtype=torch.float64, requires_grad=True)
    state = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    weight, state_weight = torch.randn_like(x), torch.randn_like(state)
    results = []
    for backend in ["reference", "chunked"] + (["step"] if length == 1 else []):
        y, last = ema(x, ema_coefficients(*parameters), state=state, return_state=True, backend=backend)
        total = (y * weight).sum() + (last * state_weight).sum()
        results.append([y, last, *grad(total, [x, state, *parameters])])
    for result in results[1:]:
        for got, want in zip(result, results[0]):
            assert deviation(got, want) < 1e-11


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("truncation", [1, 4, 40])
def test_truncated_state_in_and_out_with_gradients(length, truncation):
    parameters = make_parameters(3, 4, False)
    x = torch.randn(2, length, 3, dtype=torch.float64, requires_grad=True)
    history = torch.randn(2, truncation, 3, dtype=torch.float64, requires_grad=True)
    # the state that these inputs leave behind
    _, state = ema(history, ema_coefficients(*parameters), return_state=True, backend="reference")
    state = state.detach().requires_grad_()
    weight, state_weight = torch.randn_like(x), torch.randn_like(state)
    results = []
    for backend in ["reference", "chunked"] + (["step"] if length == 1 else []):
        options = {"truncation": truncation, "state": state, "history": history}
        y, last = ema(x, ema_coefficients(*parameters), return_state=True, backend=backend, **options)
        total = (y * weight).sum() + (last * state_weight).sum()
        results.append([y, last, *grad(total, [x, state, history, *parameters])])
    for result in results[1:]:
        for got, want in zip(result, results[0]):
            assert deviation(got, want) < 1e-11
    both = torch.cat([history, x], dim=1)
    whole, _ = ema(both, ema_coefficients(*parameters), truncation=truncation, backend="reference")
    assert deviation(results[0][0], whole[:, truncation:]) < 1e-12


@pytest.mark.parametrize("truncation", [None, 1, 5, 70])
def test_pieces_of_any_size_equal_the_whole(truncation):
    parameters = make_parameters(3, 4, False)
    x = torch.randn(2, 200, 3, dtype=torch.float64)
    made = ema_coefficients(*parameters)
    whole, _ = ema(x, made, truncation=truncation)
    pieces, state, history, start = [], None, None, 0
    for size in [1, 64, 7, 100, 1, 27]:
        piece = x[:, start : start + size]
        options = {"truncation": truncation, "state": state, "history": history}
        y, state = ema(piece, made, return_state=True, **options)
        if truncation is not None:
            before = torch.zeros(2, truncation, 3, dtype=x.dtype) if history is None else history
            history = torch.cat([before, piece], dim=1)[:, -truncation:]
        pieces.append(y)
        start += size
    assert start == 200
    assert deviation(torch.cat(pieces, dim=1), whole) < 1e-12


@pytest.mark.parametrize("block", [8, 32, 128])
def test_block_size_does_not_matter(block):
    parameters = make_parameters(3, 4, True)
    x = torch.randn(1, 150, 3, dtype=torch.float64)
    got, _ = ema_chunked(x, ema_coefficients(*parameters), bidirectional=True, block=block)
    expected, _ = ema(x, ema_coefficients(*parameters), bidirectional=True, backend="reference")
    assert deviation(got, expected) < 1e-12


def test_factorised_kernel_is_the_impulse_response():
    parameters = make_parameters(3, 4, False)
    impulse = torch.zeros(1, 90, 3, dtype=torch.float64)
    impulse[:, 0] = 1
    response = ema(impulse, ema_coefficients(*parameters), backend="reference")[0][0].T
    assert deviation(ema_kernel(ema_coefficients(*parameters), 90), response) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    """4.40.2 built its kernel in half precision and was off by 34 % at lag 900."""
    parameters = [p.detach().float() for p in make_parameters(4, 4, False)]
    x = torch.randn(1, 3000, 4)
    got, _ = ema(x.to(dtype), ema_coefficients(*(p.to(dtype) for p in parameters)))
    expected, _ = ema(x.to(dtype).double(), ema_coefficients(*(p.to(dtype).double() for p in parameters)))
    assert got.dtype == dtype
    assert deviation(got.double(), expected) < 4 * torch.finfo(dtype).eps
    made = ema_coefficients(*parameters)
    with torch.autocast("cpu", torch.bfloat16):
        inside, _ = ema(x, made)
    assert deviation(inside, ema(x, made)[0]) == 0


def test_gradcheck():
    parameters = make_parameters(2, 2, True)
    x = torch.randn(1, 5, 2, dtype=torch.float64, requires_grad=True)

    def run(x, *parameters):
        return ema(x, ema_coefficients(*parameters), bidirectional=True, backend="chunked")[0]

    assert torch.autograd.gradcheck(run, (x, *parameters))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "magic"}, "the known values are reference"),
        ({"bidirectional": True, "return_state": True}, "bidirectional=False"),
        ({"truncation": 2, "state": torch.zeros(1, 2, 2), "return_state": True}, "history go together"),
        ({"history": torch.zeros(1, 3, 2), "state": torch.zeros(1, 2, 2)}, "truncation=None"),
        ({"backend": "fft", "return_state": True}, "chunked"),
        ({"backend": "direct", "return_state": True}, "chunked"),
        ({"backend": "step"}, "one token"),
        ({"reset": torch.ones(1, 4, dtype=torch.bool), "return_state": True}, "with reset"),
    ],
)
def test_contradicting_arguments_are_refused(options, message):
    parameters = make_parameters(2, 2, options.get("bidirectional", False))
    with pytest.raises(ValueError, match=message):
        ema(torch.zeros(1, 4, 2, dtype=torch.float64), ema_coefficients(*parameters), **options)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("truncation", [None, 5])
@pytest.mark.parametrize("backend", ["chunked", "direct", "fft"])
def test_second_derivatives(backend, truncation, bidirectional, monkeypatch):
    monkeypatch.setattr(chunked_module, "block_size", lambda length: 4)
    parameters = make_parameters(2, 2, bidirectional)
    x = torch.randn(2, 11, 2, dtype=torch.float64, requires_grad=True)
    options = {"bidirectional": bidirectional, "truncation": truncation, "backend": backend}

    def run(x, *parameters):
        return ema(x, ema_coefficients(*parameters), **options)[0]

    assert torch.autograd.gradcheck(run, (x, *parameters), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, (x, *parameters), check_fwd_over_rev=True)


@pytest.mark.parametrize("backend", ["chunked", "step"])
def test_second_derivatives_with_a_state(backend, monkeypatch):
    monkeypatch.setattr(chunked_module, "block_size", lambda length: 4)
    parameters = make_parameters(2, 3, False)
    x = torch.randn(2, 11 if backend == "chunked" else 1, 2, dtype=torch.float64, requires_grad=True)
    state = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)

    def run(x, state, *parameters):
        return ema(x, ema_coefficients(*parameters), state=state, return_state=True, backend=backend)

    assert torch.autograd.gradcheck(run, (x, state, *parameters), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, (x, state, *parameters), check_fwd_over_rev=True)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_torch_func(bidirectional, monkeypatch):
    monkeypatch.setattr(chunked_module, "block_size", lambda length: 4)
    parameters = [p.detach() for p in make_parameters(2, 2, bidirectional)]
    x = torch.randn(2, 11, 2, dtype=torch.float64)

    def loss(x, *parameters, backend):
        y, _ = ema(x, ema_coefficients(*parameters), bidirectional=bidirectional, backend=backend)
        return y.square().sum()

    results = []
    for backend in ("reference", "chunked"):
        run = functools.partial(loss, backend=backend)
        gradients = torch.func.grad(run, argnums=(0, 1, 2, 3, 4))(x, *parameters)
        hessian = torch.func.jacrev(torch.func.jacrev(run, argnums=1), argnums=1)(x, *parameters)
        each = torch.stack([x, 2 * x])
        in_dims = (0, None, None, None, None)
        values = torch.vmap(run, in_dims=in_dims)(each, *parameters)
        per_sample = torch.vmap(torch.func.grad(run, argnums=1), in_dims=in_dims)(each, *parameters)
        results.append([*gradients, hessian, values, per_sample])
    for got, expected in zip(*results):
        assert deviation(got, expected) < 1e-11


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_is_frozen_gets_no_gradient(frozen):
    parameters = make_parameters(3, 4, True)
    x = torch.randn(2, 50, 3, dtype=torch.float64, requires_grad=frozen != 0)
    if frozen:
        parameters = [p.detach() for p in parameters]
    ema(x, ema_coefficients(*parameters), bidirectional=True)[0].sum().backward()
    assert (x.grad is None) == (frozen == 0)
    assert all((p.grad is None) == (frozen == 1) for p in parameters)
