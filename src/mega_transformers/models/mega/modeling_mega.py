"""Mega models: the encoder or causal decoder, and the masked and the causal language model on top of it.

Read on in `layers/block.py`, then `layers/gated_attention.py` and `ops/*/reference.py`.
"""

import copy
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_outputs import MaskedLMOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ...layers import (
    MegaAdaptiveSoftmax,
    MegaBlock,
    MegaGatedCrossAttention,
    MegaMatrix,
    MegaMovingAverageGatedAttention,
    MegaMultiDimensionDampedEma,
    MegaRMSNorm,
    MegaRotaryRelativePositionalBias,
    MegaScaleNorm,
    MegaSequenceNorm,
    MegaSimpleRelativePositionalBias,
)
from ...ops.layout import AttentionLayout, cross_attention_layout, first_real_column, self_attention_layout
from .cache_mega import MegaCacheLayer, MegaCrossCacheLayer
from .cache_preparation_mega import prepare_cache
from .compat_mega import MegaCausalLMOutput, MegaModelOutput
from .configuration_mega import MegaConfig
from .generation_mega import MegaGenerationMixin
from .inputs_mega import MegaEmbeddings, MegaValueEmbeddings, document_starts_of
from .prediction_mega import MegaPredictionMixin, check_all_logits, kept_positions
from .validation_mega import (
    check_crossing_positions,
    check_decoder_inputs,
    check_files,
    check_input_type,
    check_inputs,
    check_labels,
    check_source,
    checked_keywords,
    leading_shape,
)

logger = logging.get_logger(__name__)


def warn_of_unnormalized_rmsnorm(config: MegaConfig) -> None:
    """Warns that a checkpoint of transformers 4.x with rmsnorm computes other numbers here."""
    saved_by = config.transformers_version or ""
    undecided = config.normalization_type == "rmsnorm" and config.legacy_unnormalized_rmsnorm is None
    if undecided and saved_by.startswith("4."):
        logger.warning_once(
            f"This checkpoint was saved by transformers {saved_by}, whose rmsnorm did not normalise. Here it is a "
            "true rmsnorm, as in the authors' code. If the model was trained with transformers 4.x, load it with "
            "legacy_unnormalized_rmsnorm=True; if not, legacy_unnormalized_rmsnorm=False ends this warning."
        )


def last_real_token(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """The hidden states (B, d) of each row's last real token."""
    if attention_mask is None:
        return hidden_states[:, -1]
    column = torch.arange(hidden_states.shape[1], device=hidden_states.device)
    last = (column * attention_mask.to(hidden_states.device, torch.int64)).argmax(dim=1)
    return hidden_states[torch.arange(hidden_states.shape[0], device=hidden_states.device), last]


class MegaPooler(nn.Module):
    """tanh(dense(first token)); the token at position 0 even if that is padding, as in 4.40.2.

    In a decoder, whose first token sees only itself, the last real token.
    """

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = nn.Tanh()
        self.reads_last = config.is_decoder

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, L, d), and the mask (B, L) of real tokens -> (B, d)."""
        pooled = last_real_token(hidden_states, attention_mask) if self.reads_last else hidden_states[:, 0]
        return self.activation(self.dense(pooled))


class MegaPreTrainedModel(PreTrainedModel):
    """Base class of all Mega models: configuration, initial weights, loading, and what the models support."""

    config: MegaConfig
    config_class = MegaConfig
    base_model_prefix = "mega"
    supports_gradient_checkpointing = True
    # FSDP shards each of these on its own, and one shard has one dtype: the EMA's parameters stay in float32
    _no_split_modules = ["MegaBlock", "MegaMultiDimensionDampedEma"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = False
    # a decoding step with a static cache is one graph, which CUDA graphs can record
    _can_compile_fullgraph = True
    _skip_keys_device_placement = ["cache"]  # noqa: RUF012
    # the EMA's decays are too close to 1 for half precision
    _keep_in_fp32_modules_strict = ["ema_gate"]  # noqa: RUF012
    # a buffer of transformers 4.40.2's rotary bias that holds nothing
    _keys_to_ignore_on_load_unexpected = [r"_float_tensor$"]  # noqa: RUF012
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": MegaBlock,
        "attentions": MegaMovingAverageGatedAttention,
    }
    # allowed values of `config.input_type`
    _input_types: tuple[str, ...] = ("tokens",)

    def __init__(self, config: PreTrainedConfig, *args, **kwargs) -> None:
        check_input_type(config, type(self).__name__, self._input_types)
        super().__init__(config, *args, **kwargs)
        if getattr(config, "input_type", "tokens") == "values":
            self.main_input_name = "input_values"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Loads a model, as `PreTrainedModel.from_pretrained`; the error names the file if one is damaged.

        Args:
            pretrained_model_name_or_path: A folder, or an id on the hub.
            args, kwargs: As in `PreTrainedModel.from_pretrained`; fields of the configuration too.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except Exception:
            check_files(pretrained_model_name_or_path)
            raise

    def resize_token_embeddings(self, new_num_tokens=None, pad_to_multiple_of=None, mean_resizing=True):
        """Changes the size of the vocabulary, as `PreTrainedModel.resize_token_embeddings`.

        Args:
            new_num_tokens: The new size; None changes nothing.
            pad_to_multiple_of: Rounds the size up to a multiple of this.
            mean_resizing: Whether new rows start near the mean of the old ones.

        Returns:
            The input embeddings, an `nn.Embedding`.

        Raises:
            ValueError: for a model with an adaptive input or softmax, and for one that reads values.
        """
        if not isinstance(self.get_input_embeddings(), nn.Embedding):
            raise ValueError(
                "this model has no token embedding table to resize: it has an adaptive input (adaptive_input=True), "
                "or reads values (input_type='values')"
            )
        if isinstance(self.get_output_embeddings(), MegaAdaptiveSoftmax):
            raise ValueError(
                "adaptive_softmax=True: an adaptive vocabulary cannot be resized, since ids determine the clusters; "
                "make a new model with other adaptive_cutoffs"
            )
        return super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        config = self.config
        if isinstance(module, MegaMultiDimensionDampedEma):
            init.normal_(module.damping_factor, std=config.ema_delta_alpha_range)
            init.normal_(module.decay_factor, std=config.ema_delta_alpha_range)
            # +1, -1, +1, ... along the states is more stable (authors' code)
            states = module.ema_expansion_matrix.shape[1]
            signs = 1.0 - 2.0 * (torch.arange(states, device=module.ema_expansion_matrix.device) % 2)
            noise = torch.randn_like(module.ema_expansion_matrix) * config.ema_beta_range
            init.copy_(module.ema_expansion_matrix, noise + signs.unsqueeze(-1).to(noise.dtype))
            init.normal_(module.kernel_projection_matrix, std=config.ema_gamma_omega_range)
            init.normal_(module.residual_weight, std=config.ema_gamma_omega_range)
        elif isinstance(module, MegaSimpleRelativePositionalBias):
            init.normal_(module.rel_pos_bias, std=config.initializer_range)
        elif isinstance(module, MegaRotaryRelativePositionalBias):
            init.normal_(module.alpha, std=config.initializer_range)
            init.normal_(module.b_param, std=config.initializer_range)
        elif isinstance(module, MegaMovingAverageGatedAttention):
            init.normal_(module.qk_weight, std=config.initializer_range)
            init.zeros_(module.qk_bias)
        elif isinstance(module, MegaScaleNorm) and module.scalar is not None:
            init.ones_(module.scalar)
        elif isinstance(module, MegaRMSNorm) and module.weight is not None:
            init.ones_(module.weight)
        elif isinstance(module, (MegaMatrix, MegaValueEmbeddings)):
            module.initialize()


class MegaModel(MegaPreTrainedModel):
    """The Mega model without a head: an encoder, or a causal model with `is_decoder=True, bidirectional=False`.

    Args:
        config: The configuration.
        add_pooling_layer: Whether to add a tanh layer over the first token, in a decoder over the last one.

    Example:
        `MegaModel(MegaConfig())(input_ids).last_hidden_state`, of shape (B, L, hidden_size)
    """

    _input_types = ("tokens", "values")

    def __init__(self, config: MegaConfig, add_pooling_layer: bool = True) -> None:
        if config.add_cross_attention:
            # read when a model is created; other models have no such output
            self._can_record_outputs = {**self._can_record_outputs, "cross_attentions": MegaGatedCrossAttention}
        super().__init__(config)
        warn_of_unnormalized_rmsnorm(config)
        self.embedding_layer = MegaEmbeddings(config)
        self.layers = nn.ModuleList([MegaBlock(config, index) for index in range(config.num_hidden_layers)])
        self.final_norm = MegaSequenceNorm(config, config.final_norm_affine) if config.final_norm else None
        self.pooler = MegaPooler(config) if add_pooling_layer else None
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The module that embeds ids, or values."""
        return getattr(self.embedding_layer, self._input_embeddings_name)

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the module that embeds ids, or values."""
        setattr(self.embedding_layer, self._input_embeddings_name, value)

    @property
    def _input_embeddings_name(self) -> str:
        return "value_embeddings" if self.config.input_type == "values" else "word_embeddings"

    # generate passes an encoder the arguments of the whole model
    @checked_keywords(unread=("labels", "logits_to_keep"))
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        input_values: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, ...] | MegaModelOutput:
        """Computes the hidden states of every token.

        Args:
            input_ids: (B, L) ids. Give these, or `inputs_embeds`, or `input_values` if the model reads values.
            attention_mask: (B, L), 1 or True at real tokens and 0 at padding, which may be on either side. Default:
                all are real. With a cache (B, cached + L).
            token_type_ids: (B, L) token types, for a model that embeds them. Default: 0.
            inputs_embeds: (B, L, d) embeddings in place of ids or values.
            encoder_hidden_states: (B, S, d of the encoder), for a decoder with cross-attention. Not needed once a
                cache holds their keys and values.
            encoder_attention_mask: (B, S), 1 at real source tokens and 0 at padding. Default: all are real. Cached
                keys and values keep the mask that they were made with.
            cache: What a decoder remembers of the tokens before. It is updated in place, and any number of new tokens
                may follow. `DynamicCache(config=config)` makes an empty one; a forward pass with `use_cache=True`
                returns one. With cross-attention it is an `EncoderDecoderCache`.
            use_cache: Whether a decoder returns its cache. Default: `config.use_cache`.
            input_values: (B, L) real numbers, for a model with `input_type="values"`.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`; and for rows that are packed with
                several documents, which then do not see each other, one of `position_ids` (B, L), which restart in
                every document, `cu_seq_lens_q` (documents + 1,) or `seq_idx` (B, L). Mega has no absolute positions,
                so that `position_ids` have no other effect.

        Returns:
            `last_hidden_state` (B, L, d); `pooler_output` (B, d); `cache`; `hidden_states`, (B, L, d) of the
            embeddings and of every block; `attentions`, per layer (B, K, n, n) for K chunks of n tokens, or, with a
            cache, (B, 1, L, T) over the T columns that may be seen; `cross_attentions`, per layer (B, 1, L, S).

        Raises:
            ValueError: before any computation, for inputs of a wrong shape, ids or token types out of range, a mask
                that does not fit, and a cache of another model, batch size or device.
        """
        config = self.config
        check_decoder_inputs(config, cache, encoder_hidden_states, kwargs.get("is_causal"))
        given = cache
        if given is not None and self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            raise ValueError(
                "a cache is given, but gradient checkpointing runs every block twice and cannot update a cache; leave "
                "out the cache, or switch off gradient checkpointing"
            )
        if config.is_decoder and (use_cache or given is not None):
            batch = leading_shape(input_ids, inputs_embeds, input_values)[0]
            # not self.device, which searches all modules for a parameter
            cache = prepare_cache(given, config, batch, cast(Any, self.get_input_embeddings()).weight.device)
        own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
        cache_layers = [] if own is None else cast(list[MegaCacheLayer], own.layers)
        seen = cache_layers[0].seen if cache_layers else 0
        shape = check_inputs(config, input_ids, inputs_embeds, attention_mask, token_type_ids, seen, input_values)
        reset, documents = document_starts_of(
            shape, kwargs.get("position_ids"), kwargs.get("cu_seq_lens_q"), kwargs.get("seq_idx")
        )
        hidden_states = self.embedding_layer(input_ids, token_type_ids, inputs_embeds, input_values)
        if attention_mask is not None:
            attention_mask = attention_mask[:, -shape[1] :].to(hidden_states.device)
        chunk_size = config.chunk_size if config.use_chunking else None
        if cache_layers and reset is None:
            layout = cache_layers[0].begin(cache_layers, attention_mask, shape, chunk_size, hidden_states.device)
        elif given is not None:
            raise ValueError("packed documents cannot continue a cache; give one of the two")
        else:
            cache = None
            layout = self_attention_layout(
                attention_mask,
                shape[1],
                chunk_size=chunk_size,
                causal=config.is_decoder,
                reset=reset,
                documents=documents,
            )
        cross_layout = None
        if config.add_cross_attention:
            if reset is not None:
                raise ValueError("packed documents cannot attend to an encoder; give one target per row")
            cross_layout = self._cross_layout(
                encoder_hidden_states, encoder_attention_mask, attention_mask, seen, hidden_states, cache
            )
        output_attentions = bool(kwargs.get("output_attentions", config.output_attentions))
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                encoder_hidden_states,
                layout=layout,
                cross_layout=cross_layout,
                output_attentions=output_attentions,
                cache=cache,
            )
        if self.final_norm is not None:
            hidden_states = self.final_norm(hidden_states)
        pooled = None if self.pooler is None else self.pooler(hidden_states, attention_mask)
        return MegaModelOutput(last_hidden_state=hidden_states, pooler_output=pooled, cache=cache)

    def _cross_layout(
        self,
        encoder_hidden_states: torch.Tensor | None,
        encoder_attention_mask: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        seen: int | torch.Tensor,
        hidden_states: torch.Tensor,
        cache: Cache | None,
    ) -> AttentionLayout:
        """The layout of new tokens, hidden_states (B, L, d), that follow `seen` others, over the encoder's states."""
        batch, length, _ = hidden_states.shape
        stored = None
        if isinstance(cache, EncoderDecoderCache):
            stored = cast(MegaCrossCacheLayer, cache.cross_attention_cache.layers[0])
        if stored is not None and stored.is_initialized:
            mask, columns = stored.real, stored.get_seq_length()
        else:
            check_source(self.config, encoder_hidden_states, encoder_attention_mask, batch)
            mask, columns = encoder_attention_mask, cast(torch.Tensor, encoder_hidden_states).shape[1]
        check_crossing_positions(self.config, "the decoder's input", seen + length)
        own = None
        if isinstance(cache, EncoderDecoderCache):
            own = cast(MegaCacheLayer, cache.self_attention_cache.layers[0])
        return cross_attention_layout(
            None if mask is None else mask.to(hidden_states.device),
            columns,
            length,
            start=seen,
            start_bound=0 if own is None else own.get_max_length(),
            first_target=first_real_column(attention_mask) if own is None else own.first_real,
            count_padding=bool(self.config.cross_attention_counts_padding),
        )


class MegaLanguageModel(MegaPredictionMixin, MegaPreTrainedModel):
    """Shared by the masked and the causal language model: a trunk, and an optional tanh layer."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__(config)
        if config.tie_word_embeddings:
            config.check_tied_width()
        self.mega = MegaModel(config, add_pooling_layer=False)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size) if config.add_lm_hidden_dense_layer else None


class MegaForMaskedLM(MegaLanguageModel):
    """Mega with a language model head that predicts masked tokens.

    Args:
        config: A configuration with `is_decoder=False`.

    Raises:
        ValueError: for `is_decoder=True`, and for `adaptive_softmax=True`.
    """

    _tied_weights_keys = {"mlm_head.weight": "mega.embedding_layer.word_embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: MegaConfig) -> None:
        if config.is_decoder:
            raise ValueError("is_decoder=True: a masked language model must see both sides; set is_decoder=False")
        if config.adaptive_softmax:
            raise ValueError("adaptive_softmax=True: only MegaForCausalLM has an adaptive softmax; set it to False")
        super().__init__(config)
        self.mlm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The output projection."""
        return self.mlm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replaces the output projection."""
        self.mlm_head = new_embeddings

    @checked_keywords(MegaModel.forward)
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, ...] | MaskedLMOutput:
        """Computes the logits of every token, and the loss if `labels` are given.

        Args:
            input_ids, attention_mask, token_type_ids, inputs_embeds: As in `MegaModel.forward`.
            labels: (B, L) ids of the tokens to predict, -100 at positions without a label.
            kwargs: As in `MegaModel.forward`; also `num_items_in_batch`, by which the summed loss is divided instead
                of the number of labels.

        Returns:
            `loss`, a scalar; `logits` (B, L, V), or with labels and `config.sparse_prediction` (labels, V), those of
            labelled positions in reading order; `hidden_states`; `attentions`.

        Raises:
            ValueError: as in `MegaModel.forward`, and for labels of another shape or out of range.
        """
        if labels is not None:
            check_labels("labels", labels, leading_shape(input_ids, inputs_embeds), self.config.vocab_size)
        outputs = self.mega(input_ids, attention_mask, token_type_ids, inputs_embeds, **kwargs)
        hidden_states = outputs[0]
        if labels is not None:
            labels = labels.to(hidden_states.device)
            if self.config.sparse_prediction:
                labelled = labels != -100
                hidden_states, labels = hidden_states[labelled], labels[labelled]
        logits, loss = self._predict(hidden_states, labels, kwargs.get("num_items_in_batch"))
        if labels is not None and loss is None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class MegaForCausalLM(MegaLanguageModel, MegaGenerationMixin):
    """Mega with a language model head that predicts the next token.

    Args:
        config: A configuration with `is_decoder=True` and `bidirectional=False`. `is_decoder=False`, which 4.40.2
            accepted, is corrected with a warning.

    Raises:
        ValueError: for `bidirectional=True`, whose EMA sees the future.
    """

    _tied_weights_keys = {"lm_head.weight": "mega.embedding_layer.word_embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: MegaConfig) -> None:
        if config.bidirectional:
            raise ValueError(
                "bidirectional=True: an EMA in both directions sees the future; a causal language model needs "
                "MegaConfig(bidirectional=False, is_decoder=True)"
            )
        if not config.is_decoder:
            logger.warning_once(
                "MegaForCausalLM was given is_decoder=False, with which it would see the future; it is built with "
                "is_decoder=True. Set that in the configuration to end this warning."
            )
            config = copy.deepcopy(config)
            config.is_decoder = True
        super().__init__(config)
        self.lm_head: nn.Module
        if config.adaptive_softmax:
            self.lm_head = MegaAdaptiveSoftmax(config)
            self._tied_weights_keys = {
                f"lm_head.{own}": f"mega.embedding_layer.word_embeddings.{of_input}"
                for own, of_input in self.lm_head.tied_weights().items()
            }
        else:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict:
        """Names of tied weights, as in `PreTrainedModel`; `config.tie_adaptive_weights` decides for adaptive softmax.

        Args:
            all_submodels: Whether to include the tied weights of submodels.
        """
        if all_submodels or not isinstance(self.lm_head, MegaAdaptiveSoftmax):
            return super().get_expanded_tied_weights_keys(all_submodels)
        return dict(self._tied_weights_keys)

    def get_output_embeddings(self) -> nn.Module:
        """The output projection."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replaces the output projection."""
        self.lm_head = new_embeddings

    @checked_keywords(MegaModel.forward)
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, ...] | MegaCausalLMOutput:
        """Computes the logits of every token, and the loss if `labels` are given.

        Args:
            input_ids, attention_mask, token_type_ids, inputs_embeds: As in `MegaModel.forward`.
            encoder_hidden_states, encoder_attention_mask, cache: As in `MegaModel.forward`.
            labels: (B, L) ids, usually `input_ids` themselves, -100 at positions without a label. The label at
                position t is compared with the logits at t - 1.
            use_cache: As in `MegaModel.forward`, but False by default if `labels` are given.
            logits_to_keep: Number of last positions whose logits are computed, or a tensor of positions; 0 for all.
                Not together with `labels`.
            kwargs: As in `MegaModel.forward`; also `num_items_in_batch`, by which the summed loss is divided instead
                of the number of labels.

        Returns:
            `loss`, a scalar; `logits` (B, L or kept positions, V), with an adaptive softmax log-probabilities in
            float32 at least, and None for its training mode with labels, where the loss does not need them; `cache`;
            `hidden_states`; `attentions`; `cross_attentions`.

        Raises:
            ValueError: as in `MegaModel.forward`, and for labels of another shape or out of range, or together with
                `logits_to_keep`.
        """
        if labels is not None:
            check_labels("labels", labels, leading_shape(input_ids, inputs_embeds), self.config.vocab_size)
            check_all_logits(logits_to_keep)
            # a forward pass for a loss is not continued
            use_cache = bool(use_cache)
        source = encoder_hidden_states, encoder_attention_mask
        outputs = self.mega(
            input_ids,
            attention_mask,
            token_type_ids,
            inputs_embeds,
            *source,
            cache=cache,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = kept_positions(outputs[0], logits_to_keep)
        next_words = None
        if labels is not None:
            shifted = cast(torch.Tensor | None, kwargs.get("shift_labels"))
            next_words = F.pad(labels[:, 1:], (0, 1), value=-100) if shifted is None else shifted
            next_words = next_words.to(hidden_states.device)
        logits, loss = self._predict(hidden_states, next_words, kwargs.get("num_items_in_batch"))
        if labels is not None and loss is None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return MegaCausalLMOutput(
            loss=loss,
            logits=logits,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )


__all__ = [
    "MegaForCausalLM",
    "MegaForMaskedLM",
    "MegaModel",
    "MegaPreTrainedModel",
]
