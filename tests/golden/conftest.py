"""Ways to compute the same numbers, each of which must give the golden ones."""

from __future__ import annotations

import pytest
from golden_io import DEVICES

import mega_transformers.layers.ema as ema_layer
import mega_transformers.layers.gated_attention as attention_layer
from mega_transformers.ops.attention import attention
from mega_transformers.ops.ema import ema

# attn_implementation, then the op back ends forced under it (None: what the package chooses)
IMPLEMENTATIONS = {
    "eager": ("eager", None, None),
    "sdpa": ("sdpa", None, None),
    "reference+fft": ("sdpa", "reference", "fft"),
    "tiled+chunked": ("sdpa", "tiled", "chunked"),
    "tiled+direct": ("sdpa", "tiled", "direct"),
    "reference+reference": ("sdpa", "reference", "reference"),
}


@pytest.fixture(params=DEVICES)
def device(request) -> str:
    return request.param


@pytest.fixture(params=IMPLEMENTATIONS)
def attn_implementation(request, monkeypatch) -> str:
    """The `attn_implementation` to use, with the ops' back ends forced where the parameter says so."""
    implementation, attention_backend, ema_backend = IMPLEMENTATIONS[request.param]
    if attention_backend is not None:

        def forced_attention(*args, activation, need_weights, backend, **kwargs):
            backend = "reference" if need_weights else attention_backend
            return attention(*args, activation=activation, need_weights=need_weights, backend=backend, **kwargs)

        monkeypatch.setattr(attention_layer, "attention", forced_attention)
    if ema_backend is not None:

        def forced_ema(*args, **kwargs):
            # a transform has no state to go on from
            stateful = kwargs.get("return_state") and ema_backend in ("fft", "direct")
            return ema(*args, **kwargs, backend=None if stateful else ema_backend)

        monkeypatch.setattr(ema_layer, "ema", forced_ema)
    return implementation
