"""The cache of a forward pass: a new one, or the given one, checked."""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache

from .cache_mega import MegaCacheLayer, MegaCrossCacheLayer
from .configuration_mega import MegaConfig
from .static_cache_mega import MegaStaticCacheLayer

REMEDY = "; make one with DynamicCache(config=model.config)"
PAIR_REMEDY = "; make one with EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache())"


def prepare_cache(cache: Any, config: MegaConfig, batch: int, device: torch.device) -> Cache:
    """The cache of a forward pass: a new one for None, else the given one, checked.

    Args:
        cache: A `Cache`, with cross-attention an `EncoderDecoderCache` or the self-attention part of one;
            None; or the tuple that transformers 4.40.2 returned: for every layer keys (B, T, z), values (B, T, h) and
            the EMA's state (B, d, N), with cross-attention also keys (B, S, z) and values (B, S, d) of the encoder.
        config: The model's configuration.
        batch, device: Batch size and device of the new tokens.

    Raises:
        ValueError: for a cache of another kind, model, batch size or device.
    """
    if cache is None:
        cache = DynamicCache(config=config)
    if isinstance(cache, (tuple, list)):
        warnings.warn(
            "a cache as tuples of transformers 4 is deprecated; pass a DynamicCache(config=model.config), or the "
            "cache that a forward pass returned",
            FutureWarning,
            stacklevel=3,
        )
        cache = cache_of_tuples(cache, config)
    if not isinstance(cache, Cache):
        raise ValueError(
            f"cache is a {type(cache).__name__}, but must be a Cache"
            f"{PAIR_REMEDY if config.add_cross_attention else REMEDY}"
        )
    if not config.add_cross_attention:
        _prepare_own(cache, config, batch, device)
        return cache
    if not isinstance(cache, EncoderDecoderCache):
        cache = EncoderDecoderCache(cache, DynamicCache())
    _prepare_own(cache.self_attention_cache, config, batch, device)
    _prepare_cross(cache.cross_attention_cache, config, batch)
    return cache


def _prepare_own(cache: Cache, config: MegaConfig, batch: int, device: torch.device) -> None:
    """Turns an empty cache into one of self-attention, and checks any other."""
    if isinstance(cache, EncoderDecoderCache):
        raise ValueError(
            "cache is an EncoderDecoderCache, but this model has no cross-attention "
            f"(add_cross_attention=False){REMEDY}"
        )
    if cache.layers and getattr(cache.layers[0], "owner", None) is config:
        check_rows(cast(MegaCacheLayer, cache.layers[0]), batch)
        return
    if not cache.layers and cache.layer_class_to_replicate is not None:
        # made without a configuration; nothing is stored yet, so its layers can still be replaced by ours
        cache.layers = [MegaCacheLayer() for _ in range(config.num_hidden_layers)]
    elif not any(cast(Any, layer).is_initialized for layer in cache.layers):
        cache.layers = [_own_layer(layer) for layer in cache.layers]
    check_cache(cache, config, batch, device)


def _own_layer(layer: Any) -> Any:
    """The layer, or one of ours if it is an empty layer of that name from another copy of this code.

    A model may bring a copy of this code (`trust_remote_code`), and transformers uses the layers of the last copy.
    """
    for own in (MegaCacheLayer, MegaStaticCacheLayer):
        if type(layer).__name__ == own.__name__ and type(layer) is not own:
            made = cast(Any, own)(max_cache_len=getattr(layer, "max_cache_len", None))
            made.record_past = layer.record_past
            return made
    return layer


def _prepare_cross(cache: Cache, config: MegaConfig, batch: int) -> None:
    """Turns an empty cache of any kind into one of cross-attention, and checks any other."""
    if not any(cast(Any, layer).is_initialized for layer in cache.layers):
        if not all(isinstance(layer, MegaCrossCacheLayer) for layer in cache.layers) or not cache.layers:
            cache.layers = [MegaCrossCacheLayer() for _ in range(config.num_hidden_layers)]
        return
    layers = cast(list[MegaCrossCacheLayer], cache.layers)
    widths = (config.shared_representation_size, config.hidden_size)
    ours = len(layers) == config.num_hidden_layers and all(isinstance(layer, MegaCrossCacheLayer) for layer in layers)
    if not ours or (cast(Any, layers[0].keys).shape[-1], cast(Any, layers[0].values).shape[-1]) != widths:
        raise ValueError(f"the cross-attention part of cache belongs to another model{PAIR_REMEDY}")
    if layers[0].batch_size != batch:
        raise ValueError(f"cache holds the source of {layers[0].batch_size} rows, but the input has {batch}")


def check_cache(cache: Cache, config: MegaConfig, batch: int, device: torch.device) -> None:
    """Raises ValueError unless the cache fits the model and the new tokens."""
    ours = (MegaCacheLayer, MegaStaticCacheLayer)
    kinds = {type(layer).__name__ for layer in cache.layers if not isinstance(layer, ours)}
    if kinds:
        raise ValueError(
            f"cache belongs to another model: it has layers of {', '.join(sorted(kinds))}{REMEDY}. If this is PEFT's "
            "prefix tuning: Mega's cache also holds the EMA's state; use LoRA or prompt tuning"
        )
    layers = cast(list[MegaCacheLayer], cache.layers)
    if len(layers) != config.num_hidden_layers:
        raise ValueError(
            f"cache belongs to another model: it has {len(layers)} layers, this model has "
            f"num_hidden_layers={config.num_hidden_layers}{REMEDY}"
        )
    first = layers[0]
    if not first.is_initialized:
        first.owner = config  # the model that fills it
        return
    keys, values, state = (cast(torch.Tensor, x) for x in (first.keys, first.values, first.state))
    found = (keys.shape[-1], values.shape[-1], *state.shape[1:])
    wanted = (
        config.shared_representation_size,
        config.intermediate_size,
        config.hidden_size,
        config.ema_projection_size,
    )
    if found != wanted:
        raise ValueError(
            f"cache belongs to another model: its widths (shared_representation_size, intermediate_size, "
            f"hidden_size, ema_projection_size) are {found}, this model's {wanted}{REMEDY}"
        )
    chunk_size = config.chunk_size if config.use_chunking else None
    if first.chunk_size != chunk_size:
        raise ValueError(
            f"cache belongs to another model: its chunk_size is {first.chunk_size}, this model's {chunk_size}{REMEDY}"
        )
    check_rows(first, batch)
    if state.device != device:
        raise ValueError(f"cache is on {state.device}, but the model's input is on {device}; move one of them")
    first.owner = config


def check_rows(first: MegaCacheLayer, batch: int) -> None:
    """Raises ValueError unless a cache with that first layer holds `batch` rows, or nothing."""
    if first.batch_size not in (batch, -1):
        raise ValueError(f"cache holds {first.batch_size} rows, but the input has {batch}")


def cache_of_tuples(layers: Any, config: MegaConfig) -> Cache:
    """A cache from transformers 4.40.2's tuples; see `prepare_cache`."""
    cache = DynamicCache(config=config)
    chunk_size = config.chunk_size if config.use_chunking else None
    if len(layers) != config.num_hidden_layers or any(len(layer) < 3 for layer in layers):
        raise ValueError(
            f"cache has {len(layers)} entries, but must have num_hidden_layers={config.num_hidden_layers} "
            "tuples of keys, values and the EMA's state"
        )
    if config.truncation is not None:
        raise ValueError(
            f"a cache as tuples lacks the last inputs that truncation={config.truncation} needs; start with an "
            "empty cache"
        )
    for target, (keys, values, state, *_) in zip(cast(list[MegaCacheLayer], cache.layers), layers):
        target.chunk_size = chunk_size
        target._keys.append(keys, None)
        target._values.append(values, None)
        target.state = state.to(torch.promote_types(state.dtype, torch.float32))
        target.seen = keys.shape[1]
    if not config.add_cross_attention:
        return cache
    cross = DynamicCache()
    _prepare_cross(cross, config, -1)
    for cross_layer, layer in zip(cross.layers, layers):
        if len(layer) >= 5 and layer[3] is not None:
            cast(MegaCrossCacheLayer, cross_layer).update(layer[3], layer[4], None)
    return EncoderDecoderCache(cache, cross)
