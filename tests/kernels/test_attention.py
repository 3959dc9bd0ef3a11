"""Triton's attention against the definition in float64: values and every gradient, for every kind of layout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.autograd import grad

from mega_transformers.ops.attention import attention, triton_attention, triton_kernels
from mega_transformers.ops.attention.reference import attention_reference
from mega_transformers.ops.attention.triton_attention import BackwardBlocks, ForwardBlocks
from mega_transformers.ops.dispatch import attention_form
from mega_transformers.ops.dropout import kept_share
from mega_transformers.ops.layout import (
    AttentionLayout,
    cached_layout,
    cross_attention_layout,
    self_attention_layout,
)
from mega_transformers.ops.relative_bias import RotaryBias, SimpleBias

ACTIVATIONS = ["softmax", "laplace", "relu2"]
BATCH, Z, H = 2, 24, 40


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles and slabs that are small, so that short inputs take several."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(triton_attention, "forward_blocks", lambda *_: ForwardBlocks(16, 16, 32, 4, 1))
        monkeypatch.setattr(triton_attention, "backward_blocks", lambda *_: BackwardBlocks(16, 16, 16, 32, 4, 1))
    monkeypatch.setattr(triton_attention, "SLAB", 1000)


def mask(length, *holes):
    """(B, L) bool: row 0 is padding at `holes`, of which row 1 has none."""
    real = torch.ones(BATCH, length, dtype=torch.bool)
    for start, stop in holes:
        real[0, start:stop] = False
    return real


def starts(length, every):
    reset = torch.zeros(BATCH, length, dtype=torch.bool)
    reset[0, ::every] = True
    reset[1, 5::every] = True
    return reset


def ranges(*rows):
    start, stop = torch.tensor(rows).unbind(-1)
    return {"start": start.expand(BATCH, -1), "stop": stop.expand(BATCH, -1)}


def layouts():
    """A layout of every kind, of lengths that are no multiples of a tile."""
    buffer = torch.arange(48).expand(BATCH, -1) < 40
    # tiles that do not follow each other, and ranges of nothing
    free = [(30, 35), (9, 7), (20, 21), (24, 33)] * 4 + [(5, 9), (0, 0), (0, 3)] * 2
    return {
        "one token": self_attention_layout(None, 1),
        "causal": self_attention_layout(None, 37, causal=True),
        "chunks": self_attention_layout(None, 45, chunk_size=20, causal=True),
        "chunks, left padding": self_attention_layout(mask(37, (0, 7)), 37, chunk_size=17),
        "right padding": self_attention_layout(mask(35, (11, 35)), 35),
        "causal, padding everywhere": self_attention_layout(mask(35, (0, 3), (9, 27), (33, 35)), 35, causal=True),
        "a row of padding": self_attention_layout(mask(19, (0, 19)), 19, causal=True),
        "documents": self_attention_layout(None, 40, reset=starts(40, 13)),
        "documents, chunks, padding": self_attention_layout(
            mask(40, (34, 40)), 40, reset=starts(40, 17), chunk_size=7, causal=True
        ),
        "cached": cached_layout(None, 17, 23, None),
        "cached, padding": cached_layout(mask(40, (0, 5), (12, 14)), 17, 23, None),
        "cached chunks": cached_layout(
            mask(36, (0, 5)), 17, 19, torch.tensor([30, 35]), chunk_size=20, aligned=False
        ),
        "buffer": AttentionLayout(17, 48, True, offset=torch.tensor([23]), offset_bound=31, real=buffer),
        "cross": cross_attention_layout(None, 41, 18, start=5),
        "cross, padding": cross_attention_layout(
            mask(41, (0, 9), (20, 22)), 41, 18, start=3, first_target=torch.tensor([0, 2])
        ),
        "ranges": AttentionLayout(22, 35, **ranges(*free)),
        "one query": cross_attention_layout(mask(41, (0, 9)), 41, 1),
        "one key": cross_attention_layout(None, 1, 18),
    }  # fmt: skip


def parameters(kind, z=Z):
    return (
        [torch.randn(141)] if kind == "simple" else [torch.randn(z) / 3 for _ in range(2)] if kind == "rotary" else []
    )


def make_bias(kind, given):
    return SimpleBias(given[0], 70) if kind == "simple" else RotaryBias(*given) if kind == "rotary" else None


def draw(layout, z=Z, h=H, kind="simple"):
    """Queries, keys, values, the bias' parameters; and what the output is multiplied by."""
    q, k = torch.randn(BATCH, layout.queries, z), torch.randn(BATCH, layout.keys, z)
    v, weight = torch.randn(BATCH, layout.keys, h), torch.randn(BATCH, layout.queries, h)
    return [q, k, v, *parameters(kind, z)], weight


def results(inputs, weight, layout, kind, device="cpu", dtype=torch.float64, **options):
    """Output and gradients of `attention`, in float64 on the CPU."""
    half = dtype in (torch.float16, torch.bfloat16)  # parameters of a bias stay float32 then
    given = [x.to(device, torch.float32 if half and i > 2 else dtype) for i, x in enumerate(inputs)]
    given = [x.detach().requires_grad_() for x in given]
    output, _ = attention(*given[:3], make_bias(kind, given[3:]), layout.to(device), **options)
    return [x.double().cpu() for x in (output, *grad((output * weight.to(device, output.dtype)).sum(), given))]


def greatest_error(got, expected):
    """In units of the greatest number of each tensor, or of 0.5 where that is less; NaN where there is any."""
    errors = [(a - b).abs().max() / b.abs().max().clamp(min=0.5) for a, b in zip(got, expected, strict=True)]
    return torch.stack(errors).max().item()


def check(layout, kind, activation, device, z=Z, h=H):
    torch.manual_seed(0)
    inputs, weight = draw(layout, z, h, kind)
    expected = results(inputs, weight, layout, kind, activation=activation, backend="reference")
    got = results(inputs, weight, layout, kind, device, torch.float32, activation=activation, backend="triton")
    return greatest_error(got, expected)


@pytest.mark.parametrize("name", layouts())
def test_softmax(name, device):
    assert check(layouts()[name], "simple", "softmax", device) < 1e-5


@pytest.mark.parametrize("name", list(layouts())[1::2])
def test_laplace(name, device):
    assert check(layouts()[name], "simple", "laplace", device) < 1e-5


@pytest.mark.parametrize(
    ("kind", "activation", "name"),
    [
        ("none", "softmax", "documents"),
        ("none", "laplace", "causal"),
        ("rotary", "softmax", "causal"),
        ("rotary", "softmax", "chunks, left padding"),
        ("rotary", "laplace", "cross, padding"),
    ],
)
def test_biases(kind, activation, name, device):
    assert check(layouts()[name], kind, activation, device) < 1e-5


@pytest.mark.parametrize("name", ["causal, padding everywhere", "cached", "documents, chunks, padding"])
def test_relu2(name, device):
    assert check(layouts()[name], "simple", "relu2", device) < 1e-5


@pytest.mark.parametrize(("z", "h"), [(16, 16), (64, 21), (6, 72), (20, 1)])
def test_widths(z, h, device):
    layout = self_attention_layout(mask(19, (4, 6)), 19, causal=True)
    assert check(layout, "simple", "softmax", device, z, h) < 1e-5


@pytest.mark.parametrize(
    ("activation", "dtype"),
    [("softmax", torch.bfloat16), ("laplace", torch.bfloat16), ("laplace", torch.float16)],
)
def test_half_precision(activation, dtype, device):
    """Against float64 of the same rounded inputs: four times the rounding of a number of 8 or 11 bits."""
    torch.manual_seed(0)
    layout = layouts()["causal, padding everywhere"]
    inputs, weight = draw(layout)
    inputs[:3], weight = [x.to(dtype).float() for x in inputs[:3]], weight.to(dtype).float()
    expected = results(inputs, weight, layout, "simple", activation=activation, backend="reference")
    got = results(inputs, weight, layout, "simple", device, dtype, activation=activation, backend="triton")
    assert greatest_error(got, expected) < 4 * torch.finfo(dtype).eps / 2


def test_strides(device):
    """Parts of a wider projection, features that are not neighbours, and a gradient that is one number for all."""
    torch.manual_seed(0)
    layout = self_attention_layout(None, 20)
    wide = torch.randn(BATCH, 20, Z + H, device=device)
    inputs = [wide[..., :Z], torch.randn(BATCH, Z, 20, device=device).transpose(1, 2), wide[..., Z:]]
    found = []
    for dtype, backend in ((torch.float64, "reference"), (torch.float32, "triton")):
        given = [x.to(dtype).requires_grad_() if dtype == torch.float64 else x.requires_grad_() for x in inputs]
        output, _ = attention(*given, None, layout, backend=backend)
        found.append([x.double() for x in (output, *grad(output.sum(), given))])
    assert greatest_error(*reversed(found)) < 1e-5


def dropout_mask(seed, batch, queries, keys, dropout, device):
    """What the kernels keep, drawn in tiles of another size."""
    result = torch.zeros(batch, queries, keys, dtype=torch.bool, device=device)
    grid, dropped = (batch, -(-queries // 32), -(-keys // 64)), round(dropout * 65536)
    triton_kernels.mask_kernel[grid](result, seed, queries, keys, DROPPED=dropped, ROWS=32, COLUMNS=64)
    return result


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dropout(activation, device):
    """The mask multiplies the reference's weights: values and gradients are exactly those."""
    torch.manual_seed(0)
    layout = layouts()["causal, padding everywhere"]
    inputs, weight = draw(layout)
    options = {"activation": activation, "dropout": 0.3, "backend": "triton"}
    torch.manual_seed(7)
    seed = int(torch.randint(2**62, ()))
    torch.manual_seed(7)
    got = results(inputs, weight, layout, "simple", device, torch.float32, **options)
    keep = dropout_mask(seed, BATCH, 35, 35, 0.3, device).double().cpu() / kept_share(0.3)
    given = [x.double().requires_grad_() for x in inputs]
    table = make_bias("simple", given[3:]).table(*layout.distances)
    _, weights = attention_reference(*given[:3], table, layout, activation=activation)
    output = weights[:, 0] * keep @ given[2]
    expected = [output, *grad((output * weight).sum(), given)]
    assert greatest_error(got, expected) < 1e-5


def test_dropout_is_random(device):
    """Shares of rows and columns, and of neighbours that agree, deviate as those of independent draws do."""
    p, n = 0.25, 192
    masks = torch.stack([dropout_mask(seed, 2, n, n, p, device).float() for seed in (1, 2)])
    spread = (p * (1 - p)) ** 0.5
    x = (masks - (1 - p)) / spread  # mean 0, variance 1
    assert abs(x.mean()) < 4 / x.numel() ** 0.5
    for dim in (-1, -2):
        means = x.mean(dim) * n**0.5
        assert abs(means.std() - 1) < 0.1
        assert means.abs().max() < 5
        for lag in (1, 2, 3, 4, 8, 16, 64):
            pairs = x * x.roll(lag, dim)
            assert abs(pairs.mean()) < 4 / x.numel() ** 0.5, (dim, lag)
    assert abs((x[0] * x[1]).mean()) < 4 / x[0].numel() ** 0.5  # other seeds
    assert abs((x[:, 0] * x[:, 1]).mean()) < 4 / x[:, 0].numel() ** 0.5  # other rows of the batch


def few(length=5, width=3):
    return [torch.randn(1, length, width, requires_grad=True) for _ in range(3)]


def test_second_derivatives_are_those_of_the_definition(device):
    torch.manual_seed(0)
    layout = self_attention_layout(None, 5, causal=True)
    inputs = few()
    found = []
    for backend, kind, dtype in (("triton", device, torch.float32), ("reference", "cpu", torch.float64)):
        given = [x.detach().to(kind, dtype).requires_grad_() for x in inputs]
        output, _ = attention(*given, None, layout, activation="laplace", backend=backend)
        first = grad(output.square().sum(), given, create_graph=True)
        found.append([x.double().cpu() for x in grad(sum(x.square().sum() for x in first), given)])
    assert greatest_error(*found) < 1e-5


def test_torch_func(device):
    torch.manual_seed(0)
    q, k, v = (x.detach().to(device) for x in few())
    layout = self_attention_layout(None, 5)

    def loss(q, backend):
        return attention(q, k, v, None, layout, backend=backend)[0].square().sum()

    each = torch.stack([q, 2 * q])
    per_sample = torch.vmap(torch.func.grad(loss), in_dims=(0, None))
    got, expected = (per_sample(each, backend) for backend in ("triton", "reference"))
    assert torch.allclose(got, expected, atol=1e-6)


def test_one_node_of_a_compiled_graph(device):
    from torch._dynamo.testing import AotEagerAndRecordGraphs

    torch.manual_seed(0)
    layout = self_attention_layout(None, 9, causal=True)
    recorded = AotEagerAndRecordGraphs()

    def run(q, k, v, table):
        return attention(q, k, v, SimpleBias(table, 9), layout, activation="laplace", backend="triton")[0]

    inputs = [x.detach().to(device).requires_grad_() for x in (*few(9), torch.randn(19))]
    found = []
    for function in (run, torch.compile(run, backend=recorded, fullgraph=True)):
        output = function(*inputs)
        found.append([output, *grad(output.square().sum(), inputs)])
    assert greatest_error(*found) < 1e-6
    for graphs in (recorded.fw_graphs, recorded.bw_graphs):
        assert sum("attention_triton" in str(node.target) for node in graphs[0].graph.nodes) == 1


@pytest.mark.parametrize("activation", ["softmax", "laplace"])
def test_a_model_uses_it(activation, device, monkeypatch):
    from mega_transformers import MegaConfig, MegaForMaskedLM

    torch.manual_seed(0)
    config = MegaConfig(
        **{
            "vocab_size": 20,
            "hidden_size": 8,
            "num_hidden_layers": 2,
            "intermediate_size": 24,
            "nffn_hidden_size": 16,
        },
        **{"shared_representation_size": 6, "ema_projection_size": 2, "max_positions": 32, "initializer_range": 0.5},
        **{"chunk_size": 8, "use_chunking": True, "relative_positional_bias": "simple"},
        attention_activation=activation,
    )
    model = MegaForMaskedLM(config).to(device).eval()
    ids = torch.randint(5, 20, (2, 20), device=device)
    real = torch.ones_like(ids)
    real[0, :3] = 0
    calls, form = [], triton_attention.attention_triton
    monkeypatch.setattr(triton_attention, "attention_triton", lambda *a, **k: calls.append(1) or form(*a, **k))
    found = []
    for wanted in ("0", "1"):
        monkeypatch.setenv("MEGA_TRITON", wanted)
        assert not calls
        output = model(ids, attention_mask=real, labels=ids)
        found.append([output.logits[real.bool()], *grad(output.loss, list(model.parameters()), allow_unused=True)])
    assert len(calls) == 2
    for got, expected in zip(*found, strict=True):
        assert (got is None) == (expected is None)
        assert got is None or torch.allclose(got, expected, atol=1e-5)


def test_what_chooses_it():
    options = {"device": "cuda", "keys": 500, "activation": "softmax", "fusable": True}
    assert attention_form(**options, queries=2, triton=True) == "triton"
    assert attention_form(**options, queries=2, triton=False) == "fused"
    assert attention_form(**options, queries=1, triton=True) == "reference"


def test_what_cannot_run_is_refused(monkeypatch):
    q = torch.randn(1, 4, 2, dtype=torch.float64)
    layout = self_attention_layout(None, 4)
    with pytest.raises(ValueError, match=r"not torch\.float64; use backend='tiled'"):
        attention(q.to("cuda" if torch.cuda.is_available() else "cpu"), q, q, None, layout, backend="triton")
    with pytest.raises(ValueError, match="returns no weights"):
        attention(q, q, q, None, layout, backend="triton", need_weights=True)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match=r"needs Triton .* and a CUDA device, not cpu"):
        attention(q, q, q, None, layout, backend="triton")


def test_kernels_compile_for_gpus(tmp_path):
    """What the interpreter does not see: types, registers, shared memory; in a process without it, without a GPU."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(Path(__file__).with_name("compile_attention.py"))]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert {row[0] for row in rows} == {"forward_kernel", "gradients_kernel", "product_kernel", "diagonals_kernel"}
    for name, architecture, _, spilled, shared in rows:
        assert int(spilled) <= 64, (name, architecture)
        assert int(shared) <= {80: 99, 90: 227}[int(architecture)] * 1024, (name, architecture)
