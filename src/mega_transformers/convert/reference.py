"""A second, plain float64 implementation of Mega's layers, to check conversions against.

It shares no code with `ops`, `layers` and `models`, and reads weights under the names that their source gives them:
those of the authors' code, of transformers 4.40.2 and of its earlier revisions. Where the two disagree, or both are
wrong (docs/parity.md), it follows the right side, as the models of this package do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

EPSILON = 1e-5
AVERAGE = ("move.", "ema_gate.")
"""Names of the moving average's modules; their weights always stay float32."""


class Weights:
    """The tensors of a checkpoint below a prefix, by name, in float64.

    Args:
        tensors: All of them.
        prefix: The prefix of the names.
        rounded: The dtype that the conversion stores, to which weights are rounded first; None does not round.
        reading: Called with the full name of every tensor that is used.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        prefix: str = "",
        rounded: torch.dtype | None = None,
        reading: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.tensors = tensors
        self.prefix = prefix
        self.rounded = rounded
        self.reading = reading

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.tensors

    def __call__(self, *names: str) -> Tensor:
        """The tensor under the first of `names` that exists.

        Raises:
            KeyError: if no such tensor exists.
        """
        for name in names:
            tensor = self.tensors.get(self.prefix + name)
            if tensor is not None:
                self.reading(self.prefix + name)
                if self.rounded is not None and not any(part in self.prefix + name for part in AVERAGE):
                    tensor = tensor.to(self.rounded)
                return tensor.double()
        raise KeyError(f"the checkpoint lacks {self.prefix}{names[0]}")

    def __bool__(self) -> bool:
        return any(name.startswith(self.prefix) for name in self.tensors)

    def within(self, *prefixes: str) -> Weights:
        """The weights below the first of `prefixes` that occurs; empty if none does."""
        views = [Weights(self.tensors, self.prefix + prefix, self.rounded, self.reading) for prefix in prefixes]
        return next((view for view in views if view), views[0])

    def numbered(self, *prefixes: str) -> Iterator[Weights]:
        """The weights below prefix0., prefix1., ..., by number."""
        inside = self.within(*prefixes)
        names = [name.removeprefix(inside.prefix) for name in self.tensors if name.startswith(inside.prefix)]
        numbers = {int(first) for first in (name.partition(".")[0] for name in names) if first.isdigit()}
        for number in sorted(numbers):
            yield Weights(self.tensors, f"{inside.prefix}{number}.", self.rounded, self.reading)


@dataclass(frozen=True)
class BlockSettings:
    """The part of a configuration that the layers' arithmetic depends on.

    Args:
        activation: Name of the activation function.
        attention: softmax, laplace or relu2.
        norm: Kind of the norms; "scale" alone is 4.40.2's rmsnorm, which did not normalise.
        prenorm: Whether attention sub-layers are pre-norm.
        prenorm_ffn: Whether feed-forward sub-layers are pre-norm.
        rotary: Whether the bias is rotary.
        causal: Whether attention is causal, and the average one-directional.
        chunk: Tokens per chunk of attention, or None.
        truncation: Number of lags that the average keeps, or None.
        centre: Index of offset 0 in a simple bias; None for its middle.
        cross_centre: The same for cross-attention.
        averages_both: Whether the average runs in both directions.
    """

    activation: str
    attention: str
    norm: str
    prenorm: bool
    prenorm_ffn: bool
    rotary: bool
    causal: bool
    chunk: int | None
    truncation: int | None
    averages_both: bool
    centre: int | None = None
    cross_centre: int | None = None


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": lambda x: x * torch.sigmoid(x),
    "swish": lambda x: x * torch.sigmoid(x),
    "relu": lambda x: x.clamp(min=0),
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_accurate": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "linear": lambda x: x,
    "tanh": torch.tanh,
}
ACTIVATIONS["gelu_fast"] = ACTIVATIONS["gelu_new"] = ACTIVATIONS["gelu_accurate"]


def activate(name: str, x: Tensor) -> Tensor:
    """The activation `name` of x.

    Raises:
        KeyError: for an activation that only transformers has.
    """
    if name not in ACTIVATIONS:
        raise KeyError(f"the activation {name!r} has no plain form here")
    return ACTIVATIONS[name](x)


def linear(w: Weights, x: Tensor) -> Tensor:
    """x weight^T, and the bias if there is one."""
    y = x @ w("weight").T
    return y + w("bias") if "bias" in w else y


def normalise(w: Weights, x: Tensor, kind: str) -> Tensor:
    """The norm over the last dimension of x (B, L, d); missing weights are 1 or 0."""
    weight = w("weight") if "weight" in w else 1.0
    bias = w("bias") if "bias" in w else 0.0
    if kind == "layernorm":
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + EPSILON).sqrt() * weight + bias
    if kind == "scale":
        return weight * x
    if kind in ("scalenorm", "rmsnorm"):
        scale = w("scalar") if "scalar" in w else weight
        return scale * x / (x.square().mean(-1, keepdim=True) + EPSILON).sqrt()
    return (x - w("running_mean")) / (w("running_var") + EPSILON).sqrt() * weight + bias


def moving_average(w: Weights, x: Tensor, real: Tensor, settings: BlockSettings) -> Tensor:
    """silu(EMA(x) + omega x) for x (B, L, d), padding contributes nothing to the average."""
    length, width = x.shape[1], x.shape[2]
    weight = torch.sigmoid(w("delta", "damping_factor")).squeeze(-1)
    decay = 1 - weight * torch.sigmoid(w("alpha", "decay_factor")).squeeze(-1)
    inward = weight * w("beta", "ema_expansion_matrix").squeeze(-1)
    outward = w("gamma", "kernel_projection_matrix") / math.sqrt(weight.shape[1])
    lags = torch.arange(min(length, settings.truncation or length), dtype=torch.float64)
    kernel = torch.zeros(weight.shape[0], len(lags), dtype=torch.float64)
    for state in range(weight.shape[1]):
        scale = (outward[:, state] * inward[:, state]).unsqueeze(-1)
        kernel += scale * decay[:, state].unsqueeze(-1) ** lags
    inputs = (x * real.unsqueeze(-1)).transpose(1, 2)
    averaged = convolve(inputs, kernel[:width])
    if settings.averages_both:
        averaged = averaged + convolve(inputs.flip(-1), kernel[width:]).flip(-1)
    return ACTIVATIONS["silu"](averaged.transpose(1, 2) + w("omega", "residual_weight") * x)


def convolve(x: Tensor, kernel: Tensor) -> Tensor:
    """y_t = sum_i kernel_i x_(t-i) for x (B, d, L) and kernel (d, K)."""
    length = x.shape[-1]
    size = length + kernel.shape[-1]
    return torch.fft.irfft(torch.fft.rfft(x, size) * torch.fft.rfft(kernel, size), size)[..., :length]


def relative_bias(w: Weights, queries: int, keys: int, rotary: bool, centre: int | None) -> Tensor:
    """(queries, keys) numbers that depend on key position - query position alone."""
    offsets = torch.arange(1 - queries, keys)
    if rotary:
        (a1, a2), (b1, b2) = w("alpha").flatten().chunk(2), w("beta", "b_param").flatten().chunk(2)
        half = a1.numel()
        angles = offsets.unsqueeze(-1) * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        diagonals = torch.cos(angles) @ (a1 * b1 + a2 * b2) + torch.sin(angles) @ (a2 * b1 - a1 * b2)
    else:
        numbers = w("rel_pos_bias")
        diagonals = numbers[offsets + ((numbers.numel() - 1) // 2 if centre is None else centre)]
    return diagonals[torch.arange(keys) - torch.arange(queries).unsqueeze(1) + queries - 1]


def attend(scores: Tensor, bias: Tensor, seen: Tensor, kind: str, width: int) -> Tensor:
    """Attention weights of products `scores` (B, n, m); `seen` (B, n, m) says which keys a query may see."""
    if kind == "softmax":
        weights = torch.softmax((scores / math.sqrt(width) + bias).masked_fill(~seen, -torch.inf), dim=-1)
        return weights.nan_to_num(0.0)
    raw = scores / seen.sum(-1, keepdim=True).clamp(min=1) + bias
    if kind == "relu2":
        weights = raw.clamp(min=0).square()
    else:
        weights = 0.5 * (1 + torch.erf((raw - math.sqrt(0.5)) / (math.sqrt(0.25 / math.pi) * math.sqrt(2))))
    return weights * seen


def gated_attention(w: Weights, x: Tensor, real: Tensor, settings: BlockSettings) -> Tensor:
    """Moving average and gated attention, (B, L, d) -> (B, L, d); `real` (B, L) is False at padding."""
    residual = x
    norm = w.within("norm.norm.")
    if settings.prenorm:
        x = normalise(norm, x, settings.norm)
    values = activate(settings.activation, linear(w.within("v_proj."), x))
    base = linear(w.within("mx_proj."), moving_average(w.within(*AVERAGE), x, real, settings))
    scale, shift = w("gamma", "qk_weight"), w("beta", "qk_bias")
    (length, width), shared_width = x.shape[1:], scale.shape[1]
    update, shared, gate, candidate = base.split([width, shared_width, values.shape[-1], width], dim=-1)
    shared = ACTIVATIONS["silu"](shared)
    queries, keys = shared * scale[0] + shift[0], shared * scale[1] + shift[1]
    chunk = settings.chunk or length
    attended = torch.empty_like(values)
    for start in range(0, length, chunk):
        part = slice(start, min(start + chunk, length))
        n = part.stop - start
        seen = real[:, None, part].expand(-1, n, -1)
        if settings.causal:
            seen = seen & torch.ones(n, n, dtype=torch.bool).tril()
        bias = relative_bias(w.within("rel_pos_bias."), n, n, settings.rotary, settings.centre)
        scores = queries[:, part] @ keys[:, part].transpose(1, 2)
        attended[:, part] = attend(scores, bias, seen, settings.attention, shared_width) @ values[:, part]
    candidate = candidate + linear(w.within("h_proj."), attended * ACTIVATIONS["silu"](gate))
    output = residual + torch.sigmoid(update) * (activate(settings.activation, candidate) - residual)
    return output if settings.prenorm else normalise(norm, output, settings.norm)


def gated_cross_attention(
    w: Weights, x: Tensor, source: Tensor, source_real: Tensor, settings: BlockSettings
) -> Tensor:
    """The sub-layer over an encoder's states `source` (B, S, d), (B, L, d) -> (B, L, d)."""
    residual = x
    norm = w.within("norm.norm.")
    if settings.prenorm:
        x = normalise(norm, x, settings.norm)
    keys = linear(w.within("k_proj."), source)
    values = activate(settings.activation, linear(w.within("v_proj."), source))
    base = linear(w.within("q_proj."), x)
    width, shared_width = x.shape[2], keys.shape[2]
    update, gate, queries = base.split([width, width, shared_width], dim=-1)
    bias = relative_bias(
        w.within("rel_pos_bias."), x.shape[1], source.shape[1], settings.rotary, settings.cross_centre
    )
    seen = source_real[:, None, :].expand(-1, x.shape[1], -1)
    attended = attend(queries @ keys.transpose(1, 2), bias, seen, settings.attention, shared_width) @ values
    candidate = activate(settings.activation, linear(w.within("h_proj."), attended * ACTIVATIONS["silu"](gate)))
    output = residual + torch.sigmoid(update) * (candidate - residual)
    return output if settings.prenorm else normalise(norm, output, settings.norm)


def feed_forward(w: Weights, x: Tensor, settings: BlockSettings) -> Tensor:
    """The feed-forward sub-layer, (B, L, d) -> (B, L, d)."""
    norm = w.within("norm.norm.")
    inner = normalise(norm, x, settings.norm) if settings.prenorm_ffn else x
    output = x + linear(w.within("fc2."), activate(settings.activation, linear(w.within("fc1."), inner)))
    return output if settings.prenorm_ffn else normalise(norm, output, settings.norm)


def block(
    w: Weights,
    x: Tensor,
    real: Tensor,
    settings: BlockSettings,
    source: Tensor | None = None,
    source_real: Tensor | None = None,
) -> Tensor:
    """One layer, (B, L, d) -> (B, L, d), with cross-attention where `source` is given."""
    x = gated_attention(w.within("mega_layer."), x, real, settings)
    if source is not None and source_real is not None:
        x = gated_cross_attention(w.within("cross_attn."), x, source, source_real, settings)
    feed = w.within("nffn.")
    return feed_forward(feed, x, settings) if feed else x
