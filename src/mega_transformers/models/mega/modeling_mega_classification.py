"""Mega models with heads for classes of sequences (of tokens or values) and tokens, for choices and for spans."""

from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_outputs import (
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_mega import MegaConfig
from .modeling_mega import MegaModel, MegaPreTrainedModel, last_real_token
from .validation_mega import check_labels, checked_keywords, leading_shape


def first_real_token(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """The hidden states (B, d) of each row's first real token."""
    if attention_mask is None:
        return hidden_states[:, 0]
    first = attention_mask.to(hidden_states.device, torch.int64).argmax(dim=1)
    return hidden_states[torch.arange(hidden_states.shape[0], device=hidden_states.device), first]


def mean_of_real_tokens(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """The mean (B, d) of each row's hidden states at real tokens, summed in float32 or wider."""
    wide = torch.promote_types(hidden_states.dtype, torch.float32)
    if attention_mask is None:
        return hidden_states.mean(dim=1, dtype=wide).to(hidden_states.dtype)
    weights = attention_mask.to(hidden_states.device, hidden_states.dtype).unsqueeze(-1)
    total = (hidden_states * weights).sum(dim=1, dtype=wide)
    return (total / weights.sum(dim=1, dtype=wide).clamp(min=1)).to(hidden_states.dtype)


def pooled(
    config: MegaConfig,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None,
    input_ids: torch.Tensor | None,
) -> torch.Tensor:
    """The vector (B, d) of each row for the head, by `config.classifier_pooling`.

    The last token of a causal model is found as in `GPT2ForSequenceClassification`: without a mask, it is the last id
    that is not padding.
    """
    if config.classifier_pooling == "mean":
        return mean_of_real_tokens(hidden_states, attention_mask)
    if not config.is_decoder:
        return first_real_token(hidden_states, attention_mask)
    if attention_mask is None and input_ids is not None and config.pad_token_id is not None:
        attention_mask = input_ids != config.pad_token_id
    return last_real_token(hidden_states, attention_mask)


class MegaClassificationHead(nn.Module):
    """A head that gives classes (or numbers) from one vector per sequence.

    With `classifier_head="tanh"`, dropout, `dense`, tanh, dropout and `out_proj`, as in 4.40.2; with `"blocks"`, for
    each of `blocks` a linear layer, dropout and the activation, then `out_proj` without bias, as in the authors' code.

    Args:
        config: The configuration.
        width: Width of the vectors.
    """

    def __init__(self, config: MegaConfig, width: int) -> None:
        super().__init__()
        num_labels, dropout = cast(int, config.num_labels), classifier_dropout(config)
        self.blocks: nn.ModuleList | None = None
        if config.classifier_head == "tanh":
            self.dense = nn.Linear(width, config.hidden_size)
            self.dropout = nn.Dropout(dropout)
            self.out_proj = nn.Linear(config.hidden_size, num_labels)
            return
        sizes = config.classifier_hidden_sizes
        widths = [width, *([config.hidden_size] if sizes is None else sizes)]
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(i, o), nn.Dropout(dropout)) for i, o in pairwise(widths)])
        self.activation = ACT2FN[config.classifier_activation]
        self.out_proj = nn.Linear(widths[-1], num_labels, bias=False)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """(B, width) -> (B, num_labels)."""
        if self.blocks is None:
            return self.out_proj(self.dropout(torch.tanh(self.dense(self.dropout(vectors)))))
        for block in self.blocks:
            vectors = self.activation(block(vectors))
        return self.out_proj(vectors)


def classifier_dropout(config: MegaConfig) -> float:
    """Dropout of the heads."""
    return config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout


def check_class_labels(labels: torch.Tensor | None, batch: int, config: MegaConfig) -> None:
    """Raises ValueError for classes (B,) of whole sequences that are out of range, if labels are classes."""
    if labels is None or labels.is_floating_point() or cast(int, config.num_labels) < 2:
        return
    if config.problem_type in (None, "single_label_classification"):
        check_labels("labels", labels.view(-1), (batch,), cast(int, config.num_labels))


class MegaForSequenceClassification(MegaPreTrainedModel):
    """Mega with a head for classes of whole sequences, or numbers for them. Reads tokens or values.

    Args:
        config: The configuration; `num_labels`, `problem_type`, `classifier_pooling` and `classifier_head` say what
            the head is like.
    """

    _input_types: tuple[str, ...] = ("tokens", "values")

    def __init__(self, config: MegaConfig) -> None:
        super().__init__(config)
        self.num_labels = cast(int, config.num_labels)
        self.mega = MegaModel(config, add_pooling_layer=False)
        self.classifier = MegaClassificationHead(config, config.hidden_size)
        self.post_init()

    @checked_keywords(MegaModel.forward)
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, ...] | SequenceClassifierOutput:
        """Computes the logits of every sequence, and the loss if `labels` are given.

        Args:
            input_ids, attention_mask, token_type_ids, inputs_embeds, input_values, kwargs: As in `MegaModel.forward`.
            labels: (B,) classes in [0, num_labels); floats (B,) for regression with one label, or (B, num_labels) for
                several labels or targets. `config.problem_type` decides which, and without it the number of labels and
                the dtype.

        Returns:
            `loss`, a scalar; `logits` (B, num_labels); `hidden_states`; `attentions`.

        Raises:
            ValueError: as in `MegaModel.forward`, and for classes of another shape or out of range.
        """
        if labels is not None:
            check_class_labels(labels, leading_shape(input_ids, inputs_embeds, input_values)[0], self.config)
        outputs = self.mega(
            input_ids, attention_mask, token_type_ids, inputs_embeds, input_values=input_values, **kwargs
        )
        logits = self.classifier(pooled(self.config, outputs[0], attention_mask, input_ids))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **kwargs)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class MegaForAudioClassification(MegaForSequenceClassification):
    """Mega with a head for classes of raw sound: a `MegaForSequenceClassification` whose first argument is values.

    The authors' models for raw speech and for pixels have `classifier_pooling="mean"` and `classifier_head="blocks"`.

    Args:
        config: A configuration with `input_type="values"`.
    """

    _input_types = ("values",)
    main_input_name = "input_values"

    @checked_keywords(MegaModel.forward)
    @can_return_tuple
    def forward(  # type: ignore[override]
        self,
        input_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, ...] | SequenceClassifierOutput:
        """Computes the logits of every recording, and the loss if `labels` are given.

        Args:
            input_values: (B, L) samples, scaled as in training.
            attention_mask, labels, inputs_embeds, kwargs: As in `MegaForSequenceClassification.forward`.

        Returns:
            As `MegaForSequenceClassification.forward`.
        """
        return super().forward(None, attention_mask, None, inputs_embeds, labels, input_values, **kwargs)


class MegaForTokenClassification(MegaPreTrainedModel):
    """Mega with a head for classes of tokens, such as named entities or parts of speech.

    Args:
        config: The configuration, with `num_labels`.
    """

    def __init__(self, config: MegaConfig) -> None:
        super().__init__(config)
        self.num_labels = cast(int, config.num_labels)
        self.mega = MegaModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, cast(int, config.num_labels))
        self.post_init()

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
    ) -> tuple[torch.Tensor, ...] | TokenClassifierOutput:
        """Computes the logits of every token, and the loss if `labels` are given.

        Args:
            input_ids, attention_mask, token_type_ids, inputs_embeds, kwargs: As in `MegaModel.forward`.
            labels: (B, L) classes of tokens in [0, num_labels), -100 at tokens without a label.

        Returns:
            `loss`, a scalar; `logits` (B, L, num_labels); `hidden_states`; `attentions`.

        Raises:
            ValueError: as in `MegaModel.forward`, and for labels of another shape or out of range.
        """
        if labels is not None:
            check_labels("labels", labels, leading_shape(input_ids, inputs_embeds), self.num_labels)
        outputs = self.mega(input_ids, attention_mask, token_type_ids, inputs_embeds, **kwargs)
        logits = self.classifier(self.dropout(outputs[0]))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config, **kwargs)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class MegaForMultipleChoice(MegaPreTrainedModel):
    """Mega with a head that scores the choices of a question.

    The score reads the first token of a row (`MegaModel`'s pooler), so pad on the right.

    Args:
        config: The configuration.
    """

    def __init__(self, config: MegaConfig) -> None:
        super().__init__(config)
        self.mega = MegaModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.post_init()

    @checked_keywords(MegaModel.forward)
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, ...] | MultipleChoiceModelOutput:
        """Computes the score of every choice, and the loss if `labels` are given.

        Args:
            input_ids: (B, choices, L) ids of the question with each choice.
            token_type_ids, attention_mask: (B, choices, L), otherwise as in `MegaModel.forward`.
            inputs_embeds: (B, choices, L, d), otherwise as in `MegaModel.forward`.
            labels: (B,) right choices in [0, choices).
            kwargs: As in `MegaModel.forward`.

        Returns:
            `loss`, a scalar; `logits` (B, choices); `hidden_states` and `attentions` of B * choices rows.

        Raises:
            ValueError: as in `MegaModel.forward`, and for labels of another shape or out of range.
        """
        given = input_ids if inputs_embeds is None else inputs_embeds
        if given is None or given.dim() != (3 if inputs_embeds is None else 4):
            raise ValueError(
                "input_ids must be (batch, num_choices, length), or inputs_embeds (batch, num_choices, length, "
                f"hidden_size); got {None if given is None else tuple(given.shape)}"
            )
        batch, num_choices = given.shape[:2]
        if labels is not None:
            check_labels("labels", labels, (batch,), num_choices, ignore_index=None)

        def flat(x: torch.Tensor | None) -> torch.Tensor | None:
            return None if x is None else x.flatten(0, 1)

        outputs = self.mega(flat(input_ids), flat(attention_mask), flat(token_type_ids), flat(inputs_embeds), **kwargs)
        logits = self.classifier(self.dropout(outputs[1])).view(batch, num_choices)
        loss = None if labels is None else F.cross_entropy(logits, labels.to(logits.device))
        return MultipleChoiceModelOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class MegaForQuestionAnswering(MegaPreTrainedModel):
    """Mega with a head for the first and the last token of an answer.

    Args:
        config: The configuration, with `num_labels=2`, the default.
    """

    def __init__(self, config: MegaConfig) -> None:
        super().__init__(config)
        self.num_labels = cast(int, config.num_labels)
        self.mega = MegaModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, cast(int, config.num_labels))
        self.post_init()

    @checked_keywords(MegaModel.forward)
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, ...] | QuestionAnsweringModelOutput:
        """Computes the logits of an answer's start and end, and the loss if both positions are given.

        Args:
            input_ids, attention_mask, token_type_ids, inputs_embeds, kwargs: As in `MegaModel.forward`.
            start_positions, end_positions: (B,) positions of the first and last token of the answer. Positions outside
                the sequence are ignored.

        Returns:
            `loss`, a scalar; `start_logits` and `end_logits` (B, L); `hidden_states`; `attentions`.

        Raises:
            ValueError: as in `MegaModel.forward`.
        """
        outputs = self.mega(input_ids, attention_mask, token_type_ids, inputs_embeds, **kwargs)
        start_logits, end_logits = (part.squeeze(-1) for part in self.qa_outputs(outputs[0]).split(1, dim=-1))
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start_logits, end_logits, start_positions, end_positions, **kwargs)
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = [
    "MegaForAudioClassification",
    "MegaForMultipleChoice",
    "MegaForQuestionAnswering",
    "MegaForSequenceClassification",
    "MegaForTokenClassification",
]
