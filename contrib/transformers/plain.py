"""Replacements of this package's definitions inside transformers: functions of the same names, and parts of classes.

The package checks all inputs and chooses between implementations; a model inside transformers computes attention by
its definition, and checks only what would otherwise fail silently.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring, logging
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import maybe_autocast, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from mega_transformers.layers import MegaBlock, MegaMovingAverageGatedAttention
from mega_transformers.models.mega.cache_mega import Padding
from mega_transformers.ops.activations import laplace, relu2
from mega_transformers.ops.attention import _in_equal_chunks, bias_table
from mega_transformers.ops.attention.reference import attention_reference
from mega_transformers.ops.layout import self_attention_layout
from mega_transformers.ops.relative_bias import RelativeBias

logger = logging.get_logger(__name__)


class MegaConfig:
    def __post_init__(self, **kwargs):
        # the rmsnorm of transformers 4 did not normalize, and its checkpoints do not say whether they rely on that
        saved_by = self.transformers_version or ""
        undecided = self.normalization_type == "rmsnorm" and self.legacy_unnormalized_rmsnorm is None
        if undecided and saved_by.startswith("4."):
            logger.warning_once(
                f"This checkpoint was saved by Transformers {saved_by}, whose rmsnorm did not normalize. Here it "
                "does, as in the original code. If the model was trained with Transformers 4, load it with "
                "`legacy_unnormalized_rmsnorm=True`; otherwise `legacy_unnormalized_rmsnorm=False` ends this warning."
            )
        super().__post_init__(**kwargs)


ELEMENTWISE = {"laplace": laplace, "relu2": relu2}


def dropped_if_full(mask: torch.Tensor | None) -> torch.Tensor | None:
    """A mask (B, L) of real tokens as bools."""
    return None if mask is None else mask.to(torch.bool)


class AttentionLayout:
    def visible(self, device: torch.device) -> torch.Tensor | None:
        """The layout as a matrix (B or 1, L or 1, S) bool, True where a query sees a key; None if all do."""
        real = None if self.real is None else self.real[:, None]
        if self.is_dense:
            return real
        start, stop = (x.unsqueeze(2) for x in self.ranges(device))
        column = torch.arange(self.keys, device=device)
        visible = column < stop
        if self.start is not None or self.chunk is not None:
            visible = visible & (column >= start)
        return visible if real is None else visible & real


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: RelativeBias,
    layout: AttentionLayout,
    *,
    activation: str = "softmax",
    dropout: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """weights @ v with weights = f(scale * q k^T + bias) at the keys a query sees, 0 elsewhere (paper section 3.2).

    Args:
        q: (B, L, z) queries, unscaled: softmax scales scores by z^-0.5, `"laplace"` and `"relu2"` by
            1 / (number of keys the query sees).
        k, v: (B, S, z) keys and (B, S, h) values.
        bias: Relative position bias.
        layout: The attention layout. A query that sees nothing outputs 0.
        activation: `"softmax"`, `"laplace"` or `"relu2"`.
        dropout: Probability of dropping a weight.

    Returns:
        Output (B, L, h), and the weights before dropout: (B, K, n, n) for K chunks of n tokens that see themselves,
        else (B, 1, L, S).
    """
    # under autocast queries and keys are float32, as the parameters they are made with
    q, k = q.to(v.dtype), k.to(v.dtype)
    options = {"activation": activation, "dropout": dropout}
    with maybe_autocast(device_type=q.device.type, enabled=False):
        if layout.chunk is not None and layout.keys == layout.queries:
            return _in_equal_chunks(q, k, v, bias, layout, **options)
        return attention_reference(q, k, v, bias_table(bias, layout), layout, **options)


class Columns:
    """Keys or values (B, T, features) that grow at their end and shrink at both."""

    def __init__(self) -> None:
        self.view: torch.Tensor | None = None

    @property
    def length(self) -> int:
        """Columns T."""
        return 0 if self.view is None else self.view.shape[1]

    def append(self, new: torch.Tensor) -> torch.Tensor:
        """The columns with `new` at their end."""
        self.view = new if self.view is None else torch.cat([self.view, new], dim=1)
        return self.view

    def keep(self, start: int, stop: int) -> None:
        """Drops all columns except `start ... stop - 1`."""
        if stop - start < self.length:
            self.view = self.view[:, start:stop].clone()

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Replaces the columns."""
        if self.view is not None:
            self.view = function(self.view)


class MegaCacheLayer:
    def _take_rows(self, index: torch.Tensor) -> None:
        """Row i of all stored tensors becomes the former row `index[i]`."""

        def taken(x: torch.Tensor | None) -> torch.Tensor | None:
            return None if x is None else x.index_select(0, index.to(x.device))

        for columns in (self._keys, self._values):
            columns.map(taken)
        self.state, self.history = taken(self.state), taken(self.history)
        self.padding = Padding(*map(taken, self.padding))
        if self._record is not None:
            self._record = self._record._replace(
                state=taken(self._record.state),
                history=taken(self._record.history),
                inputs=[taken(x) for x in self._record.inputs],
            )


def prepare_cache(cache: Cache | None, config: MegaConfig) -> Cache:
    """The cache of a forward pass: a new one for None, else the given one, checked."""
    if cache is None:
        cache = DynamicCache(config=config)
    if not any(layer.is_initialized for layer in cache.layers):
        # made without a configuration; nothing is stored yet, so its layers can still be replaced
        if len(cache.layers) != config.num_hidden_layers or type(cache.layers[0]) is not MegaCacheLayer:
            cache.layers = [MegaCacheLayer() for _ in range(config.num_hidden_layers)]
    elif not all(isinstance(layer, MegaCacheLayer) for layer in cache.layers):
        raise ValueError("`cache` belongs to another model; make one with `DynamicCache(config=model.config)`")
    return cache


def check_inputs(
    config: MegaConfig, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, cached: int = 0
) -> tuple[int, int]:
    """(batch, length) of the inputs of `MegaModel.forward` after `cached` tokens.

    Raises:
        ValueError: for ids and embeddings both or neither, and for more tokens than a `"simple"` bias serves.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
    batch, length = input_ids.shape if inputs_embeds is None else inputs_embeds.shape[:2]
    limited = config.relative_positional_bias == "simple" and not config.use_chunking
    if limited and cached + length > config.positions_of_simple_bias():
        raise ValueError(
            f"the input has {cached + length} tokens, but `relative_positional_bias='simple'` serves "
            f"{config.positions_of_simple_bias()} positions; shorten the input, or use a model with chunking or with "
            "rotary bias"
        )
    return batch, length


class MegaPreTrainedModel:
    _no_split_modules = ["MegaBlock"]  # noqa: RUF012
    _supports_sdpa = False
    _supports_flex_attn = False
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": MegaBlock,
        "attentions": MegaMovingAverageGatedAttention,
    }


class MegaModel:
    def get_input_embeddings(self) -> nn.Module:
        return self.embedding_layer.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embedding_layer.word_embeddings = value

    @merge_with_config_defaults
    @capture_outputs
    @auto_docstring
    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, ...] | BaseModelOutputWithPoolingAndCrossAttentions:
        config = self.config
        cache_layers = []
        if not config.is_decoder:
            cache = None
        elif use_cache or cache is not None:
            cache = prepare_cache(cache, config)
            cache_layers = cache.layers
        shape = check_inputs(config, input_ids, inputs_embeds, cache_layers[0].seen if cache_layers else 0)
        hidden_states = self.embedding_layer(input_ids, token_type_ids, inputs_embeds)
        if attention_mask is not None:
            # the cache stores the earlier padding
            attention_mask = attention_mask[:, -shape[1] :].to(hidden_states.device)
        chunk_size = config.chunk_size if config.use_chunking else None
        if cache_layers:
            layout = cache_layers[0].begin(cache_layers, attention_mask, shape, chunk_size, hidden_states.device)
        else:
            layout = self_attention_layout(attention_mask, shape[1], chunk_size=chunk_size, causal=config.is_decoder)
        for layer in self.layers:
            hidden_states = layer(hidden_states, layout=layout, cache=cache)
        if self.final_norm is not None:
            hidden_states = self.final_norm(hidden_states)
        pooled = None if self.pooler is None else self.pooler(hidden_states, attention_mask)
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=hidden_states, pooler_output=pooled, cache=cache
        )


class MegaLanguageModel(MegaPreTrainedModel):
    """Shared by the masked and the causal language model: a trunk, and an optional tanh layer before the head."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__(config)
        if config.tie_word_embeddings:
            config.check_tied_width()
        self.mega = MegaModel(config, add_pooling_layer=False)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size) if config.add_lm_hidden_dense_layer else None

    def _logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., d) -> (..., V)."""
        if self.dense is not None:
            hidden_states = torch.tanh(self.dense(hidden_states))
        return self.get_output_embeddings()(hidden_states)
