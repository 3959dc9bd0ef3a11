"""The graphs of a model, with their inputs and outputs.

- `model`: whole texts of any number and length; for a causal language model, also the cache after them.
- `decoder`: one token after others, with that cache as inputs `past.*` and outputs `present.*`.
- `encoder`: for an encoder-decoder, from a source to the inputs `cross.*` of every step of its decoder.

A step is a separate graph, since the EMA of one token is a few products, while that of many tokens is blocks and a
scan over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from ..models.mega.configuration_mega import MegaConfig
from ..models.mega.modeling_mega import MegaForCausalLM, MegaModel
from ..models.mega.modeling_mega_classification import MegaForMultipleChoice
from ..models.mega.modeling_mega_pairs import MegaForSequencePairClassification
from ..models.mega.modeling_mega_seq2seq import MegaForConditionalGeneration, MegaSeq2SeqModel
from ..models.mega.validation_mega import positions_limit
from ..publish.errors import PublishError
from .open_cache import OpenCacheLayer, OpenCrossCacheLayer

MODEL, DECODER, ENCODER = "model", "decoder", "encoder"
PAST, PRESENT, CROSS = "past.", "present.", "cross."
BATCH, LENGTH = "batch", "length"
CHOICES = 3
"""The number of choices in the example that a graph is made with; a graph takes any number."""
EXAMPLE = 2, 11
"""Rows and tokens of that example."""


class ExportError(PublishError):
    """A model cannot be exported, or a graph computes other numbers than the model."""


@dataclass(frozen=True)
class Graph:
    """A graph to make.

    Attributes:
        name: `"model"`, `"decoder"` or `"encoder"`.
        module: Takes and returns tensors by name.
        example: Inputs by name.
        axes: Input -> its open axes and their names.
        longest: The most tokens in a row, or None.
    """

    name: str
    module: nn.Module
    example: dict[str, Tensor]
    axes: dict[str, dict[int, str]]
    longest: int | None = None


class Whole(nn.Module):
    """A model over whole texts."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Inputs of the model's `forward` by name -> its outputs, without those that are None."""
        outputs = self.model(**inputs, **({"use_cache": False} if _decodes(self.model) else {}))
        return {name: value for name, value in outputs.items() if torch.is_tensor(value)}


class Prompt(nn.Module):
    """A causal language model over whole texts, and its cache."""

    def __init__(self, model: MegaForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Inputs of the model's `forward` by name -> `logits` and `present.*`."""
        layers = _layers(self.model.mega.config, None)
        outputs = self.model(**inputs, cache=Cache(layers=layers), use_cache=True)
        return {"logits": outputs.logits, **_present(layers)}


class Step(nn.Module):
    """One token of a causal language model, or of the decoder of an encoder-decoder."""

    def __init__(self, model: MegaForCausalLM | MegaForConditionalGeneration) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`input_ids` (B, 1), `past.*`, of an encoder-decoder `cross.*` -> `logits` (B, 1, V) and `present.*`."""
        ids, model = inputs["input_ids"], self.model
        if isinstance(model, MegaForCausalLM):
            layers = _layers(model.mega.config, inputs)
            outputs = model(input_ids=ids, cache=Cache(layers=layers), use_cache=True)
        else:
            layers = _layers(model.model.decoder.config, inputs)
            mask = inputs[f"{CROSS}mask"].to(torch.bool)
            cross: list[Any] = [
                OpenCrossCacheLayer(inputs[f"{CROSS}keys.{i}"], inputs[f"{CROSS}values.{i}"], mask)
                for i in range(len(layers))
            ]
            pair = EncoderDecoderCache(Cache(layers=layers), Cache(layers=cross))
            source = BaseModelOutput(last_hidden_state=None)
            outputs = model(decoder_input_ids=ids, encoder_outputs=source, cache=pair, use_cache=True)
        return {"logits": outputs.logits, **_present(layers)}


class Source(nn.Module):
    """The encoder of an encoder-decoder, with the projections of the decoder's blocks."""

    def __init__(self, model: MegaForConditionalGeneration) -> None:
        super().__init__()
        self.encoder = model.model.encoder
        self.cross = nn.ModuleList([cast(Any, block).cross_attn for block in model.model.decoder.layers])

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` (B, S) -> `cross.keys.i` (B, S, z) and `cross.values.i` (B, S, d)."""
        states = self.encoder(**inputs).last_hidden_state
        found: dict[str, Tensor] = {}
        for i, cross in enumerate(self.cross):
            keys, values = cast(Any, cross).keys_and_values(states)
            found |= {f"{CROSS}keys.{i}": keys, f"{CROSS}values.{i}": values}
        return found


def refuse(model_class: type[Any], config: Any) -> None:
    """Refuses a model without graphs, before weights are read.

    Args:
        model_class: The model's class.
        config: Its configuration.

    Raises:
        ExportError: names the reason and what would work.
    """
    name = model_class.__name__
    if model_class is MegaSeq2SeqModel:
        raise ExportError(f"a {name} has no language model head; export a MegaForConditionalGeneration")
    if not issubclass(model_class, (MegaForConditionalGeneration, MegaSeq2SeqModel)) and not isinstance(
        config, MegaConfig
    ):
        raise ExportError(
            f"a {name} cannot be exported, since its sides are separate models; export a MegaForConditionalGeneration"
        )
    if getattr(config, "add_cross_attention", False):
        raise ExportError(
            f"a {name} with add_cross_attention=True needs an encoder's states; export the encoder-decoder it "
            "belongs to"
        )
    decoder = getattr(config, "decoder", config)
    if decoder.is_decoder and decoder.use_chunking and decoder.chunk_size < 2:
        raise ExportError(
            "chunk_size=1 cannot be exported, since a decoder would have no cached columns; it must be at least 2"
        )


def graphs_of(model: PreTrainedModel) -> list[Graph]:
    """The graphs of a model that `refuse` accepts, `encoder` or `model` first."""
    if isinstance(model, MegaForConditionalGeneration):
        encoder = model.model.encoder
        source = Graph(ENCODER, Source(model), *_texts(encoder), positions_limit(encoder.config))
        return [source, _step(model, model.model.decoder)]
    trunk = model if isinstance(model, MegaModel) else cast(Any, model).mega
    longest = positions_limit(trunk.config)
    if isinstance(model, MegaForCausalLM):
        return [Graph(MODEL, Prompt(model), *_texts(trunk), longest), _step(model, trunk)]
    if isinstance(model, MegaForMultipleChoice):
        example, _ = _texts(trunk)
        example = {name: x.unsqueeze(1).expand(-1, CHOICES, -1).contiguous() for name, x in example.items()}
        axes = {name: {0: BATCH, 1: "choices", 2: LENGTH} for name in example}
        return [Graph(MODEL, Whole(model), example, axes, longest)]
    example, axes = _texts(trunk)
    if isinstance(model, MegaForSequencePairClassification):
        more, _ = _texts(trunk, EXAMPLE[1] + 2)
        example |= {f"pair_{name}": x for name, x in more.items()}
        axes |= {f"pair_{name}": {0: BATCH, 1: "pair_length"} for name in more}
    return [Graph(MODEL, Whole(model), example, axes, longest)]


def inputs_of(config: MegaConfig, mask: Tensor, seed: int) -> dict[str, Tensor]:
    """Random inputs of a text model for a mask (B, L) of real tokens, by name.

    Leaves out ids at the start of the vocabulary, which special tokens have, if there are others.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = tuple(mask.shape)
    if config.input_type == "values":
        return {"input_values": torch.randn(shape, generator=generator), "attention_mask": mask}
    low = 5 if config.vocab_size > 8 else 0
    inputs = {"input_ids": torch.randint(low, config.vocab_size, shape, generator=generator), "attention_mask": mask}
    if config.add_token_type_embeddings:
        inputs["token_type_ids"] = torch.randint(0, config.type_vocab_size, shape, generator=generator)
    return inputs


def empty_past(config: MegaConfig, batch: int) -> dict[str, Tensor]:
    """A decoder's cache before its first token: zeros, by name."""
    columns = config.chunk_size - 1 if config.use_chunking else 0
    past = {
        f"{PAST}position": torch.zeros(batch, dtype=torch.int64),
        f"{PAST}mask": torch.zeros(batch, columns, dtype=torch.bool),
    }
    for i in range(config.num_hidden_layers):
        past[f"{PAST}keys.{i}"] = torch.zeros(batch, columns, config.shared_representation_size)
        past[f"{PAST}values.{i}"] = torch.zeros(batch, columns, config.intermediate_size)
        past[f"{PAST}state.{i}"] = torch.zeros(batch, config.hidden_size, config.ema_projection_size)
        if config.truncation is not None:
            past[f"{PAST}history.{i}"] = torch.zeros(batch, config.truncation, config.hidden_size)
    return past


def longest_row(model: Any) -> int | None:
    """The most tokens in a row of a graph, with that of a step, or None."""
    if not isinstance(model, MegaForConditionalGeneration):
        return positions_limit(getattr(model, "mega", model).config)
    encoder, decoder = model.model.encoder.config, model.model.decoder.config
    limits = [positions_limit(encoder), positions_limit(decoder)]
    if decoder.relative_positional_bias == "simple":
        limits.append(decoder.positions_of_simple_bias(cross_attention=True))
    return min((limit for limit in limits if limit is not None), default=None)


def _texts(trunk: MegaModel, length: int = EXAMPLE[1]) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
    """Example inputs of whole texts, and their open axes."""
    mask = torch.ones(EXAMPLE[0], length, dtype=torch.int64)
    mask[0, length - 3 :] = 0
    example = inputs_of(trunk.config, mask, seed=0)
    return example, {name: {0: BATCH, 1: LENGTH} for name in example}


def _step(model: Any, decoder: MegaModel) -> Graph:
    config, batch = decoder.config, EXAMPLE[0]
    past = empty_past(config, batch)
    axes: dict[str, dict[int, str]] = {name: {0: BATCH} for name in ("input_ids", *past)}
    if not config.use_chunking:  # one column per token: several, since an axis of size 0 or 1 cannot be open
        for name in past:
            if any(part in name for part in ("mask", "keys", "values")):
                past[name] = past[name].new_zeros(batch, EXAMPLE[1], *past[name].shape[2:])
                axes[name][1] = "past"
    example = {"input_ids": torch.zeros(batch, 1, dtype=torch.int64), **past}
    if isinstance(model, MegaForConditionalGeneration):
        found = {f"{CROSS}mask": torch.ones(EXAMPLE, dtype=torch.int64)}
        for i in range(config.num_hidden_layers):
            found[f"{CROSS}keys.{i}"] = torch.zeros(*EXAMPLE, config.shared_representation_size)
            found[f"{CROSS}values.{i}"] = torch.zeros(*EXAMPLE, config.hidden_size)
        example |= found
        axes |= {name: {0: BATCH, 1: "source_length"} for name in found}
    return Graph(DECODER, Step(model), example, axes)


def _layers(config: MegaConfig, inputs: dict[str, Tensor] | None) -> list[Any]:
    """A cache layer for every block, from inputs `past.NAME.i`; `past.NAME` belong to the first."""
    layers: list[Any] = []
    for i in range(config.num_hidden_layers):
        past = None
        if inputs is not None:
            names = ("keys", "values", "state", "history")
            past = {name: inputs[f"{PAST}{name}.{i}"] for name in names if f"{PAST}{name}.{i}" in inputs}
            past |= {name: inputs[f"{PAST}{name}"] for name in ("position", "mask")}
        layers.append(OpenCacheLayer(config, past))
    return layers


def _present(layers: Sequence[OpenCacheLayer]) -> dict[str, Tensor]:
    """Outputs `present.*`, in the order of the inputs `past.*`."""
    shared = {f"{PRESENT}{name}": layers[0].present[name] for name in ("position", "mask")}
    names = ("keys", "values", "state", "history")
    each = {f"{PRESENT}{n}.{i}": x.present[n] for i, x in enumerate(layers) for n in names if n in x.present}
    return shared | each


def _decodes(model: PreTrainedModel) -> bool:
    return isinstance(model, MegaModel) and model.config.is_decoder
