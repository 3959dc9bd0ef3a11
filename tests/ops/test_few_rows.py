"""The wide linear layer for few rows against `F.linear`."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.modules.module import register_module_forward_hook

from mega_transformers.layers.linear import is_plain, linear
from mega_transformers.ops import few_rows
from mega_transformers.ops.few_rows import MOST_ROWS, linear_few_rows

LEAST_WEIGHTS = 1 << 14


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("outputs", [LEAST_WEIGHTS // 64, LEAST_WEIGHTS // 64 + 5])
@pytest.mark.parametrize("shape", [(1, 1), (3,), (MOST_ROWS, 1), (MOST_ROWS + 1, 1), (0, 2)])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("vendor", ["AuthenticAMD", "GenuineIntel"])
def test_it_is_linear(shape, outputs, dtype, with_bias, vendor, monkeypatch):
    monkeypatch.setattr(few_rows, "VENDOR", vendor)
    torch.manual_seed(0)
    hidden, weight = torch.randn(*shape, 64, dtype=dtype), torch.randn(outputs, 64, dtype=dtype)
    bias = torch.randn(outputs, dtype=dtype) if with_bias else None
    expected = F.linear(hidden, weight, bias)
    with torch.no_grad():
        got = linear_few_rows(hidden, weight, bias)
    assert got.shape == expected.shape and got.dtype == dtype
    torch.testing.assert_close(
        got, expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-4 if dtype != torch.bfloat16 else 0.1
    )


def test_gradients_flow():
    hidden = torch.randn(1, 64, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(LEAST_WEIGHTS // 64, 64, dtype=torch.float64)
    linear_few_rows(hidden, weight, None).sum().backward()
    torch.testing.assert_close(hidden.grad[0], weight.sum(0))


def changes(layer):
    """Ways in which users change what calling a layer does; each counts its calls."""
    calls = []
    plain = layer.forward
    yield "forward hook", lambda: layer.register_forward_hook(lambda *_: calls.append(1)), calls
    yield "forward pre-hook", lambda: layer.register_forward_pre_hook(lambda *_: calls.append(1)), calls
    yield "global hook", lambda: register_module_forward_hook(lambda *_: calls.append(1)), calls

    class Restored:
        def __init__(self):
            layer.forward = lambda x: calls.append(1) or plain(x)

        def remove(self):
            del layer.forward

    yield "replaced forward", Restored, calls


def test_whatever_users_do_to_a_layer_takes_effect():
    layer, x = torch.nn.Linear(128, 128), torch.randn(1, 1, 128)
    with torch.no_grad():
        expected = layer(x)
        assert is_plain(layer)
        for name, change, calls in changes(layer):
            handle = change()
            assert torch.allclose(linear(layer, x), expected, atol=1e-6)
            assert calls == [1], name
            calls.clear()
            handle.remove()
        assert is_plain(layer)
    for hook in (layer.register_full_backward_hook, layer.register_full_backward_pre_hook):
        handle = hook(lambda *_: None)
        assert not is_plain(layer)
        handle.remove()
    torch.nn.utils.parametrizations.weight_norm(layer)
    assert not is_plain(layer)


def test_what_took_the_place_of_a_layer_gets_contiguous_inputs():
    """The EMA's output is laid out by channels, and not every kernel looks at strides."""

    class Other(torch.nn.Linear):
        def forward(self, x):
            assert x.is_contiguous()
            return super().forward(x)

    x = torch.randn(2, 4, 3).transpose(1, 2)
    layer = Other(4, 5)
    torch.testing.assert_close(linear(layer, x), F.linear(x, layer.weight, layer.bias))
