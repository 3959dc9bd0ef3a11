"""The single ops of both packages, and our back ends of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.cases import OLD, Workload
from benchmarks.models import mega_classes

EMA_CHANNELS = 512


class Op(NamedTuple):
    """A function `call` of batch-first `(rows, length, ...)` inputs, its module, and its output's gradient."""

    module: nn.Module
    call: Callable[..., Tensor]
    inputs: list[Tensor]
    gradient: Tensor


def _ema_layer(peer: str, workload: Workload, generator: torch.Generator) -> Op:
    if peer == OLD:
        from transformers.models.mega.modeling_mega import MegaMultiDimensionDampedEma
    else:
        from mega_transformers.layers import MegaMultiDimensionDampedEma

    config = mega_classes(peer).MegaConfig(hidden_size=EMA_CHANNELS, ema_projection_size=16, bidirectional=True)
    ema = MegaMultiDimensionDampedEma(config).train()
    _initialise_ema(ema, generator)
    shape = (1, workload.length, EMA_CHANNELS)
    x, gradient = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)

    def call(x: Tensor) -> Tensor:
        if peer == OLD:  # length first; with one row the transposition is a view, and costs nothing
            return ema(x.transpose(0, 1))[0].transpose(0, 1)
        result = ema(x)
        # a checkout before November 2026 leaves the activation to its caller
        return result if torch.is_tensor(result) else ema.activate(result[0], x, result[1])

    return Op(ema, call, [x], gradient)


def _initialise_ema(ema: nn.Module, generator: torch.Generator) -> None:
    """4.40.2's distribution, which there is drawn by the model and not by the layer."""
    stds = {"damping_factor": 0.2, "decay_factor": 0.2, "ema_expansion_matrix": 0.02}
    with torch.no_grad():
        for name, parameter in sorted(ema.named_parameters()):
            parameter.normal_(std=stds.get(name, 1.0), generator=generator)
        expansion = ema.get_parameter("ema_expansion_matrix")
        expansion[:, 0::2] += 1
        expansion[:, 1::2] -= 1


class _Parameters(nn.Module):
    """Named parameters without a forward."""

    def __init__(self, **shapes: tuple[int, ...]):
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))


def _ema_op(peer: str, workload: Workload, generator: torch.Generator) -> Op:
    from mega_transformers.ops.ema import ema, ema_coefficients

    states, channels = (2 * workload.width, 16, 1), (workload.batch, workload.length, workload.width)
    module = _Parameters(
        damping_factor=states, decay_factor=states, ema_expansion_matrix=states, kernel_projection_matrix=states[:2]
    )
    _initialise_ema(module, generator)

    def call(x: Tensor) -> Tensor:
        return ema(x, ema_coefficients(*module.parameters()), bidirectional=True, backend=workload.backend)[0]

    x, gradient = torch.randn(channels, generator=generator), torch.randn(channels, generator=generator)
    return Op(module, call, [x], gradient)


def _attention_op(peer: str, workload: Workload, generator: torch.Generator) -> Op:
    from mega_transformers.ops.attention import attention
    from mega_transformers.ops.layout import self_attention_layout
    from mega_transformers.ops.relative_bias import RotaryBias

    module = _Parameters(alpha=(workload.shared,), beta=(workload.shared,))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.2, generator=generator)
    module.to(dtype=getattr(torch, workload.dtype))

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        layout = self_attention_layout(None, q.shape[1], chunk_size=workload.chunk)
        bias = RotaryBias(*module.parameters())
        return attention(q, k, v, bias, layout, activation=workload.attention, backend=workload.backend)[0]

    widths = (workload.shared, workload.shared, workload.hidden, workload.hidden)
    q, k, v, gradient = (torch.randn(workload.batch, workload.length, n, generator=generator) for n in widths)
    return Op(module, call, [q, k, v], gradient)


OPS: dict[str, Callable[[str, Workload, torch.Generator], Op]] = {
    "ema-layer": _ema_layer,
    "ema-op": _ema_op,
    "ema-forward": _ema_op,
    "attention-op": _attention_op,
    "attention-forward": _attention_op,
}
