"""Shared by models that predict tokens: logits of hidden states, and their loss."""

from typing import Any, cast

import torch
from torch import nn
from transformers.loss.loss_utils import LOSS_MAPPING

from ...layers import MegaAdaptiveSoftmax
from ...layers.linear import is_plain, is_unhooked, linear
from ...ops.cross_entropy import linear_cross_entropy


def check_all_logits(logits_to_keep: int | torch.Tensor) -> None:
    """Raises ValueError unless all logits are kept, as labels need."""
    if torch.is_tensor(logits_to_keep) or logits_to_keep:
        raise ValueError(f"logits_to_keep={logits_to_keep} drops logits that labels need; give one of the two")


def kept_positions(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """The last hidden states of (B, L, d), those at a tensor of indices, or for 0 all."""
    if torch.is_tensor(logits_to_keep):
        return hidden_states[:, logits_to_keep]
    return hidden_states[:, -logits_to_keep:] if logits_to_keep else hidden_states


class MegaPredictionMixin:
    """For models with output embeddings; `dense` is a tanh layer before them, or None."""

    dense: nn.Module | None

    def _predict(
        self, hidden_states: torch.Tensor, labels: torch.Tensor | None, count: int | torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Logits of hidden states (..., d), and their loss at `labels` (...,), which belong to the same positions.

        The summed loss is divided by `count`, by default the number of labels. It is None without labels, or if
        `self.loss_function` must compute it. In training, an adaptive softmax gives a loss without logits.
        """
        if self.dense is not None:
            hidden_states = torch.tanh(linear(self.dense, hidden_states))
        head = cast(Any, self).get_output_embeddings()
        if labels is None or not self._has_plain_loss(head):
            return linear(head, hidden_states), None
        rows = hidden_states.flatten(0, -2)
        logits: torch.Tensor | None
        if isinstance(head, MegaAdaptiveSoftmax):
            total = head.loss(rows, labels.flatten())
            logits = None if head.training else head(hidden_states)
        else:
            total, logits = linear_cross_entropy(rows, head.weight, head.bias, labels.flatten())
            logits = logits.unflatten(0, labels.shape)
        if count is None:
            count = (labels != -100).sum()
        return logits, total / (count.to(total.device) if torch.is_tensor(count) else count)

    def _has_plain_loss(self, head: nn.Module) -> bool:
        """Whether head and loss are the original ones, so that both can be computed together."""
        if not (is_plain(head) or (type(head) is MegaAdaptiveSoftmax and is_unhooked(head))):
            return False
        return cast(Any, self).loss_function in (LOSS_MAPPING["ForMaskedLM"], LOSS_MAPPING["ForCausalLM"])
