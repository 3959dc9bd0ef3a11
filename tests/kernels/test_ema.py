"""Triton's EMA against the loop that defines it in float64: values, states and every gradient."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from torch.autograd import grad

from mega_transformers import MegaForCausalLM, MegaForMaskedLM
from mega_transformers.layers import ema as layer
from mega_transformers.ops import dispatch
from mega_transformers.ops.dispatch import ema_form
from mega_transformers.ops.ema import ema, ema_coefficients, triton_scan

CHUNK = 16
TOLERANCE = 3e-6  # of float32, in units of the greatest value


@pytest.fixture(autouse=True)
def several_chunks_each(monkeypatch):
    """Chunks so short that short inputs have several, and fewer programs than chunks."""
    monkeypatch.setattr(triton_scan, "chunk_size", lambda *_: CHUNK)
    monkeypatch.setattr(triton_scan, "WARPS", dict.fromkeys(triton_scan.WARPS, 3))


def make_parameters(channels, states, bidirectional):
    rows = channels * (2 if bidirectional else 1)
    return [torch.randn(shape, dtype=torch.float64) for shape in [(rows, states, 1)] * 3 + [(rows, states)]]


def deviation(got, expected):
    return ((got.double().cpu() - expected).abs().max() / (1 + expected.abs().max())).item()


def results(inputs, weights, backend, device="cpu", dtype=torch.float64, x_dtype=None, **options):
    """y, the last state if asked for, and the gradients of `inputs`: x, parameters, and maybe state and history."""
    x_dtype = x_dtype or dtype
    given = [x.to(device, dtype if i else x_dtype).requires_grad_() for i, x in enumerate(inputs)]
    x, *parameters = given[:5]
    if len(given) > 5:
        options["state"] = given[5]
    if len(given) > 6:
        options["history"] = given[6]
    if options.get("reset") is not None:
        options["reset"] = options["reset"].to(device)
    y, last = ema(x, ema_coefficients(*parameters), backend=backend, **options)
    assert y.dtype == x_dtype
    outputs = [y] if last is None else [y, last]
    total = sum((out * w.to(device, out.dtype)).sum() for out, w in zip(outputs, weights))
    return [*outputs, *grad(total, given)]


def agree(inputs, weights, device, tolerance=TOLERANCE, **options):
    expected = results(inputs, weights, "reference", **options)
    got = results(inputs, weights, "triton", device, torch.float32, **options)
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        assert deviation(a, b) < tolerance
    return got, expected


def draw(batch, length, channels, states, bidirectional):
    torch.manual_seed(length)
    x = torch.randn(batch, length, channels, dtype=torch.float64)
    return [x, *make_parameters(channels, states, bidirectional)], [torch.randn_like(x)]


SHAPES = {
    # batch, length, channels, states
    "one token": (2, 1, 3, 4),
    "two tokens": (1, 2, 3, 1),
    "one chunk": (1, 15, 2, 3),
    "a token behind chunks": (2, 33, 3, 5),
    "no multiple": (1, 31, 3, 2),
    "two blocks of channels": (1, 20, 35, 16),
    "several lanes a channel": (2, 20, 9, 40),
    "long": (1, 100, 2, 2),
}


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_reference(shape, bidirectional, device):
    inputs, weights = draw(*SHAPES[shape], bidirectional)
    inputs[0][:, 7:9] = 0  # padding
    agree(inputs, weights, device, bidirectional=bidirectional)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(
    "starts",
    [((0, 16), (5, 6, 32)), ((15,), (31, 34)), ((3, 33), ())],
    ids=["first of chunks", "last of chunks", "chunks without any"],
)
def test_documents_start_afresh(starts, bidirectional, device):
    inputs, weights = draw(2, 35, 2, 2, bidirectional)
    reset = torch.zeros(2, 35, dtype=torch.bool)
    for row, places in zip(reset, starts):
        row[list(places)] = True
    agree(inputs, weights, device, bidirectional=bidirectional, reset=reset)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("length", [1, 16, 37])
def test_state_in_and_out(length, given, device):
    inputs, weights = draw(2, length, 3, 3, False)
    state = torch.randn(2, 3, 3, dtype=torch.float64)
    agree([*inputs, state] if given else inputs, [*weights, state.flip(0)], device, return_state=True)


@pytest.mark.parametrize(("packed", "truncation"), [(False, 1), (True, 5), (False, 40)])
def test_truncation(packed, truncation, device):
    inputs, weights = draw(2, 20, 2, 2, True)
    reset = torch.zeros(2, 20, dtype=torch.bool)
    reset[0, [2, 18]] = True
    reset = reset if packed else None
    agree(inputs, weights, device, bidirectional=True, truncation=truncation, reset=reset)


@pytest.mark.parametrize("truncation", [4, 30])
def test_truncated_state_in_and_out(truncation, device):
    inputs, weights = draw(2, 19, 2, 2, False)
    history = torch.randn(2, truncation, 2, dtype=torch.float64)
    _, state = ema(history, ema_coefficients(*inputs[1:]), return_state=True, backend="reference")
    weights = [*weights, torch.randn_like(state)]
    agree([*inputs, state, history], weights, device, truncation=truncation, return_state=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype, device):
    """All is float32 inside, and what is rounded is rounded at the end: by half a unit of the last place.

    Triton's interpreter cuts bfloat16 off instead, by up to a unit.
    """
    unit = (1.0 if dtype == torch.bfloat16 and device.type == "cpu" else 0.5) * torch.finfo(dtype).eps
    inputs, weights = draw(1, 40, 2, 4, True)
    inputs[0], weights[0] = inputs[0].to(dtype).double(), weights[0].to(dtype).double()
    y, dx, *others = results(inputs, weights, "triton", device, torch.float32, dtype, bidirectional=True)
    expected_y, expected_dx, *expected = results(inputs, weights, "reference", bidirectional=True)
    for got, want in ((y, expected_y), (dx, expected_dx)):
        excess = (got.double().cpu() - want).abs() - unit * want.abs()
        assert excess.max() < TOLERANCE * (1 + want.abs().max())
    for got, want in zip(others, expected, strict=True):
        assert deviation(got, want) < TOLERANCE


def test_any_strides(device):
    inputs, _ = draw(2, 20, 3, 2, True)
    given = [x.float().to(device) for x in inputs]
    made = ema_coefficients(*given[1:])
    x = given[0].detach().requires_grad_()
    expected, _ = ema(x, made, bidirectional=True, backend="triton")
    (expected_dx,) = grad(expected.sum(), x)  # of a gradient that is one number, expanded
    for order in ((1, 2, 0), (2, 0, 1)):
        place = [order.index(i) for i in range(3)]
        strided = x.detach().permute(order).contiguous().permute(place).requires_grad_()
        assert not strided.is_contiguous()
        y, _ = ema(strided, made, bidirectional=True, backend="triton")
        assert torch.equal(y, expected)
        assert torch.equal(grad(y, strided, torch.ones_like(y))[0], expected_dx)


def test_decays_of_zero(device):
    """A state that forgets everything at once has a logarithm of minus infinity."""
    (x, *parameters), _ = draw(1, 20, 2, 3, True)
    parameters[0][:] = parameters[1][:] = 40.0
    x, made = x.float().to(device), ema_coefficients(*(p.float().to(device) for p in parameters))
    assert made.log_decay.isinf().all()
    got, expected = (ema(x, made, bidirectional=True, backend=backend)[0] for backend in ("triton", "reference"))
    torch.testing.assert_close(got, expected)


def test_no_rows(device):
    x = torch.randn(0, 20, 2, device=device, requires_grad=True)
    parameters = [p.float().to(device).requires_grad_() for p in make_parameters(2, 2, True)]
    y, _ = ema(x, ema_coefficients(*parameters), bidirectional=True, backend="triton")
    assert y.shape == x.shape
    assert all(not found.any() for found in grad(y.sum(), parameters))


def test_offsets_beyond_two_to_the_31(device):
    """Of memory that is there but never touched, but for a few tokens."""
    stride = (1 << 30) + 8
    x = torch.empty(2 * stride + 8, dtype=torch.float16, device=device).as_strided((1, 3, 2), (0, stride, 1))
    x.copy_(torch.randn(1, 3, 2))
    made = ema_coefficients(*(p.float().to(device) for p in make_parameters(2, 2, True)))
    got, _ = ema(x, made, bidirectional=True, backend="triton")
    assert torch.equal(got, ema(x.contiguous(), made, bidirectional=True, backend="triton")[0])


def test_gradients_are_the_same_in_every_run(device):
    inputs, weights = draw(2, 40, 3, 4, True)
    first, second = (results(inputs, weights, "triton", device, torch.float32, bidirectional=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize("frozen", ["x", "parameters"])
def test_what_is_frozen_gets_no_gradient(frozen, device):
    inputs, _ = draw(1, 18, 2, 2, True)
    x, *parameters = (x.float().to(device) for x in inputs)
    learnt = [x] if frozen == "parameters" else parameters
    for tensor in learnt:
        tensor.requires_grad_()
    got, expected = (
        grad(ema(x, ema_coefficients(*parameters), bidirectional=True, backend=backend)[0].square().sum(), learnt)
        for backend in ("triton", "chunked")
    )
    for a, b in zip(got, expected):
        assert deviation(a, b.double().cpu()) < TOLERANCE


def test_second_derivatives_and_torch_func(device):
    inputs, _ = draw(1, 18, 2, 2, False)
    tangent = torch.randn(1, 18, 2, dtype=torch.float64)
    found = []
    for backend, dtype, place in (("reference", torch.float64, "cpu"), ("triton", torch.float32, device)):
        x, *parameters = (x.to(place, dtype) for x in inputs)

        def loss(x, damping, backend=backend, others=tuple(parameters[1:])):
            y, last = ema(x, ema_coefficients(damping, *others), return_state=True, backend=backend)
            return y.square().sum() + last.sum()

        v = tangent.to(place, dtype)
        by_x = torch.func.grad(loss)
        found.append(
            [
                torch.func.grad(lambda p, x=x, f=by_x, v=v: (f(x, p) * v).sum())(parameters[0]),  # reverse twice
                torch.func.jvp(lambda x, f=loss, p=parameters[0]: f(x, p), (x,), (v,))[1],
                torch.func.jvp(lambda x, f=by_x, p=parameters[0]: f(x, p), (x,), (v,))[1],  # forward over reverse
                torch.vmap(by_x, in_dims=(0, None))(torch.stack([x, 2 * x]), parameters[0]),
            ]
        )
    for got, expected in zip(found[1], found[0]):
        assert deviation(got, expected) < TOLERANCE


def test_one_node_in_a_graph_of_any_length(monkeypatch, device):
    monkeypatch.setenv(dispatch.TRITON, "1")
    inputs, _ = draw(1, 20, 2, 2, True)
    x, *parameters = (x.float().to(device).requires_grad_() for x in inputs)
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    def run(x):
        return ema(x, ema_coefficients(*parameters), bidirectional=True)[0]

    torch._dynamo.reset()
    compiled = torch.compile(run, backend=backend, fullgraph=True, dynamic=True)
    for length in (20, 33):
        x = torch.randn(1, length, 2, device=device, requires_grad=True)
        got, expected = (grad(f(x).square().sum(), [x, *parameters]) for f in (compiled, run))
        assert all(torch.equal(a, b) for a, b in zip(got, expected))
    assert len(graphs) == 1
    assert sum("operators.ema" in str(node.target) for node in graphs[0].graph.nodes) == 1


CAUSAL = {**tiny.CAUSAL, "num_hidden_layers": 1}


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_a_model_trains_with_it(kind, monkeypatch, device):
    """Packed documents, without the plan that blocks of documents need; and padding."""
    torch.manual_seed(0)
    cls, fields = (MegaForMaskedLM, {}) if kind == "masked" else (MegaForCausalLM, CAUSAL)
    model = cls(tiny.tiny_config(**fields)).to(device).eval()
    ids = torch.randint(5, 31, (2, 20), device=device)
    if kind == "masked":
        given = {"attention_mask": torch.ones_like(ids)}
        given["attention_mask"][0, 15:] = 0
    else:
        given = {"position_ids": torch.cat([torch.arange(9), torch.arange(11)]).expand(2, -1).to(device)}

    def outputs():
        output = model(ids, labels=ids, **given)
        return [output.loss, output.logits, *grad(output.loss, model.parameters())]

    monkeypatch.delenv(dispatch.TRITON, raising=False)
    expected, calls, run = outputs(), [], triton_scan.ema_triton
    monkeypatch.setenv(dispatch.TRITON, "1")
    monkeypatch.setattr(layer, "packed_blocks", None)
    monkeypatch.setattr(triton_scan, "ema_triton", lambda *a, **b: calls.append(a) or run(*a, **b))
    for got, want in zip(outputs(), expected, strict=True):
        assert deviation(got, want.double().cpu()) < TOLERANCE
    assert len(calls) == model.config.num_hidden_layers


def test_is_chosen_when_asked_for(monkeypatch):
    assert ema_form("cuda", 512, 1, False, True, triton=True) == "triton"
    assert ema_form("cuda", 512, 1, True, False, triton=True) == "triton"
    assert ema_form("cuda", 1, 1, True, False, triton=True) == "step"
    assert ema_form("cuda", 512, 1, False, True) == "chunked"
    x, made = torch.randn(1, 3, 2), ema_coefficients(*(p.float() for p in make_parameters(2, 65, False)))
    monkeypatch.setenv(dispatch.TRITON, "1")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(triton_scan, "ema_triton", None)
    ema(x, made)  # more states than fit
    ema(x.double(), made)
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    ema(x, ema_coefficients(*(p.float() for p in make_parameters(2, 4, False))))


def test_what_it_cannot_do_is_refused(monkeypatch, device):
    few, many = (ema_coefficients(*(p.float().to(device) for p in make_parameters(2, n, False))) for n in (4, 65))
    x = torch.randn(1, 3, 2, device=device)
    for given, made in ((x, many), (x.double(), few)):
        with pytest.raises(ValueError, match="float32 with up to 64 states"):
            ema(given, made, backend="triton")
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"mega-transformers\[gpu\]"):
        ema(x, few, backend="triton")


def test_kernels_compile_for_gpus(tmp_path):
    """States stay in a lane: nothing goes to shared memory, but for those of several lanes, nor out of registers."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(Path(__file__).with_name("compile_ema.py"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert {row[0] for row in rows} == {"states_kernel", "carry_kernel", "outputs_kernel"}
    for _, _, registers, spilled, shared in rows:
        assert int(registers) <= 255
        assert int(spilled) == 0
        assert int(shared) <= 16
