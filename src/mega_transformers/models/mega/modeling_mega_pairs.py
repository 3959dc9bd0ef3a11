"""Mega over two sequences, for classes of the pair, for example whether two documents belong together."""

from dataclasses import dataclass
from typing import cast

import torch
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_mega import MegaConfig
from .modeling_mega import MegaModel, MegaPreTrainedModel
from .modeling_mega_classification import MegaClassificationHead, check_class_labels, pooled
from .validation_mega import check_inputs, checked_keywords


@dataclass
class MegaSequencePairClassifierOutput(SequenceClassifierOutput):
    """A `SequenceClassifierOutput` whose `hidden_states` and `attentions` belong to the first sequence.

    Args:
        pair_hidden_states: (B, M, d) of the embeddings and of every block, of the second sequence.
        pair_attentions: Attention weights of the second sequence, per layer as in `MegaModel.forward`.
    """

    pair_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    pair_attentions: tuple[torch.FloatTensor, ...] | None = None


class MegaForSequencePairClassification(MegaPreTrainedModel):
    """Mega with a head for classes of pairs of sequences, or numbers for them. One model reads both, separately.

    The head reads the vector of the second sequence followed by that of the first, as in the authors' model for
    retrieval. There is no Auto class for this model: `AutoModelForSequenceClassification` makes the model for single
    sequences.

    Args:
        config: The configuration, as for `MegaForSequenceClassification`.
    """

    def __init__(self, config: MegaConfig) -> None:
        super().__init__(config)
        self.num_labels = cast(int, config.num_labels)
        self.mega = MegaModel(config, add_pooling_layer=False)
        self.classifier = MegaClassificationHead(config, 2 * config.hidden_size)
        self.loss_type = "ForSequenceClassification"
        self.post_init()

    @checked_keywords(MegaModel.forward)
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pair_input_ids: torch.Tensor | None = None,
        pair_attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pair_inputs_embeds: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        pair_token_type_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, ...] | MegaSequencePairClassifierOutput:
        """Computes the logits of every pair, and the loss if `labels` are given.

        Args:
            input_ids, attention_mask, inputs_embeds, token_type_ids: First sequences, (B, L), as in
                `MegaModel.forward`.
            pair_input_ids, pair_attention_mask, pair_inputs_embeds, pair_token_type_ids: Second sequences, (B, M).
            labels: As in `MegaForSequenceClassification.forward`.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Returns:
            `loss`, a scalar; `logits` (B, num_labels); `hidden_states` and `attentions` of the first sequences,
            `pair_hidden_states` and `pair_attentions` of the second.

        Raises:
            ValueError: as in `MegaModel.forward`, and for unequal numbers of first and second sequences.
        """
        config = self.config
        batch, _ = check_inputs(config, input_ids, inputs_embeds, attention_mask, token_type_ids)
        pairs, _ = check_inputs(
            config, pair_input_ids, pair_inputs_embeds, pair_attention_mask, pair_token_type_ids, prefix="pair_"
        )
        if batch != pairs:
            raise ValueError(
                f"there are {batch} first sequences, but pair_input_ids has {pairs} rows; give the same number of both"
            )
        check_class_labels(labels, batch, config)
        first = self.mega(input_ids, attention_mask, token_type_ids, inputs_embeds, **kwargs)
        second = self.mega(pair_input_ids, pair_attention_mask, pair_token_type_ids, pair_inputs_embeds, **kwargs)
        vectors = [
            pooled(config, second[0], pair_attention_mask, pair_input_ids),
            pooled(config, first[0], attention_mask, input_ids),
        ]
        logits = self.classifier(torch.cat(vectors, dim=-1))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=config, **kwargs)
        return MegaSequencePairClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=first.hidden_states,
            attentions=first.attentions,
            pair_hidden_states=second.hidden_states,
            pair_attentions=second.attentions,
        )


__all__ = ["MegaForSequencePairClassification", "MegaSequencePairClassifierOutput"]
