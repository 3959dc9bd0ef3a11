"""The EMA's kernels against the loop that defines it: values, states, every gradient; and compiled for real cards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.autograd import grad

from mega_transformers import MegaConfig, MegaForCausalLM, MegaForMaskedLM
from mega_transformers.ops.ema import ema, ema_coefficients, triton_scan

LENGTHS = [1, 31, 64, 161, 256, 545]
"""About a block, and about one and several tiles of the interpreter (64) and of a card (256)."""
FLOAT32 = 2e-6
BFLOAT16 = 2e-2


@pytest.fixture(autouse=True)
def small_tiles(device, monkeypatch):
    """In the interpreter, which takes a millisecond for every step of a scan."""
    if device.type == "cpu":
        monkeypatch.setattr(triton_scan, "BLOCKS", 4)
        monkeypatch.setattr(triton_scan, "LEAST_STATES", 4)
        monkeypatch.setattr(triton_scan, "CHANNELS", dict.fromkeys(triton_scan.CHANNELS, 4))


def case(length, *, rows=1, channels=3, states=4, bidirectional=False, dtype=torch.float32):
    """Parameters, and x (rows, length, channels), in float64 as the numbers of `dtype`."""
    generator = torch.Generator().manual_seed(length)
    directions = channels * (2 if bidirectional else 1)
    shapes = [(rows, length, channels), *[(directions, states, 1)] * 3, (directions, states)]
    x, *parameters = [torch.randn(shape, generator=generator) for shape in shapes]
    return [x.to(dtype), *parameters]


def results(tensors, backend, device, weight, state=None, state_weight=None, **options):
    """y, the state, and the gradients of everything."""
    wide = torch.float64 if backend == "reference" else None
    given = [t.to(device if wide is None else "cpu", wide).detach().requires_grad_() for t in tensors]
    if state is not None:
        state = state.to(given[1]).detach().requires_grad_()
        options |= {"state": state, "return_state": True}
    if options.get("history") is not None:
        options["history"] = options["history"].to(given[0])
    if options.get("reset") is not None:
        options["reset"] = options["reset"].to(given[0].device)
    y, last = ema(given[0], ema_coefficients(*given[1:]), backend=backend, **options)
    total = (y * weight.to(y)).sum()
    if last is not None:
        total = total + (last * state_weight.to(last)).sum()
    of = given + ([] if state is None else [state])
    return [t.cpu() for t in [y.detach(), *([] if last is None else [last.detach()]), *grad(total, of)]]


def compare(tensors, device, tolerance=FLOAT32, **options):
    generator = torch.Generator().manual_seed(1)
    options["weight"] = torch.randn(tensors[0].shape, generator=generator)
    if options.get("state") is not None:
        options["state_weight"] = torch.randn(options["state"].shape, generator=generator)
    expected = results(tensors, "reference", device, **options)
    for got, want in zip(results(tensors, "triton", device, **options), expected, strict=True):
        assert got.shape == want.shape
        assert ((got.double() - want).abs().max() / (1 + want.abs().max())).item() < tolerance


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_values_and_gradients(length, bidirectional, device):
    compare(case(length, bidirectional=bidirectional), device, bidirectional=bidirectional)


def test_tiles_of_a_card(device, monkeypatch):
    monkeypatch.undo()
    compare(case(260), device)


def test_many_channels_states_and_rows(device):
    """More channels than a program has, numbers of states that are no power of two, rows beside each other."""
    compare(case(20, channels=19, states=5, bidirectional=True), device, bidirectional=True)
    compare(case(20, rows=3, channels=2, states=1), device)
    compare(case(20, channels=2, states=17), device)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("length", [40, 150, 330])
def test_packed_documents(length, bidirectional, device):
    reset = torch.rand(2, length, generator=torch.Generator().manual_seed(3)) < 0.04
    compare(case(length, rows=2, bidirectional=bidirectional), device, bidirectional=bidirectional, reset=reset)


@pytest.mark.parametrize("length", [1, 40, 65, 300])
def test_states_in_and_out(length, device):
    state = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(5))
    compare(case(length, rows=2), device, state=state)


@pytest.mark.parametrize(("bidirectional", "stateful"), [(False, False), (False, True), (True, False)])
def test_truncation(bidirectional, stateful, device):
    generator = torch.Generator().manual_seed(7)
    options = {"bidirectional": bidirectional, "truncation": 9}
    if stateful:
        options |= {"state": torch.randn(1, 3, 4, generator=generator)}
        options |= {"history": torch.randn(1, 9, 3, generator=generator)}
    compare(case(30, bidirectional=bidirectional), device, **options)


def test_padding_and_strides(device):
    """Zeros at padding; x that is not contiguous, as slices of projections are."""
    x, *parameters = case(50, rows=2)
    x[0, :7] = 0
    x[1, 40:] = 0
    compare([x.transpose(1, 2).contiguous().transpose(1, 2), *parameters], device)


def test_bfloat16(device):
    compare(case(60, bidirectional=True, dtype=torch.bfloat16), device, BFLOAT16, bidirectional=True)


def test_decays_of_zero(device):
    """A state that forgets everything at once has a logarithm of minus infinity."""
    tensors = case(20)
    tensors[1][:] = tensors[2][:] = 40.0
    y, _ = ema(tensors[0].to(device), ema_coefficients(*(t.to(device) for t in tensors[1:])), backend="triton")
    want, _ = ema(tensors[0], ema_coefficients(*tensors[1:]), backend="reference")
    torch.testing.assert_close(y.cpu(), want)


def test_second_derivatives(device):
    x, *parameters = (t.to(device).requires_grad_() for t in case(20, bidirectional=True))

    def penalty(backend):
        y, _ = ema(x, ema_coefficients(*parameters), bidirectional=True, backend=backend)
        (slope,) = grad(y.square().sum(), x, create_graph=True)
        return grad(slope.square().sum(), [x, *parameters])

    for got, want in zip(penalty("triton"), penalty("chunked")):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


@pytest.mark.parametrize("model_class", [MegaForMaskedLM, MegaForCausalLM])
def test_models_use_it_when_asked(model_class, device, monkeypatch):
    causal = model_class is MegaForCausalLM
    config = MegaConfig(
        vocab_size=30, hidden_size=8, intermediate_size=8, nffn_hidden_size=8, shared_representation_size=4,
        ema_projection_size=2, num_hidden_layers=1, is_decoder=causal, bidirectional=not causal, use_chunking=True,
        chunk_size=8, dropout_prob=0.0, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        normalize_before_mega=True, normalize_before_ffn=True, initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    model = model_class(config).to(device).eval()
    ids = torch.randint(5, 30, (1, 20), device=device)
    positions = torch.tensor([[*range(12), *range(8)]], device=device)

    def outputs():
        model.zero_grad()
        found = model(ids, position_ids=positions, labels=ids)
        found.loss.backward()
        return [found.logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    expected = outputs()
    launched = []
    launch = triton_scan._Grid.launch
    monkeypatch.setattr(
        triton_scan._Grid, "launch", lambda *given, **flags: launched.append(given[1]) or launch(*given, **flags)
    )
    monkeypatch.setenv("MEGA_TRITON", "1")
    for got, want in zip(outputs(), expected, strict=True):
        assert ((got - want).abs().max() / (1 + want.abs().max())).item() < 1e-5
    assert launched


def test_kernels_compile_for_cards_without_spilling():
    """Which the interpreter knows nothing of: types, layouts, registers."""
    script = Path(__file__).parent / "compile_ema.py"
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert {row[0] for row in rows} == {"leaving_kernel", "carry_kernel", "output_kernel", "gradient_kernel"}
    for kernel, card, _, spilled, shared in rows:
        assert int(spilled) == 0 and int(shared) <= 100_000, (kernel, card, spilled, shared)
