"""Records what a Mega model does while it reads a text: gates and attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..assets import RECIPES
from ..errors import RecipeError
from ..evaluation.decoding import DECODING, encode_sources
from ..layers import MegaBlock, MegaGatedCrossAttention, MegaMovingAverageGatedAttention
from ..layers.gated_attention import default_layout
from ..models.mega.modeling_mega import MegaModel
from ..models.mega.validation_mega import positions_limit
from .inspection import sides_of

MOST_TOKENS = 512
"""The most tokens of a text; attention is a matrix of this size in every layer."""

SAMPLE_TOKENS = 320
SAMPLE_WORD = "transformers"
_MOST_WRITTEN = 128
_SAMPLE_CHARACTERS = 4 * SAMPLE_TOKENS


@dataclass(frozen=True)
class Passage:
    """The input of a model.

    Args:
        description: A description for people: "the given text".
        inputs: Side -> ids (1, L), or values (1, L).
        texts: Side -> its text; empty for values.
        tokens: Side -> the L tokens as text, or the values.
    """

    description: str
    inputs: dict[str, torch.Tensor] = field(metadata={"json": False})
    texts: dict[str, str]
    tokens: dict[str, list[str]]


@dataclass(frozen=True)
class Spread:
    """Activation of a gate over tokens and features.

    Args:
        mean: Mean.
        low: 10% quantile.
        high: 90% quantile.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Attention:
    """Where the attention of a layer looks.

    Args:
        shares: (L, S) weights, each row divided by its sum; zeros in a row without any weight.
        effective: Effective number of keys of a query: e to the entropy of its shares, mean over queries.
        distance: Mean distance |key - query|, in tokens, weighted by shares; None in cross-attention.
        even_distance: The same if a query gave equal shares to all keys that it sees.
        within: (L,) the share of weight at distances up to 0, 1, 2, ...
    """

    shares: np.ndarray = field(metadata={"json": False})
    effective: float
    distance: float | None = None
    even_distance: float | None = None
    within: np.ndarray | None = None


@dataclass(frozen=True)
class LayerReading:
    """What a block did while reading a passage.

    Args:
        update: Activation of the update gate, a sigmoid.
        reset: Activation of the reset gate, a silu.
        attention: Where self-attention looked.
        cross_update, cross_reset, cross_attention: The same of cross-attention; None without it.
    """

    update: Spread
    reset: Spread
    attention: Attention
    cross_update: Spread | None = None
    cross_reset: Spread | None = None
    cross_attention: Attention | None = None


@dataclass(frozen=True)
class Reading:
    """A passage, and what every block did while reading it.

    Args:
        passage: What was read.
        sides: Name of a side (see `sides_of`) -> its blocks.
    """

    passage: Passage
    sides: dict[str, list[LayerReading]]


def longest_input(model: nn.Module) -> int | None:
    """The most tokens that a model reads, or None."""
    limits = []
    for side in sides_of(model).values():
        limits.append(positions_limit(side.config))
        if side.config.add_cross_attention and side.config.relative_positional_bias == "simple":
            limits.append(side.config.positions_of_simple_bias(cross_attention=True))
    return min((limit for limit in limits if limit is not None), default=None)


def why_unreadable(model: nn.Module, tokenizer: Any) -> str | None:
    """Why a model cannot read a text on its own, as part of a sentence; None if it can."""
    sides = sides_of(model)
    if len(sides) == 1 and sides[""].config.add_cross_attention:
        return "it is a decoder that attends to an encoder, which is not part of the model"
    if tokenizer is None and next(iter(sides.values())).config.input_type == "tokens":
        return "its folder has no tokenizer"
    return None


def prepare_passage(model: Any, tokenizer: Any, text: str | None = None) -> Passage:
    """Prepares a text for `read`. The target of an encoder-decoder is what it writes for the text.

    Args:
        model: A model of this package.
        tokenizer: Its tokenizer; not needed by a model that reads values.
        text: The text; None for a sample of the package.

    Raises:
        RecipeError: for a text without tokens, with more than `MOST_TOKENS`, or with more than the model takes; and
        for any text if the model reads values.
    """
    sides = sides_of(model)
    most = min(longest_input(model) or MOST_TOKENS, MOST_TOKENS)
    if len(sides) == 1 and sides[""].config.input_type == "values":
        if text is not None:
            raise RecipeError("the model reads real numbers, not text; leave --text and --text-file out")
        noise = torch.randn(1, min(256, most), generator=torch.Generator().manual_seed(0))
        numbers = [f"{value:.2f}" for value in noise[0].tolist()]
        return Passage("random numbers, since the model reads values", {"": noise}, {}, {"": numbers})
    if text is None:
        description = "a bundled sample"
        most = min(most, SAMPLE_TOKENS)
        sample = (RECIPES / "sample" / "test.txt").read_text(encoding="utf-8")[:_SAMPLE_CHARACTERS]
        ids = _encoded(model, tokenizer, sample, most)
        if tokenizer.unk_token_id in ids:  # for example a model of single words
            ids = _encoded(model, tokenizer, SAMPLE_WORD, most)
    else:
        description = "the given text"
        ids = _encoded(model, tokenizer, text)
        if not ids:
            raise RecipeError("the tokenizer finds no token in the text; give another text")
        if len(ids) > most:
            whose = "a report shows" if most == MOST_TOKENS else "the model takes"
            raise RecipeError(f"the text has {len(ids):,} tokens, but {whose} at most {most:,}; shorten it")
    inputs = {next(iter(sides)): torch.tensor([ids])}
    if len(sides) == 2:
        inputs["decoder"] = _target(model, inputs["encoder"], most)
    rows = {side: ids[0].tolist() for side, ids in inputs.items()}
    tokens = {side: [tokenizer.decode([id]) for id in row] for side, row in rows.items()}
    return Passage(
        description, inputs, {side: tokenizer.decode(row, **DECODING) for side, row in rows.items()}, tokens
    )


def _encoded(model: Any, tokenizer: Any, text: str, most: int | None = None) -> list[int]:
    """The ids of a text as the model reads texts, cut to `most`."""
    if model.config.is_encoder_decoder:
        return encode_sources(tokenizer, [text], most)[0]
    return tokenizer(text, truncation=most is not None, max_length=most, verbose=False)["input_ids"]


def _target(model: Any, source: torch.Tensor, most: int) -> torch.Tensor:
    """The input of the decoder: the model's greedy output for the source, or without a head the source."""
    if not model.can_generate():
        start = torch.full_like(source[:, :1], model.config.decoder_start_token_id or 0)
        return torch.cat([start, source], dim=1)[:, :most]
    new = min(model.generation_config.max_new_tokens or _MOST_WRITTEN, most - 1)
    with evaluating(model), torch.inference_mode():
        written = model.generate(source.to(model.device), max_new_tokens=new, do_sample=False, num_beams=1)
    return written.cpu()


def read(model: Any, passage: Passage) -> Reading:
    """Runs a model on a passage and records gates and attention. The model is not changed.

    Args:
        model: A model of this package.
        passage: What `prepare_passage` made for it.
    """
    sides = sides_of(model)
    readings: dict[str, list[LayerReading]] = {}
    states: torch.Tensor | None = None
    with evaluating(model), torch.inference_mode():
        for name, side in sides.items():
            given = passage.inputs[name].to(side.device)
            inputs: dict[str, Any] = {"input_values" if given.is_floating_point() else "input_ids": given}
            if side.config.add_cross_attention:
                inputs["encoder_hidden_states"] = states
            with recording(side) as projected:
                outputs = side(**inputs, output_attentions=True, use_cache=False)
            states = outputs.last_hidden_state
            readings[name] = [
                _layer(cast(MegaBlock, block), projected, outputs, index) for index, block in enumerate(side.layers)
            ]
    return Reading(passage, readings)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switches the model to evaluation mode, and restores each module afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def recording(side: MegaModel) -> Iterator[dict[nn.Module, torch.Tensor]]:
    """Records the outputs (B, L, features) of the linear layers of a Mega's gates, by layer."""
    outputs: dict[nn.Module, torch.Tensor] = {}

    def keep(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        outputs[module] = output

    projections = []
    for block in cast("list[MegaBlock]", side.layers):
        projections.append(block.mega_layer.mx_proj)
        if block.cross_attn is not None:
            projections.append(block.cross_attn.q_proj)
    hooks = [projection.register_forward_hook(keep) for projection in projections]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def gates(
    layer: MegaMovingAverageGatedAttention | MegaGatedCrossAttention, projected: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The update and reset gates (..., features each) from a layer's projection, in float32."""
    parts = projected.float().split(layer.split_sizes, dim=-1)
    reset = parts[2] if isinstance(layer, MegaMovingAverageGatedAttention) else parts[1]
    return torch.sigmoid(parts[0]), F.silu(reset)


def joined_chunks(weights: torch.Tensor, length: int) -> torch.Tensor:
    """Attention weights (K, n, n) of K chunks as one matrix (length, length), 0 at hidden keys."""
    return torch.block_diag(*weights.unbind(0))[:length, :length]


def _layer(block: MegaBlock, projected: dict[nn.Module, torch.Tensor], outputs: Any, index: int) -> LayerReading:
    own = block.mega_layer
    update, reset = gates(own, projected[own.mx_proj])
    weights = joined_chunks(outputs.attentions[index][0].float().cpu(), update.shape[1])
    visible = default_layout(own.config, len(weights)).visible(torch.device("cpu"))
    reading = {
        "update": _spread(update),
        "reset": _spread(reset),
        "attention": attention_of(weights, torch.ones(1, 1, 1, dtype=torch.bool) if visible is None else visible),
    }
    if block.cross_attn is not None:
        update, reset = gates(block.cross_attn, projected[block.cross_attn.q_proj])
        reading |= {
            "cross_update": _spread(update),
            "cross_reset": _spread(reset),
            "cross_attention": attention_of(outputs.cross_attentions[index][0, 0].float().cpu()),
        }
    return LayerReading(**reading)  # type: ignore[arg-type]


def _spread(gate: torch.Tensor) -> Spread:
    values = gate.cpu().numpy()
    low, high = np.quantile(values, (0.1, 0.9))
    return Spread(float(values.mean(dtype=np.float64)), float(low), float(high))


def attention_of(weights: torch.Tensor, visible: torch.Tensor | None = None) -> Attention:
    """Measures of attention weights.

    Args:
        weights: (L, S), not negative.
        visible: (1, L or 1, L or 1) which keys a query sees, for distances; None for cross-attention.
    """
    weights = weights.double()
    shares = _shares(weights)
    some = shares.sum(-1) > 0  # with relu2 all weights of a query may be 0
    effective = torch.special.entr(shares[some]).sum(-1).exp().mean().item() if some.any() else 0.0
    matrix = shares.float().numpy()
    if visible is None:
        return Attention(matrix, effective)
    length = len(weights)
    position = torch.arange(length)
    distances = (position - position.unsqueeze(1)).abs()
    even = _shares(visible[0].expand(length, length).double())
    by_distance = torch.bincount(distances.flatten(), shares.flatten(), minlength=length)
    return Attention(
        shares=matrix,
        effective=effective,
        distance=(shares[some] * distances[some]).sum(-1).mean().item() if some.any() else 0.0,
        even_distance=(even * distances).sum(-1).mean().item(),
        within=(by_distance.cumsum(0) / by_distance.sum().clamp(min=1e-300)).numpy(),
    )


def _shares(weights: torch.Tensor) -> torch.Tensor:
    total = weights.sum(-1, keepdim=True)
    return torch.where(total > 0, weights / total, 0.0)
