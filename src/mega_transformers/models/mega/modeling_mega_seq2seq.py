"""An encoder and a decoder of Mega blocks, and the text-to-text model on top of them (authors' model `mega`)."""

from typing import Any, cast

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .compat_mega import MegaSeq2SeqLMOutput, MegaSeq2SeqModelOutput
from .configuration_mega import MegaConfig
from .configuration_mega_seq2seq import MegaSeq2SeqConfig
from .generation_mega import MegaGenerationMixin
from .modeling_mega import MegaModel, MegaPreTrainedModel
from .prediction_mega import MegaPredictionMixin, check_all_logits, kept_positions
from .validation_mega import check_labels, checked_keywords

ENCODER_EMBEDDINGS = "encoder.embedding_layer.word_embeddings.weight"
DECODER_EMBEDDINGS = "decoder.embedding_layer.word_embeddings.weight"


class MegaSeq2SeqPreTrainedModel(MegaPreTrainedModel):
    """Shared by the encoder-decoder models."""

    config: MegaSeq2SeqConfig  # type: ignore[assignment]
    config_class = MegaSeq2SeqConfig  # type: ignore[assignment]
    base_model_prefix = "model"
    # encoder and decoder record their own
    _can_record_outputs: dict[str, Any] = {}  # noqa: RUF012

    def resize_token_embeddings(self, new_num_tokens=None, pad_to_multiple_of=None, mean_resizing=True):
        """Changes the size of the shared vocabulary of encoder, decoder and output.

        Args:
            new_num_tokens, pad_to_multiple_of, mean_resizing: As in `MegaPreTrainedModel.resize_token_embeddings`.

        Returns:
            The input embeddings, an `nn.Embedding`.

        Raises:
            ValueError: for separate vocabularies, since it is not clear which one is meant.
        """
        if not self.config.share_embeddings:
            raise ValueError(
                "share_embeddings=False: encoder and decoder have separate vocabularies; resize the encoder's and the "
                "decoder's"
            )
        embeddings = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        self.config.vocab_size = embeddings.num_embeddings
        return embeddings


class MegaSeq2SeqModel(MegaSeq2SeqPreTrainedModel):
    """A bidirectional encoder and a causal decoder with cross-attention, without a head.

    Args:
        config: The configuration of both sides.
    """

    _tied_weights_keys = {ENCODER_EMBEDDINGS: DECODER_EMBEDDINGS}  # noqa: RUF012

    def __init__(self, config: MegaSeq2SeqConfig) -> None:
        super().__init__(config)
        self.encoder = MegaModel(cast(MegaConfig, config.encoder), add_pooling_layer=False)
        self.decoder = MegaModel(cast(MegaConfig, config.decoder), add_pooling_layer=False)
        self.post_init()

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict:
        """Names of tied weights, as in `PreTrainedModel`; `config.share_embeddings` decides.

        Args:
            all_submodels: Whether to include the tied weights of submodels.
        """
        if all_submodels:
            return super().get_expanded_tied_weights_keys(all_submodels)
        return dict(self._tied_weights_keys) if self.config.share_embeddings else {}

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings of the encoder."""
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the word embeddings of the encoder, and shared ones of the decoder."""
        self.encoder.set_input_embeddings(value)
        if self.config.share_embeddings:
            self.decoder.set_input_embeddings(value)

    @checked_keywords()
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        encoder_outputs: tuple[torch.Tensor, ...] | BaseModelOutput | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, ...] | MegaSeq2SeqModelOutput:
        """Encodes the source, unless `encoder_outputs` are given, and computes the hidden states of the target.

        Args:
            input_ids, attention_mask, token_type_ids, inputs_embeds: Source, (B, S), as in `MegaModel.forward`.
            decoder_input_ids, decoder_inputs_embeds: Target, (B, L) and (B, L, d). With a cache, the new tokens only.
            decoder_attention_mask: (B, L), 1 at real target tokens; with a cache (B, cached + L).
            encoder_outputs: What the encoder returned, with `last_hidden_state` (B, S, d) first.
            cache: An `EncoderDecoderCache`: what the decoder remembers, and keys and values of the source.
            use_cache: Whether to return the cache. Default: `config.decoder.use_cache`.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Returns:
            `last_hidden_state` (B, L, d) of the decoder; `cache`; `decoder_hidden_states`, `decoder_attentions`,
            `cross_attentions` (per layer (B, 1, L, S)), `encoder_last_hidden_state`, `encoder_hidden_states` and
            `encoder_attentions`, as in `MegaModel.forward`.

        Raises:
            ValueError: without a target, and as in `MegaModel.forward`.
        """
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            raise ValueError(
                "the decoder's input is missing: give decoder_input_ids or decoder_inputs_embeds; a model with a head "
                "also takes labels alone"
            )
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids, attention_mask, token_type_ids, inputs_embeds, **kwargs)
        elif isinstance(encoder_outputs, (tuple, list)):
            encoder_outputs = BaseModelOutput(*cast(tuple[Any, ...], encoder_outputs[:3]))
        source = cast(BaseModelOutput, encoder_outputs)
        target = decoder_input_ids, decoder_attention_mask, None, decoder_inputs_embeds
        outputs = self.decoder(
            *target, source.last_hidden_state, attention_mask, cache=cache, use_cache=use_cache, **kwargs
        )
        return MegaSeq2SeqModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            cache=outputs.cache,
            decoder_hidden_states=outputs.hidden_states,
            decoder_attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=source.last_hidden_state,
            encoder_hidden_states=source.hidden_states,
            encoder_attentions=source.attentions,
        )


class MegaForConditionalGeneration(MegaPredictionMixin, MegaSeq2SeqPreTrainedModel, MegaGenerationMixin):
    """An encoder-decoder Mega that writes a text for a text: translation, transliteration, summaries.

    Args:
        config: The configuration of both sides.
    """

    _tied_weights_keys = {"lm_head.weight": f"model.{DECODER_EMBEDDINGS}"}  # noqa: RUF012
    dense = None

    def __init__(self, config: MegaSeq2SeqConfig) -> None:
        super().__init__(config)
        decoder = cast(MegaConfig, config.decoder)
        self.model = MegaSeq2SeqModel(config)
        self.lm_head = nn.Linear(decoder.hidden_size, decoder.vocab_size, bias=False)
        # labels are the tokens at their own positions: the decoder's input is shifted
        self.loss_type = "ForMaskedLM"
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings of the encoder."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the word embeddings of the encoder, and shared ones of the decoder."""
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The output projection."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replaces the output projection."""
        self.lm_head = new_embeddings

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """What the decoder reads in training: its start token, then all labels but the last, with padding for -100.

        Args:
            labels: (B, L) ids, -100 at positions without a label.

        Returns:
            (B, L) ids.

        Raises:
            ValueError: if the configuration lacks `decoder_start_token_id` or `pad_token_id`.
        """
        start, pad = self.config.decoder_start_token_id, self.config.pad_token_id
        if start is None or pad is None:
            raise ValueError(
                f"decoder_start_token_id={start} and pad_token_id={pad}: shifting labels needs both; set them in "
                "the configuration, or give decoder_input_ids"
            )
        shifted = torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1]], dim=1)
        return shifted.masked_fill(shifted == -100, pad)

    @checked_keywords()
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        encoder_outputs: tuple[torch.Tensor, ...] | BaseModelOutput | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, ...] | MegaSeq2SeqLMOutput:
        """Computes the logits of the target's next tokens, and the loss if `labels` are given.

        Args:
            input_ids, attention_mask, token_type_ids, inputs_embeds: As in `MegaSeq2SeqModel.forward`.
            decoder_input_ids, decoder_attention_mask, decoder_inputs_embeds: As in `MegaSeq2SeqModel.forward`. Without
                them, the decoder reads the labels, shifted; see `prepare_decoder_input_ids_from_labels`.
            encoder_outputs, cache: As in `MegaSeq2SeqModel.forward`.
            labels: (B, L) ids of the target, -100 at positions without a label.
            use_cache: As in `MegaSeq2SeqModel.forward`, but False by default if `labels` are given.
            logits_to_keep: Number of last positions whose logits are computed, or a tensor of positions; 0 for all.
                Not together with `labels`.
            kwargs: As in `MegaSeq2SeqModel.forward`; also `num_items_in_batch`, by which the summed loss is divided
                instead of the number of labels.

        Returns:
            `loss`, a scalar; `logits` (B, L or kept positions, V); the rest as `MegaSeq2SeqModel.forward`.

        Raises:
            ValueError: as in `MegaSeq2SeqModel.forward`, and for labels of another shape or out of range, or together
                with `logits_to_keep`.
        """
        if labels is not None:
            check_all_logits(logits_to_keep)
            given = decoder_inputs_embeds if decoder_input_ids is None else decoder_input_ids
            shape = tuple(labels.shape) if given is None else tuple(given.shape[:2])
            check_labels("labels", labels, shape, self.config.vocab_size)
            if given is None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
            use_cache = bool(use_cache)
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            token_type_ids=token_type_ids,
            encoder_outputs=encoder_outputs,
            cache=cache,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = kept_positions(outputs[0], logits_to_keep)
        if labels is not None:
            labels = labels.to(hidden_states.device)
        logits, loss = self._predict(hidden_states, labels, kwargs.get("num_items_in_batch"))
        if labels is not None and loss is None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return MegaSeq2SeqLMOutput(
            loss=loss,
            logits=logits,
            cache=outputs.cache,
            decoder_hidden_states=outputs.decoder_hidden_states,
            decoder_attentions=outputs.decoder_attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            encoder_attentions=outputs.encoder_attentions,
        )


__all__ = ["MegaForConditionalGeneration", "MegaSeq2SeqModel"]
