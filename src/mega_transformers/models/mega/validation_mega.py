"""Checks of a model's inputs, before any computation.

Values are checked only on CPU tensors outside of compilation: checks neither synchronise a GPU nor break a graph.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from transformers.utils import TransformersKwargs

from ...ops.layout import is_readable
from .compat_mega import rename_cache

Forward = TypeVar("Forward", bound=Callable[..., Any])

# read by transformers' decorators and loss functions, besides the arguments that it declares for all models
OTHER_KEYWORDS = {"return_dict", "shift_labels", "ignore_index", "debug_io", "debug_io_dir", "prune_layers"}
SHARED_KEYWORDS = frozenset(TransformersKwargs.__annotations__) | OTHER_KEYWORDS


def checked_keywords(*inner: Callable[..., Any], unread: Iterable[str] = ()) -> Callable[[Forward], Forward]:
    """Makes a `forward` refuse unknown keyword arguments before any work.

    Allowed in `**kwargs` are keywords of transformers (`TransformersKwargs` and the like), arguments of the `forward`
    functions in `inner`, and arguments that transformers passes although nothing reads them (`unread`). The cache may
    also be called `past_key_values`, its name before transformers 5.24.

    Raises:
        TypeError: from the `forward`, for any other keyword; the message names the nearest known one.
        ValueError: from the `forward`, for a cache under both names.
    """

    def decorate(forward: Forward) -> Forward:
        own = _arguments(forward)
        known = own | SHARED_KEYWORDS.union(unread, *map(_arguments, inner))

        @functools.wraps(forward)
        def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
            if "past_key_values" in kwargs and "cache" in known:
                rename_cache(kwargs)
            for name in kwargs:
                if name not in known:
                    raise TypeError(_unexpected(type(self).__name__, name, own, known))
            return forward(self, *args, **kwargs)

        return checked  # type: ignore[return-value]

    return decorate


def _arguments(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters) - {"self", "kwargs"}


def _unexpected(model: str, name: str, own: frozenset[str], known: frozenset[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1)
    remedy = f"did you mean {near[0]}?" if near else f"it takes {', '.join(sorted(own))}"
    return f"{model}.forward() got an unexpected keyword argument {name!r}; {remedy}"


def values_can_be_checked(tensor: torch.Tensor) -> bool:
    """Whether a tensor has values that can be read for free."""
    return is_readable(tensor) and tensor.numel() > 0


def leading_shape(*inputs: torch.Tensor | None) -> tuple[int, ...]:
    """(batch, length) of the first of `input_ids`, `inputs_embeds` and, where a model reads values, `input_values`."""
    for given in inputs:
        if given is not None:
            return tuple(given.shape[:2])
    raise ValueError("give either input_ids or inputs_embeds; got neither")


def check_input_type(config, model: str, known: tuple[str, ...]) -> None:
    """Raises ValueError for a configuration whose `input_type` the class `model` does not read."""
    given = getattr(config, "input_type", "tokens")
    if given not in known:
        raise ValueError(
            f"input_type={given!r}: {model} reads {' or '.join(known)}; set input_type={known[0]!r}, or use another "
            "class"
        )


def check_ids(name: str, ids: torch.Tensor, size: int, size_name: str) -> None:
    """Raises ValueError unless all `ids` are in [0, size)."""
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"{name} must be integers; got dtype {ids.dtype}")
    if values_can_be_checked(ids):
        low, high = (int(bound) for bound in torch.aminmax(ids))
        if low < 0 or high >= size:
            raise ValueError(f"{name} holds {low if low < 0 else high}, but ids must be in [0, {size_name}={size})")


def check_mask(name: str, mask: torch.Tensor, shape: tuple[int, int], cached: int | torch.Tensor = 0) -> None:
    """Raises ValueError unless `mask` has the shape (batch, cached + length) and holds 0 and 1 (or bools).

    A static cache's length `cached` is a tensor, and the mask may be that of the new tokens alone.
    """
    batch, length = shape
    if torch.is_tensor(cached):
        fits = mask.dim() == 2 and mask.shape[0] == batch and mask.shape[1] >= length
        cached = mask.shape[1] - length if fits else 0
    if tuple(mask.shape) != (batch, cached + length):
        what = (
            f"(batch, cached + new tokens) = ({batch}, {cached} + {length})"
            if cached
            else f"(batch, length) = {shape}"
        )
        raise ValueError(f"{name} has shape {tuple(mask.shape)}, but must be {what}: 1 at real tokens, 0 at padding")
    mask = mask[:, cached:]  # the others were checked when they were new
    if mask.dtype != torch.bool and values_can_be_checked(mask) and not bool(((mask == 0) | (mask == 1)).all()):
        wrong = mask[(mask != 0) & (mask != 1)][0].item()
        raise ValueError(f"{name} holds {wrong}, but must hold 1 at real tokens and 0 at padding")


def check_labels(
    name: str, labels: torch.Tensor, shape: tuple[int, ...], num_classes: int, ignore_index: int | None = -100
) -> None:
    """Raises ValueError unless `labels` has that shape and holds classes in [0, num_classes) or `ignore_index`."""
    if tuple(labels.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(labels.shape)}, but must be {shape}")
    if labels.is_floating_point():
        raise ValueError(f"{name} must be integers; got dtype {labels.dtype}")
    if values_can_be_checked(labels):
        wrong = (labels < 0) | (labels >= num_classes)
        if ignore_index is not None:
            wrong &= labels != ignore_index
        if bool(wrong.any()):
            ignored = "" if ignore_index is None else f", or {ignore_index} to ignore a position"
            raise ValueError(f"{name} holds {int(labels[wrong][0])}, but must be in [0, {num_classes}){ignored}")


def positions_limit(config) -> int | None:
    """The most tokens in a row, or None; a `"simple"` bias without chunks has a limited number of positions."""
    if config.relative_positional_bias != "simple" or config.use_chunking:
        return None
    return config.positions_of_simple_bias()


def check_generated_length(config, generation_config, length: int) -> None:
    """Raises ValueError if `generate` would exceed the positions of a decoder's `"simple"` biases."""
    limits = [positions_limit(config)]
    if config.add_cross_attention and config.relative_positional_bias == "simple":
        limits.append(config.positions_of_simple_bias(cross_attention=True))
    limit = min((limit for limit in limits if limit is not None), default=None)
    if limit is not None and length > limit:
        raise ValueError(
            f"max_length={generation_config.max_length} (prompt and new tokens) is more than the {limit} positions "
            "that relative_positional_bias='simple' serves here; generate fewer tokens"
        )


def check_decoder_inputs(config, cache, encoder_hidden_states, is_causal) -> None:
    """Raises ValueError for arguments that this kind of model does not take."""
    if cache is not None and not config.is_decoder:
        raise ValueError("a cache is given, but this model is an encoder (is_decoder=False); leave it out")
    if is_causal is not None and is_causal != config.is_decoder:
        raise ValueError(
            f"is_causal={is_causal}, but config.is_decoder={config.is_decoder} decides this here; leave out "
            "is_causal, or make the model with another configuration"
        )
    if encoder_hidden_states is not None and not config.add_cross_attention:
        raise ValueError(
            "encoder_hidden_states are given, but this model has no cross-attention (add_cross_attention=False); "
            "leave them out"
        )


def check_source(config, encoder_hidden_states, encoder_attention_mask, batch: int) -> None:
    """Checks the inputs of cross-attention of a decoder with `batch` rows.

    Raises:
        ValueError: names the argument, its value and what would be right.
    """
    if encoder_hidden_states is None:
        raise ValueError(
            "encoder_hidden_states are missing: this decoder has cross-attention (add_cross_attention=True); give the "
            "last_hidden_state of an encoder, shape (batch, source length, width)"
        )
    width = config.cross_attention_hidden_size or config.hidden_size
    shape = tuple(encoder_hidden_states.shape)
    if len(shape) != 3 or shape[2] != width:
        name = "hidden_size" if config.cross_attention_hidden_size is None else "cross_attention_hidden_size"
        raise ValueError(
            f"encoder_hidden_states has shape {shape}, but must be (batch, source length, {name}={width})"
        )
    if shape[0] != batch:
        raise ValueError(f"encoder_hidden_states has {shape[0]} rows, but the decoder's input has {batch}")
    if shape[1] == 0:
        raise ValueError(f"encoder_hidden_states has shape {shape}: give at least one source token")
    if encoder_attention_mask is not None:
        check_mask("encoder_attention_mask", encoder_attention_mask, shape[:2])
    check_crossing_positions(config, "encoder_hidden_states", shape[1])


def check_crossing_positions(config, name: str, tokens: int | torch.Tensor) -> None:
    """Raises ValueError if `name` has more tokens than the positions of cross-attention's `"simple"` bias."""
    if config.relative_positional_bias != "simple" or not isinstance(tokens, int):
        return
    limit = config.positions_of_simple_bias(cross_attention=True)
    if tokens > limit:
        raise ValueError(
            f"{name} has {tokens} tokens, but cross-attention with relative_positional_bias='simple' serves {limit} "
            "positions; shorten it, or use a model with a greater cross_attention_max_positions or with rotary bias"
        )


def check_values(values: torch.Tensor) -> None:
    """Raises ValueError unless `input_values` are finite real numbers."""
    if not values.is_floating_point():
        raise ValueError(f"input_values must be real numbers (float), scaled as in training; got dtype {values.dtype}")
    if values_can_be_checked(values) and not bool(values.isfinite().all()):
        raise ValueError(f"input_values holds {values[~values.isfinite()][0].item()}, but must be finite")


def check_inputs(
    config, input_ids, inputs_embeds, attention_mask, token_type_ids, cached=0, input_values=None, prefix=""
) -> tuple[int, int]:
    """Checks the inputs of `MegaModel.forward` after `cached` tokens; returns (batch, length).

    `prefix` precedes the names of ids, embeddings, mask and types.

    Raises:
        ValueError: names the argument, its value and what would be right.
    """
    name, other = ("input_ids", "input_values") if config.input_type == "tokens" else ("input_values", "input_ids")
    main, unread = (input_ids, input_values) if name == "input_ids" else (input_values, input_ids)
    if unread is not None:
        raise ValueError(f"{other} is given, but this model reads {config.input_type}; give {name}")
    if (main is None) == (inputs_embeds is None):
        given = "neither" if main is None else "both"
        raise ValueError(f"give either {prefix}{name} or {prefix}inputs_embeds; got {given}")
    if main is not None:
        if main.dim() != 2:
            raise ValueError(f"{prefix}{name} has shape {tuple(main.shape)}, but must be (batch, length)")
        batch, length = main.shape
    else:
        own_width = config.embedding_size is not None and not config.adaptive_input
        name = "embedding_size" if own_width else "hidden_size"
        if inputs_embeds.dim() != 3 or inputs_embeds.shape[-1] != getattr(config, name):
            raise ValueError(
                f"{prefix}inputs_embeds has shape {tuple(inputs_embeds.shape)}, but must be "
                f"(batch, length, {name}={getattr(config, name)})"
            )
        batch, length = inputs_embeds.shape[:2]
    if batch == 0 or length == 0:
        raise ValueError(f"the input has shape ({batch}, {length}): give at least one row and one token")
    if input_ids is not None:
        check_ids(f"{prefix}input_ids", input_ids, config.vocab_size, "vocab_size")
    elif input_values is not None:
        check_values(input_values)
    if attention_mask is not None:
        check_mask(f"{prefix}attention_mask", attention_mask, (batch, length), cached)
    if token_type_ids is not None:
        if tuple(token_type_ids.shape) != (batch, length):
            raise ValueError(
                f"{prefix}token_type_ids has shape {tuple(token_type_ids.shape)}, but must be (batch, length) = "
                f"{(batch, length)}"
            )
        if config.add_token_type_embeddings:
            check_ids(f"{prefix}token_type_ids", token_type_ids, config.type_vocab_size, "type_vocab_size")
        elif values_can_be_checked(token_type_ids) and bool(token_type_ids.any()):
            raise ValueError(
                f"{prefix}token_type_ids are given, but this model has no embeddings for them "
                "(add_token_type_embeddings=False); leave them out"
            )
    limit = positions_limit(config)
    if limit is not None and isinstance(cached, int) and cached + length > limit:
        name = "chunk_size" if config.chunk_size > 0 else "max_positions"
        raise ValueError(
            f"the input has {cached + length} tokens, but relative_positional_bias='simple' serves {name}={limit} "
            "positions; shorten the input, or use a model with chunking or with rotary bias"
        )
    return batch, length


def check_files(folder: str | os.PathLike | None) -> None:
    """Raises OSError, which names the first damaged weight file of a local folder, if there is one."""
    if folder is None or not Path(folder).is_dir():
        return

    def open_safetensors(path: Path) -> None:
        with safe_open(path, "pt"):
            pass

    readers = {
        "*.index.json": lambda path: json.loads(path.read_text()),
        "*.safetensors": open_safetensors,
        "pytorch_model*.bin": lambda path: torch.load(path, map_location="meta", weights_only=True),
    }
    for pattern, read in readers.items():
        for path in sorted(Path(folder).glob(pattern)):
            try:
                read(path)
            except Exception as error:
                raise OSError(f"{path} is truncated or corrupt ({error}); copy or download it again") from error
