"""Mega models: the encoder or causal decoder, and the masked and the causal language model over it.

Read on in `layers/block.py`, then `layers/gated_attention.py` and `ops/*/reference.py`.
"""

import copy
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.loss.loss_utils import LOSS_MAPPING
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    MaskedLMOutput,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ...layers import (
    MegaBlock,
    MegaMovingAverageGatedAttention,
    MegaMultiDimensionDampedEma,
    MegaRMSNorm,
    MegaRotaryRelativePositionalBias,
    MegaScaleNorm,
    MegaSimpleRelativePositionalBias,
)
from ...layers.linear import is_plain, project
from ...ops.continuation import Continuation
from ...ops.cross_entropy import linear_cross_entropy
from ...ops.visibility import Visibility
from .cache_mega import MegaCacheLayer, prepare_cache
from .configuration_mega import MegaConfig
from .validation_mega import (
    check_decoder_inputs,
    check_files,
    check_inputs,
    check_labels,
    leading_shape,
    positions_limit,
    values_can_be_checked,
)

logger = logging.get_logger(__name__)


def warn_of_unnormalized_rmsnorm(config: MegaConfig) -> None:
    """Says that a checkpoint of transformers 4.x with rmsnorm computes other numbers here."""
    saved_by = config.transformers_version or ""
    undecided = config.normalization_type == "rmsnorm" and config.legacy_unnormalized_rmsnorm is None
    if undecided and saved_by.startswith("4."):
        logger.warning_once(
            f"This checkpoint was saved by transformers {saved_by}, whose rmsnorm did not normalise. Here it is a "
            "true rmsnorm, as in the authors' code. If the model was trained with transformers 4.x, load it with "
            "legacy_unnormalized_rmsnorm=True; if not, legacy_unnormalized_rmsnorm=False ends this warning."
        )


class MegaEmbeddings(nn.Module):
    """Word embeddings, plus token type embeddings where the configuration has them."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.token_type_embeddings = (
            nn.Embedding(config.type_vocab_size, config.hidden_size) if config.add_token_type_embeddings else None
        )

    def forward(
        self,
        input_ids: torch.Tensor | None,
        token_type_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
    ) -> torch.Tensor:
        """Ids (B, L) or embeddings (B, L, d), and token types (B, L), 0 by default -> (B, L, d)."""
        embeddings = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if self.token_type_embeddings is None:
            return embeddings
        if token_type_ids is None:
            return embeddings + self.token_type_embeddings.weight[0]
        return embeddings + self.token_type_embeddings(token_type_ids)


class MegaPooler(nn.Module):
    """tanh(dense(first token)); the token at position 0 even if that is padding, as in 4.40.2."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = nn.Tanh()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, L, d) -> (B, d)."""
        return self.activation(self.dense(hidden_states[:, 0]))


class MegaPreTrainedModel(PreTrainedModel):
    """What all Mega models share: configuration, initial weights, and what they support."""

    config: MegaConfig
    config_class = MegaConfig
    base_model_prefix = "mega"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MegaEmbeddings", "MegaBlock"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = False
    # the EMA's decays are too close to 1 for half precision
    _keep_in_fp32_modules_strict = ["ema_gate"]  # noqa: RUF012
    # a buffer of transformers 4.40.2's rotary bias that holds nothing
    _keys_to_ignore_on_load_unexpected = [r"_float_tensor$"]  # noqa: RUF012
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": MegaBlock,
        "attentions": MegaMovingAverageGatedAttention,
    }

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """See `PreTrainedModel.from_pretrained`; names the file when one of a folder is damaged."""
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except Exception:
            check_files(pretrained_model_name_or_path)
            raise

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


def document_starts_of(
    shape: tuple[int, int],
    position_ids: torch.Tensor | None,
    cu_seq_lens: torch.Tensor | None,
    seq_idx: torch.Tensor | None,
) -> tuple[torch.Tensor | None, int | None]:
    """Where packed documents start, from what `DataCollatorWithFlattening` gives.

    Args:
        shape: (batch, length).
        position_ids: (B or 1, L), restarting in every document.
        cu_seq_lens: (documents + 1,) boundaries, for a batch of one row.
        seq_idx: (B, L) numbers of documents.

    Returns:
        (B, L) bool, True at the first token of every document, or None for one document a row; and an upper bound
        of the documents in a row, if known.
    """
    bound = None
    if seq_idx is not None:
        starts = F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0), value=True)
    elif cu_seq_lens is not None:
        if shape[0] != 1:
            raise ValueError(f"cu_seq_lens_q describes one packed row, but the batch has {shape[0]}; flatten it")
        bound = cu_seq_lens.numel() - 1
        starts = torch.zeros(shape[1] + 1, dtype=torch.bool, device=cu_seq_lens.device)
        starts = starts.index_fill(0, cu_seq_lens.long(), True)[:-1].unsqueeze(0)
    elif position_ids is not None:
        starts = F.pad(position_ids[:, 1:] != position_ids[:, :-1] + 1, (1, 0), value=True)
    else:
        return None, None
    if starts.shape[1] != shape[1] or starts.shape[0] not in (1, shape[0]):
        raise ValueError(
            f"position_ids or seq_idx have shape {tuple(starts.shape)}, but must be (batch, length) = {shape}"
        )
    if values_can_be_checked(starts) and not bool(starts[:, 1:].any()):
        return None, None
    return starts.expand(shape), bound


class MegaModel(MegaPreTrainedModel):
    """The bare Mega model: an encoder, or a causal model with `is_decoder=True, bidirectional=False`.

    Args:
        config: The configuration.
        add_pooling_layer: Whether to add a tanh layer over the first token.
    """

    def __init__(self, config: MegaConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        if config.add_cross_attention:
            raise ValueError("add_cross_attention=True: this release of mega_transformers has no cross-attention")
        warn_of_unnormalized_rmsnorm(config)
        self.embedding_layer = MegaEmbeddings(config)
        self.layers = nn.ModuleList([MegaBlock(config, index) for index in range(config.num_hidden_layers)])
        self.pooler = MegaPooler(config) if add_pooling_layer else None
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding_layer.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embedding_layer.word_embeddings = cast(nn.Embedding, value)

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
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, ...] | BaseModelOutputWithPoolingAndCrossAttentions:
        """Embeds, runs the blocks, pools.

        Args:
            input_ids: (B, L) ids, or give `inputs_embeds`.
            attention_mask: (B, L), 1 (or True) at real tokens and 0 at padding, on either side; all real by default.
                With cached tokens (B, cached + L).
            token_type_ids: (B, L) token types, for a model that embeds them; 0 by default.
            inputs_embeds: (B, L, d) embeddings in place of ids.
            encoder_hidden_states, encoder_attention_mask: Of an encoder, for a decoder with cross-attention.
            past_key_values: A decoder's memory of the tokens before, which is brought up to date; any number of new
                tokens may follow. `DynamicCache(config=config)` makes one, or what an earlier forward pass returned.
            use_cache: Whether a decoder returns that memory; `config.use_cache` by default.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`; and where rows are packed with several
                documents, which then see nothing of each other, one of `position_ids` (B, L), restarting in every
                document, `cu_seq_lens_q` (documents + 1,) and `seq_idx` (B, L). Mega has no absolute positions, so
                `position_ids` say nothing else.

        Returns:
            `last_hidden_state` (B, L, d); `pooler_output` (B, d); `past_key_values`; `hidden_states`, (B, L, d) of the
            embeddings and of every block; `attentions`, per layer (B, K, n, n) for K chunks of n tokens, or
            (B, 1, L, T) over the T columns that may be seen where tokens continue cached ones.

        Raises:
            ValueError: for inputs that cannot be right; see `validation_mega.check_inputs`.
        """
        config = self.config
        check_decoder_inputs(config, past_key_values, encoder_hidden_states)
        cache = None
        if config.is_decoder and (use_cache or past_key_values is not None):
            batch = leading_shape(input_ids, inputs_embeds)[0]
            cache = prepare_cache(past_key_values, config, batch, self.device)
        memory = None if cache is None else cast(MegaCacheLayer, cache.layers[0])
        seen = 0 if memory is None else memory.past.seen
        shape = check_inputs(config, input_ids, inputs_embeds, attention_mask, token_type_ids, seen)
        starts, num_documents = document_starts_of(
            shape, kwargs.get("position_ids"), kwargs.get("cu_seq_lens_q"), kwargs.get("seq_idx")
        )
        hidden_states = self.embedding_layer(input_ids, token_type_ids, inputs_embeds)
        if attention_mask is not None:
            attention_mask = attention_mask[:, -shape[1] :].to(hidden_states.device)
        chunk_size = config.chunk_size if config.use_chunking else None
        visibility: Visibility | Continuation
        if memory is not None and starts is None:
            visibility = memory.rule(attention_mask, shape[1], chunk_size)
        else:
            if past_key_values is not None:
                raise ValueError("packed documents cannot continue past_key_values; give one of the two")
            cache = None
            visibility = Visibility.build(
                attention_mask,
                shape[1],
                chunk_size=chunk_size,
                causal=config.is_decoder,
                document_starts=starts,
                num_documents=num_documents,
            )
        output_attentions = bool(kwargs.get("output_attentions", config.output_attentions))
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                visibility=visibility,
                output_attentions=output_attentions,
                past_key_values=cache,
            )
        pooled = None if self.pooler is None else self.pooler(hidden_states)
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=hidden_states, pooler_output=pooled, past_key_values=cache
        )


class MegaLanguageModel(MegaPreTrainedModel):
    """What the masked and the causal language model share: an optional tanh layer, a head, and its loss."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__(config)
        self.mega = MegaModel(config, add_pooling_layer=False)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size) if config.add_lm_hidden_dense_layer else None

    def _predict(
        self, hidden_states: torch.Tensor, labels: torch.Tensor | None, count: int | torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits of hidden states (..., d), and their loss at `labels` (...,), which belong to the same positions.

        The summed loss is divided by `count`, by default the number of labels. It is None without labels, or where
        `self.loss_function` is to compute it.
        """
        if self.dense is not None:
            hidden_states = torch.tanh(project(self.dense, hidden_states))
        head = cast(nn.Linear, self.get_output_embeddings())
        if labels is None or not self._has_plain_loss(head):
            return project(head, hidden_states), None
        total, logits = linear_cross_entropy(hidden_states.flatten(0, -2), head.weight, head.bias, labels.flatten())
        if count is None:
            count = (labels != -100).sum()
        return logits.unflatten(0, labels.shape), total / (count.to(total.device) if torch.is_tensor(count) else count)

    def _has_plain_loss(self, head: nn.Module) -> bool:
        """Whether head and loss are those this class made, so that both may be computed in one."""
        plain_losses = (LOSS_MAPPING["ForMaskedLM"], LOSS_MAPPING["ForCausalLM"])
        return not torch.compiler.is_compiling() and is_plain(head) and self.loss_function in plain_losses


class MegaForMaskedLM(MegaLanguageModel):
    """Mega with a language model head that predicts masked words."""

    _tied_weights_keys = {"mlm_head.weight": "mega.embedding_layer.word_embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: MegaConfig) -> None:
        if config.is_decoder:
            raise ValueError("is_decoder=True: a masked language model must see both sides; set is_decoder=False")
        super().__init__(config)
        self.mlm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.mlm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.mlm_head = new_embeddings

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
        """Logits (B, L, V), and the loss with `labels`.

        Args:
            labels: (B, L) ids of the words to predict, -100 where there is none. With `config.sparse_prediction` the
                logits are those of labelled positions only, in reading order: (labelled, V).
            input_ids, attention_mask, token_type_ids, inputs_embeds, kwargs: As in `MegaModel.forward`; also
                `num_items_in_batch`, by which the summed loss is divided in place of the number of labels.
        """
        if labels is not None:
            check_labels("labels", labels, leading_shape(input_ids, inputs_embeds), self.config.vocab_size)
        outputs = self.mega(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
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


class MegaForCausalLM(MegaLanguageModel, GenerationMixin):
    """Mega with a language model head that predicts the next word.

    Args:
        config: A configuration with `is_decoder=True` and `bidirectional=False`. `is_decoder=False` alone, which
            4.40.2 accepted, is corrected with a warning.

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
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.lm_head = new_embeddings

    def _prepare_cache_for_generation(
        self, generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
    ):
        """As in `GenerationMixin`; first refuses lengths that a `"simple"` bias does not serve."""
        limit = positions_limit(self.config)
        if limit is not None and max_cache_length > limit:
            raise ValueError(
                f"max_length={generation_config.max_length} (prompt and new tokens) is more than the {limit} "
                "positions that relative_positional_bias='simple' serves without chunking; generate fewer tokens"
            )
        return super()._prepare_cache_for_generation(  # type: ignore[misc]
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )

    @staticmethod
    def create_masks_for_generate(config, inputs_embeds, attention_mask, *args, **kwargs):
        """What a static cache is given: the new tokens' part of the mask, since it remembers the rest."""
        return None if attention_mask is None else attention_mask[:, -inputs_embeds.shape[1] :]

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
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, ...] | CausalLMOutputWithCrossAttentions:
        """Logits (B, L, V), and the loss with `labels`.

        Args:
            labels: (B, L) ids, -100 where nothing is predicted; the label at position t is compared with the logits
                at t - 1.
            logits_to_keep: Compute the logits of that many last positions only, or of the positions in a tensor of
                indices; 0 for all. Not together with `labels`.
            input_ids, attention_mask, token_type_ids, inputs_embeds, encoder_hidden_states, encoder_attention_mask,
            past_key_values, use_cache, kwargs: As in `MegaModel.forward`, but with `labels` use_cache is False by
                default; also `num_items_in_batch`, by which the summed loss is divided in place of the number of
                labels.
        """
        if labels is not None:
            check_labels("labels", labels, leading_shape(input_ids, inputs_embeds), self.config.vocab_size)
            if torch.is_tensor(logits_to_keep) or logits_to_keep:
                raise ValueError(f"logits_to_keep={logits_to_keep} drops logits that labels need; give one of the two")
            # who asks for a loss does not go on from there
            use_cache = bool(use_cache)
        outputs = self.mega(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = outputs[0]
        if torch.is_tensor(logits_to_keep):
            hidden_states = hidden_states[:, logits_to_keep]
        elif logits_to_keep:
            hidden_states = hidden_states[:, -logits_to_keep:]
        next_words = None
        if labels is not None and kwargs.get("shift_labels") is None:
            next_words = F.pad(labels.to(hidden_states.device)[:, 1:], (0, 1), value=-100)
        logits, loss = self._predict(hidden_states, next_words, kwargs.get("num_items_in_batch"))
        if labels is not None and loss is None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithCrossAttentions(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
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
