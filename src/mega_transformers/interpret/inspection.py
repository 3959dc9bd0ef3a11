"""What a Mega model has learnt, from its weights as plain data: parameters, EMA kernels, half-lives, position biases.

All is computed in float64 on the CPU; the model is not changed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import nn

from ..layers import MegaBlock, MegaMultiDimensionDampedEma
from ..models.mega.modeling_mega import MegaModel
from ..ops.ema import EMACoefficients, ema_coefficients, ema_kernel
from ..ops.relative_bias import RelativeBias

FORWARD, BACKWARD = "forward", "backward"
"""Directions of an EMA: over the current and earlier tokens, and over the current and later ones."""

HALF, MOST = 0.5, 0.95
"""Shares of a kernel's absolute mass: the lags that hold the first are its half-life, the second its reach."""

HORIZON = 1 << 16
"""Lags up to which a kernel without truncation is summed."""

_BLOCK = 64  # lags to sum at once
_FIRST_STOP = 256
_ELEMENTS = 1 << 20  # numbers of kernels at a time: 8 MiB
_TOLERANCE = 1e-6  # precision of a kernel's mass
_MOST_PICTURED = 4096
_MOST_DISTANCE = 1024

# fields of the configuration that matter to a reader -> their meaning
CONFIG_FIELDS = {
    "num_hidden_layers": "blocks",
    "hidden_size": "width d of the hidden states and of the EMA",
    "intermediate_size": "width h of the values in attention",
    "shared_representation_size": "width z of queries and keys",
    "nffn_hidden_size": "width of the feed-forward sub-layer",
    "ema_projection_size": "EMA states N per channel",
    "bidirectional": "EMA in both directions",
    "truncation": "lags after which the EMA is cut off",
    "is_decoder": "causal",
    "use_chunking": "attention within chunks only",
    "chunk_size": "tokens per chunk",
    "attention_activation": "activation of attention",
    "relative_positional_bias": "kind of position bias",
    "max_positions": "positions the model is made for",
    "normalization_type": "norm",
    "activation": "activation of values, candidates and feed-forward",
    "input_type": "what the model reads",
    "vocab_size": "tokens of the vocabulary",
}

PARTS = ("embeddings", "EMA", "gated attention", "cross-attention", "feed-forward", "norms", "head")
# parts by the names of parameters; the first match wins, and names without a match belong to the head
_PART_OF_NAME = {
    r"(^|[._])norm\.": "norms",
    r"(^|\.)embedding_layer\.": "embeddings",
    r"\.ema_gate\.": "EMA",
    r"\.mega_layer\.": "gated attention",
    r"\.cross_attn\.": "cross-attention",
    r"\.nffn\.": "feed-forward",
}


@dataclass(frozen=True)
class ParameterCount:
    """The number of parameters of a part; shared parameters count once, at their first place.

    Args:
        side: "" or, of two Megas, "encoder" or "decoder"; "" for the head.
        layer: The number of the block, from 1; None outside of blocks.
        part: One of `PARTS`.
        count: The number of parameters.
    """

    side: str
    layer: int | None
    part: str
    count: int


@dataclass(frozen=True)
class EmaMemory:
    """The reach of a layer's EMA in one direction.

    Args:
        direction: `FORWARD` or `BACKWARD`.
        half_lives: (d,) tokens that hold half of the absolute mass of a channel's kernel; infinite beyond `HORIZON`,
            and NaN for a kernel of zeros. See `mass_of_kernels`.
        reaches: (d,) the same for 95% of the mass.
        component_half_lives: (d, N) tokens after which each of a channel's exponentials has halved.
        curve: The share of a kernel's mass within the first `Side.curve_lags` lags; mean over channels.
    """

    direction: str
    half_lives: np.ndarray
    reaches: np.ndarray
    component_half_lives: np.ndarray = field(metadata={"json": "quantiles"})
    curve: np.ndarray


@dataclass(frozen=True)
class Bias:
    """A position bias.

    Args:
        distances: (n,) distances, position of the key - position of the query.
        values: (n,) what attention adds to a score at these distances.
    """

    distances: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class LayerWeights:
    """What the weights of a block tell.

    Args:
        memory: Per direction.
        kernels: (d, distances) the EMA's response to a 1 that is `Side.kernel_distances` away, both directions added.
        position_bias: The bias of self-attention.
        cross_position_bias: The bias of cross-attention, if the block has it.
    """

    memory: list[EmaMemory]
    kernels: np.ndarray = field(metadata={"json": False})
    position_bias: Bias
    cross_position_bias: Bias | None


@dataclass(frozen=True)
class Side:
    """The weights of a Mega: of a whole model, an encoder or a decoder.

    Args:
        name: "", or "encoder" or "decoder".
        config: The fields of its configuration in `CONFIG_FIELDS`.
        chunk: Tokens per chunk of attention; None without chunks.
        layers: Its blocks.
        kernel_distances: (n,) distances of `LayerWeights.kernels`: below 0 tokens before, above 0 tokens after.
        curve_lags: Numbers of lags of `EmaMemory.curve`.
    """

    name: str
    config: dict[str, Any]
    chunk: int | None
    layers: list[LayerWeights]
    kernel_distances: np.ndarray
    curve_lags: np.ndarray


def sides_of(model: nn.Module) -> dict[str, MegaModel]:
    """The `MegaModel`s of a model by name: "" for the only one, "encoder" and "decoder" of an encoder-decoder.

    Args:
        model: A model of this package.

    Raises:
        ValueError: if it has none.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, MegaModel)}
    if not found:
        raise ValueError(f"a {type(model).__name__} contains no Mega module; give a model of this package")
    if len(found) == 1:
        return {"": next(iter(found.values()))}
    return {name.rpartition(".")[2]: module for name, module in found.items()}


def count_parameters(model: nn.Module) -> list[ParameterCount]:
    """Counts the parameters of a model by side, block and part, in its order. They add up to all parameters.

    Args:
        model: A model of this package.
    """
    counts: dict[tuple[str, int | None, str], int] = {}
    for name, parameter in model.named_parameters():
        part = next((part for pattern, part in _PART_OF_NAME.items() if re.search(pattern, name)), "head")
        block = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
        side = re.search(r"(?:^|\.)(encoder|decoder)\.", name)
        key = (side[1] if side else "", int(block[1]) + 1 if block else None, part)
        counts[key] = counts.get(key, 0) + parameter.numel()
    return [ParameterCount(*key, count) for key, count in counts.items()]


def exact_coefficients(module: MegaMultiDimensionDampedEma) -> list[EMACoefficients]:
    """Coefficients (d, N) of an EMA in float64 on the CPU: of the forward, and if there is one, the backward EMA.

    Args:
        module: The layer, with parameters of any dtype on any device.
    """
    parameters = (
        module.damping_factor,
        module.decay_factor,
        module.ema_expansion_matrix,
        module.kernel_projection_matrix,
    )
    both = ema_coefficients(*(parameter.detach().cpu().double() for parameter in parameters))
    directions = 2 if module.bidirectional else 1
    return [EMACoefficients(*parts) for parts in zip(*(coefficient.chunk(directions) for coefficient in both))]


class KernelMass(NamedTuple):
    """The result of `mass_of_kernels`.

    Attributes:
        times: (shares, d), in tokens.
        total: (d,) the absolute mass: the sum over all lags of |k|.
    """

    times: torch.Tensor
    total: torch.Tensor


def mass_of_kernels(
    coefficients: EMACoefficients, shares: Sequence[float] = (HALF, MOST), truncation: int | None = None
) -> KernelMass:
    """The number of lags, from the current token, that hold a share of the absolute mass of each channel's kernel.

    With M(t) = |k_0| + ... + |k_{t-1}|, linear between whole t, that is the least t with M(t) = share * M(all lags).
    It is infinite beyond `HORIZON`, and NaN for a kernel of zeros.

    Args:
        coefficients: (d, N), in float64, as `exact_coefficients` returns them.
        shares: Numbers between 0 and 1.
        truncation: The number of lags after which the kernel is cut off.
    """
    channels = coefficients.decay.shape[0]
    # the mass of all lags up to the end of each block
    ends = coefficients.decay.new_full((channels, HORIZON // _BLOCK), math.inf)
    total = coefficients.decay.new_zeros(channels)
    left, start, stop = torch.arange(channels), 0, _FIRST_STOP
    while len(left):
        unsettled = []
        for some in left.split(max(1, _ELEMENTS // (stop - start))):
            part = EMACoefficients(*(coefficient[some] for coefficient in coefficients))
            kernel = _kernel_from(part, torch.tensor([start]), stop - start, truncation).abs_()
            mass = kernel.unflatten(-1, (-1, _BLOCK)).sum(-1).cumsum(-1)
            if start:
                mass += ends[some, start // _BLOCK - 1].unsqueeze(-1)
            ends[some, start // _BLOCK : stop // _BLOCK] = mass
            rest = part.input * part.output * torch.exp(stop * part.log_decay) / -torch.expm1(part.log_decay)
            rest = (
                torch.zeros_like(rest) if truncation is not None and truncation <= stop else rest.nan_to_num(nan=0.0)
            )
            # bounds of the mass of all later lags; they are equal if the kernel keeps its sign
            least, most = rest.sum(-1).abs(), rest.abs().sum(-1)
            total[some] = mass[:, -1] + least
            settled = (most - least <= _TOLERANCE * total[some]) & (mass[:, -1] >= max(shares) * total[some])
            unsettled.append(some[~settled])
        if stop == HORIZON:
            break
        left, start, stop = torch.cat(unsettled), stop, min(4 * stop, HORIZON)
    times = torch.stack([_crossing(coefficients, ends, share * total, truncation) for share in shares])
    times[:, total == 0] = math.nan
    return KernelMass(times, total)


def _kernel_from(
    coefficients: EMACoefficients, start: torch.Tensor, length: int, truncation: int | None
) -> torch.Tensor:
    """The kernels (d, length), starting at lag `start`, (d,) or (1,)."""
    scale = torch.exp(start.unsqueeze(-1) * coefficients.log_decay)
    kernel = ema_kernel(coefficients._replace(input=coefficients.input * scale), length)
    if truncation is not None:
        kernel = torch.where(start.unsqueeze(-1) + torch.arange(length) < truncation, kernel, 0.0)
    return kernel


def _crossing(
    coefficients: EMACoefficients, ends: torch.Tensor, target: torch.Tensor, truncation: int | None
) -> torch.Tensor:
    """The lag at which the mass (d, blocks), known at the ends of blocks, reaches target (d,), by interpolation."""
    index = torch.searchsorted(ends, target.unsqueeze(-1))
    block = index.clamp(max=ends.shape[1] - 1)
    before = torch.where(block > 0, ends.gather(-1, (block - 1).clamp(min=0)), 0.0)
    kernel = _kernel_from(coefficients, _BLOCK * block.squeeze(-1), _BLOCK, truncation).abs()
    mass = before + kernel.cumsum(-1)
    lag = torch.searchsorted(mass, target.unsqueeze(-1)).clamp(max=_BLOCK - 1)
    height = kernel.gather(-1, lag)
    share = (target.unsqueeze(-1) - mass.gather(-1, lag) + height) / height
    return torch.where(index < ends.shape[1], _BLOCK * block + lag + share, math.inf).squeeze(-1)


def half_lives_of_components(coefficients: EMACoefficients) -> torch.Tensor:
    """(d, N) tokens after which each exponential has halved: log(1/2) / log(1 - p * a); infinite without decay.

    Args:
        coefficients: (d, N), as `exact_coefficients` returns them.
    """
    return math.log(0.5) / coefficients.log_decay


def lags_by_octave(greatest: int) -> np.ndarray:
    """Whole lags 0 ... greatest, at most four per octave, for a logarithmic axis."""
    steps = range(4 * math.ceil(math.log2(max(greatest, 1))) + 1)
    return np.array(sorted({0, greatest, *(lag for step in steps if (lag := round(2 ** (step / 4))) <= greatest)}))


def inspect_weights(name: str, model: MegaModel) -> Side:
    """Computes half-lives, kernels and position biases of a Mega from its weights.

    Args:
        name: "", "encoder" or "decoder", as `sides_of` names it.
        model: The Mega, on any device and in any dtype.
    """
    config = model.config
    blocks = [cast(MegaBlock, block) for block in model.layers]
    coefficients = [exact_coefficients(block.mega_layer.ema_gate) for block in blocks]
    masses = [[mass_of_kernels(each, truncation=config.truncation) for each in layer] for layer in coefficients]
    lags = lags_by_octave(_greatest_pictured([mass.times[1] for layer in masses for mass in layer]))
    return Side(
        name=name,
        config={field: getattr(config, field) for field in CONFIG_FIELDS},
        chunk=config.chunk_size if config.use_chunking else None,
        layers=[
            _layer(block, each, mass, lags) for block, each, mass in zip(blocks, coefficients, masses, strict=True)
        ],
        kernel_distances=np.concatenate([-lags[:0:-1], lags]) if config.bidirectional else -lags[::-1],
        curve_lags=lags[1:],
    )


def _greatest_pictured(reaches: list[torch.Tensor]) -> int:
    """The last lag of pictures of kernels: a power of 2 that holds the mass of 99% of the channels."""
    every = torch.cat(reaches)
    every = every[~every.isnan()]
    reach = every.clamp(max=_MOST_PICTURED).quantile(0.99).item() if len(every) else 1.0
    return min(_MOST_PICTURED, max(16, 2 ** math.ceil(math.log2(max(reach, 1.0)))))


def _layer(
    block: MegaBlock, coefficients: list[EMACoefficients], masses: list[KernelMass], lags: np.ndarray
) -> LayerWeights:
    config = block.mega_layer.config
    memory, kernels = [], []
    for direction, each, mass in zip((FORWARD, BACKWARD), coefficients, masses):
        kernel = _kernel_from(each, torch.tensor([0]), int(lags[-1]) + 1, config.truncation)
        within = kernel.abs().cumsum(-1)[:, lags[1:] - 1] / mass.total.unsqueeze(-1)
        memory.append(
            EmaMemory(
                direction=direction,
                half_lives=mass.times[0].numpy(),
                reaches=mass.times[1].numpy(),
                component_half_lives=half_lives_of_components(each).numpy(),
                curve=within[mass.total > 0].mean(0).numpy(),
            )
        )
        kernels.append(kernel[:, lags].numpy())
    together = kernels[0][:, ::-1]
    if len(kernels) == 2:  # the current token counts in both directions
        together = np.concatenate([together[:, :-1], together[:, -1:] + kernels[1][:, :1], kernels[1][:, 1:]], axis=1)
    reach = config.chunk_size if config.use_chunking else config.max_positions
    cross = None
    if block.cross_attn is not None:
        positions = config.cross_attention_max_positions or config.max_positions
        cross = _bias(block.cross_attn.rel_pos_bias(), positions - 1, both_sides=True)
    return LayerWeights(
        memory=memory,
        kernels=together,
        position_bias=_bias(block.mega_layer.rel_pos_bias(), reach - 1, both_sides=not config.is_decoder),
        cross_position_bias=cross,
    )


@torch.no_grad()
def _bias(bias: RelativeBias, reach: int, both_sides: bool) -> Bias:
    """A bias at all distances up to `reach`; in a causal model, only at distances to earlier keys."""
    reach = min(reach, bias.reach, _MOST_DISTANCE)
    high = reach if both_sides else 0
    values = bias.table(-reach, high).values.float().cpu().numpy()
    return Bias(np.arange(-reach, high + 1), values.copy())
