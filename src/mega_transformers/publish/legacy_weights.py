"""Weights with which transformers 4.40.2 computes the same numbers, where models here have more than its own."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..models.mega.configuration_mega import MegaConfig
from ..models.mega.modeling_mega import MegaModel
from .legacy_features import FIELDS, needs_norm

WORDS = "embedding_layer.word_embeddings.weight"
# sub-layer -> its linear layers that read what its norm gives, if that stands before it
READERS = {"mega_layer": "v_proj", "cross_attn": "q_proj", "nffn": "fc1"}


@dataclass
class Trunk:
    """A Mega on its way: its weights below `prefix` are changed in place, and so are the fields of its configuration.

    Args:
        model: The Mega.
        weights: All weights of the whole model by name.
        prefix: What stands before the names of this one's.
        fields: Its configuration for 4.40.2.
        changes: What was done, for people.
    """

    model: MegaModel
    weights: dict[str, Tensor]
    prefix: str
    fields: dict[str, Any]
    changes: list[str] = field(default_factory=list)

    @property
    def config(self) -> MegaConfig:
        """Its configuration here."""
        return self.model.config

    def sublayers(self) -> list[tuple[str, str]]:
        """Prefix of every sub-layer and its kind, as in `READERS`."""
        layers = [f"{self.prefix}layers.{index}" for index in range(self.config.num_hidden_layers)]
        parts = [name for name in READERS if getattr(self.model.layers[0], name) is not None]
        return [(f"{layer}.{part}.", part) for layer in layers for part in parts]


def trunk_of(model: Any, weights: dict[str, Tensor], prefix: str) -> Trunk:
    """A Mega to be changed, with the fields that 4.40.2 knows."""
    config = model.config
    return Trunk(model, weights, prefix, {"model_type": "mega", **{name: getattr(config, name) for name in FIELDS}})


def adapt(trunk: Trunk) -> None:
    """Changes a Mega that 4.40.2 lacks nothing for (`legacy_features.lacking`)."""
    config, fields = trunk.config, trunk.fields
    if fields["chunk_size"] == 0:
        fields["chunk_size"] = -1  # 0 would be the number of positions of a bias
    _fold_embeddings(trunk)
    if needs_norm(config):
        _fold_rmsnorm(trunk)
    elif config.normalization_type == "layernorm" and not config.norm_affine:
        # it fails to construct a layernorm without scales
        fields["norm_affine"] = True
        for name, _ in trunk.sublayers():
            trunk.weights[f"{name}norm.norm.weight"] = torch.ones(config.hidden_size)
            trunk.weights[f"{name}norm.norm.bias"] = torch.zeros(config.hidden_size)
        trunk.changes.append("norm_affine=False: the norms have scales of 1 and biases of 0")
    if config.relative_positional_bias == "rotary":
        # a buffer that it misses otherwise; only its type is looked at
        for name, kind in trunk.sublayers():
            if kind != "nffn":
                trunk.weights[f"{name}rel_pos_bias._float_tensor"] = torch.zeros(1)
    elif config.add_cross_attention and config.positions_of_simple_bias() != config.positions_of_simple_bias(True):
        _align_biases(trunk)


def _fold_embeddings(trunk: Trunk) -> None:
    """Makes one table of words of whatever stands between an id and the first block, but for types."""
    config, layer = trunk.config, trunk.model.embedding_layer
    steps = [name for name in ("scale_embeddings", "normalize_embeddings", "adaptive_input") if getattr(config, name)]
    if layer.projection is not None:
        steps.append("embedding_size")
    if not steps:
        return
    layer = copy.deepcopy(layer).double().eval()
    layer.token_type_embeddings = None
    with torch.no_grad():
        table = layer(torch.arange(config.vocab_size).unsqueeze(0), None, None)[0].float()
    kept = f"{trunk.prefix}embedding_layer.token_type_embeddings."
    for name in [name for name in trunk.weights if name.startswith(f"{trunk.prefix}embedding_layer.")]:
        if not name.startswith(kept):
            del trunk.weights[name]
    trunk.weights[trunk.prefix + WORDS] = table
    named = ", ".join(f"{name}={getattr(config, name)}" for name in steps)
    trunk.changes.append(
        f"{named}: put into the table of words, {config.vocab_size} x {config.hidden_size} (what is given as "
        "inputs_embeds is what stands in that table)"
    )


def _fold_rmsnorm(trunk: Trunk) -> None:
    """rmsnorm as a scalenorm without scale, with the scales of rmsnorm in the weights that read it."""
    trunk.fields |= {"normalization_type": "scalenorm", "norm_affine": False}
    trunk.changes.append("normalization_type='rmsnorm': a scalenorm without scale, which the weights behind it have")
    if not trunk.config.norm_affine:
        return
    for name, kind in trunk.sublayers():
        scale = trunk.weights.pop(f"{name}norm.norm.weight").double()
        _multiply(trunk, f"{name}{READERS[kind]}.weight", scale)
        if kind == "mega_layer":
            # the moving average is linear in each channel; one in both directions has two rows for it
            _multiply(trunk, f"{name}ema_gate.residual_weight", scale)
            both = scale.repeat(2 if trunk.config.bidirectional else 1)
            _multiply(trunk, f"{name}ema_gate.ema_expansion_matrix", both.view(-1, 1, 1))


def _multiply(trunk: Trunk, name: str, scale: Tensor) -> None:
    trunk.weights[name] = (trunk.weights[name].double() * scale).float()


def _align_biases(trunk: Trunk) -> None:
    """Lets biases of self-attention and cross-attention serve as many positions, for 4.40.2 has one number of them."""
    config, fields = trunk.config, trunk.fields
    own, cross = config.positions_of_simple_bias(), config.positions_of_simple_bias(crossing=True)
    served, size = own, config.max_positions
    if not config.use_chunking:
        served = size = max(own, cross)
        fields |= {"chunk_size": -1, "max_positions": size}
    for name, kind in trunk.sublayers():
        if kind != "nffn":
            key = f"{name}rel_pos_bias.rel_pos_bias"
            trunk.weights[key] = _moved(trunk.weights[key], own if kind == "mega_layer" else cross, served, size)
    trunk.changes.append(
        f"cross_attention_max_positions={cross}: the biases of self-attention and cross-attention serve {served} "
        "positions each, with 0 for offsets that were never there"
    )


def _moved(bias: Tensor, positions: int, served: int, size: int) -> Tensor:
    """A bias of `positions` in a vector for `size`, whose offset 0 is where that of `served` positions is."""
    moved = bias.new_zeros(2 * size - 1)
    moved[served - positions : served + positions - 1] = bias[: 2 * positions - 1]
    return moved


def widen_source(trunk: Trunk) -> dict[str, Tensor]:
    """Lets a decoder read a narrower encoder's states with zeros behind; returns the projection that adds these."""
    width, source = trunk.config.hidden_size, trunk.config.cross_attention_hidden_size
    if source in (None, width):
        return {}
    for name, kind in trunk.sublayers():
        if kind == "cross_attn":
            for key in (f"{name}k_proj.weight", f"{name}v_proj.weight"):
                narrow = trunk.weights[key]
                trunk.weights[key] = torch.cat([narrow, narrow.new_zeros(len(narrow), width - source)], dim=1)
    trunk.changes.append(f"cross_attention_hidden_size={source}: zeros make the encoder's states {width} wide")
    return {"enc_to_dec_proj.weight": torch.eye(width, source), "enc_to_dec_proj.bias": torch.zeros(width)}
