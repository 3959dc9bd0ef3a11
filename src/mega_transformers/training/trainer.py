"""transformers' trainers with what recipes add: course of the learning rate, decayed weights, fixed evaluations."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Seq2SeqTrainer, Trainer, TrainerState, TrainingArguments

from .pairs import LengthGrouped
from .recipe import Recipe
from .schedule import Clock, learning_rate_factor

# parameters that weight decay would pull towards values without a meaning: scales, offsets, EMA coefficients
NO_DECAY = ("ema_gate.", "qk_weight", "qk_bias", "rel_pos_bias.")


class RecipeTrainer(Trainer):
    """transformers' Trainer with the recipe's course of the learning rate and choice of decayed weights."""

    def __init__(self, *args: Any, recipe: Recipe, clock: Clock, evaluation_collator: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.recipe = recipe
        self.clock = clock
        self.evaluation_collator = evaluation_collator
        # checkpoints hold a tied weight once; the trainer is not to miss the others
        trained: Any = self.model
        trained._keys_to_ignore_on_save = list(trained.all_tied_weights_keys)

    def restore_finished(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is a training's last; if so, the model becomes what that ended with.

        transformers would train another step.
        """
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state.global_step < state.max_steps and self.clock.fraction < 1:
            return False
        self.state = state
        self._load_from_checkpoint(str(checkpoint))
        if self.args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._load_best_model()
        return True

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Batches of the evaluation's own masks, the same every time."""
        training_collator, self.data_collator = self.data_collator, self.evaluation_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training_collator

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """See `learning_rate_factor`."""
        schedule = self.recipe.schedule

        def factor(step: int) -> float:
            progress = max(step / num_training_steps, self.clock.fraction)
            return learning_rate_factor(step, progress, schedule.warmup_steps, schedule.shape)

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)  # type: ignore[arg-type]
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """All matrices but those of `NO_DECAY`: no biases and no norms."""
        return decayed_parameters(model)


def decayed_parameters(model: torch.nn.Module) -> list[str]:
    """Names of the parameters that weight decay applies to."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() >= 2 and not any(pattern in name for pattern in NO_DECAY)
    ]


@dataclass(frozen=True)
class Setup:
    """What a task trains with.

    Args:
        trainer: The class of the trainer.
        arguments: The class of its arguments.
        fields: Fields of the arguments that the task decides; the recipe's `training` goes before them.
        model_fields: Fields that the recipe's `model` decides, which go before its `training`.
    """

    trainer: type[RecipeTrainer] = RecipeTrainer
    arguments: type[TrainingArguments] = TrainingArguments
    fields: dict[str, Any] = field(default_factory=lambda: {"prediction_loss_only": True})
    model_fields: dict[str, Any] = field(default_factory=dict)


class PairTrainer(RecipeTrainer, Seq2SeqTrainer):
    """transformers' Seq2SeqTrainer on `Pairs`: batches of similar lengths, and losses that compare.

    With label smoothing the training loss is the smoothed one; evaluations always give the plain cross entropy.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # the library's own smoother would smooth evaluations too, and keeps several copies of the log-probabilities
        self.label_smoother = None
        # makes the decoder's inputs from the labels
        for collator in (self.data_collator, self.evaluation_collator):
            collator.model = self.model  # type: ignore[union-attr]

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The model's own loss, or with label smoothing the smoothed cross entropy of its logits."""
        smoothing = self.args.label_smoothing_factor
        if not smoothing:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels").flatten()
        outputs = model(**inputs, use_cache=False)
        logits = outputs.logits.float().flatten(0, 1)
        total = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
        loss = total / ((labels != -100).sum() if num_items_in_batch is None else num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """By lengths if the arguments say `group_by_length`."""
        pairs: Any = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(pairs)
        return LengthGrouped(pairs, self.args.train_batch_size, self.args.seed)

    def _get_eval_sampler(self, eval_dataset: Any) -> SequentialSampler:
        """The data set's own order, which is that of the references."""
        return SequentialSampler(eval_dataset)
