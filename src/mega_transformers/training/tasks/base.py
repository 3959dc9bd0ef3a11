"""What most tasks have in common."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from transformers import EvalPrediction, TrainingArguments

from ...errors import RecipeError
from ...evaluation.texts import safe_exp
from .. import data, models
from ..tokenizer import byte_tokenizer, train_tokenizer
from ..trainer import Epoch, RecipeTrainer


class BaseTask:
    """See `tasks.Task`."""

    auto_class: Any
    pipeline_tag: str
    library_name: ClassVar[str] = "transformers"
    columns: ClassVar[dict[str, tuple[str, str]]] = {}
    trainer_class: ClassVar[Any] = RecipeTrainer
    arguments_class: ClassVar[Any] = TrainingArguments
    special_tokens: ClassVar[tuple[str, ...]] = ("cls_token", "sep_token", "pad_token")
    # whether the tokenizer puts an end after a text
    add_eos: ClassVar[bool] = True
    # whether a word at its start is the same token as after a space
    add_prefix_space: ClassVar[bool] = False
    labels: Sequence[str] = ()
    # whether training rows may be read while training
    streams: ClassVar[bool] = True

    def __init__(self, recipe: Any, data_dir: Path) -> None:
        data.check(recipe, data_dir)
        if not self.streams and any(source.streaming for source in recipe.data):
            raise RecipeError(f"streaming is not for {recipe.task}, which looks at all training rows first")
        self.recipe = recipe
        self.data_dir = data_dir
        self.rows: dict[str, data.Rows] = {}
        self.notes: list[str] = []

    def arguments(self) -> dict[str, Any]:
        return {}

    def texts(self) -> Any:
        """The train texts, for a tokenizer."""
        raise NotImplementedError

    def train_tokenizer(self) -> Any:
        wanted = self.recipe.tokenizer
        if wanted.kind == "bytes":
            return byte_tokenizer(self.recipe.sequence_length, self.add_eos, self.add_prefix_space)
        if wanted.kind == "listops":
            from ..lra import listops_tokenizer

            return listops_tokenizer(self.recipe.sequence_length)
        if wanted.kind == "symbols":
            raise RecipeError(f"tokenizer.kind='symbols' is for text-to-text, not for {self.recipe.task}")
        length = self.recipe.sequence_length
        return train_tokenizer(self.texts(), wanted.vocab_size, length, self.add_eos, self.add_prefix_space)

    def check_tokenizer(self, tokenizer: Any) -> None:
        for name in self.special_tokens:
            if getattr(tokenizer, name) is None:
                raise RecipeError(f"the tokenizer has no {name}, which {self.recipe.task} needs")

    def check_model(self, tokenizer: Any) -> None:
        # the number of a tokenizer's entries or of classes may only be known later; any will do for the other fields
        self.config(tokenizer)

    def config(self, tokenizer: Any, **decided: Any) -> Any:
        """The model's configuration."""
        ids = {"vocab_size": 512} if tokenizer is None else models.special_ids(tokenizer)
        return models.build_config(self.recipe, **{**ids, **decided})

    def validation_rows(self) -> Any:
        rows, limit = self.rows.get("validation"), self.recipe.validation_examples
        if rows is None or limit is None or limit >= len(rows):
            return rows
        return rows.shuffle(seed=self.recipe.seed).select(range(limit))

    def without_cut(self, role: str, rows: Any) -> Any:
        """The rows without their column `cut`, whose sum is noted."""
        cut = sum(rows["cut"][:])
        if cut:
            limit = self.recipe.sequence_length
            self.notes.append(f"{role}: {cut:,} rows are cut to sequence_length={limit} tokens")
        return rows.remove_columns("cut")

    def build_model(self, tokenizer: Any) -> Any:
        return models.build_model(self.recipe, self.auto_class, self.config(tokenizer))

    def trainer_fields(self, tokenizer: Any, model: Any, epoch: Epoch) -> dict[str, Any]:
        raise NotImplementedError

    def evaluate(self, trainer: Any) -> dict[str, Any]:
        scores = {}
        for role in ("validation", "test"):
            if role in self.rows:
                found = trainer.evaluate(self.rows[role], metric_key_prefix=role)
                found = {key.removeprefix(f"{role}_"): value for key, value in found.items()}
                scores[role] = {"model": {key: found[key] for key in self.columns if key in found}}
        return {"scores": scores}

    def save(self, model: Any, tokenizer: Any, folder: Path) -> None:
        model.save_pretrained(folder, max_shard_size="1TB")
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)

    def usage(self) -> str:
        example = self.recipe.card.examples[0] if self.recipe.card.examples else self.example
        call = f"model({json.dumps(example, ensure_ascii=False)})"
        return (
            "```python\n"
            "import mega_transformers  # registers the model with transformers\n"
            "from transformers import pipeline\n\n"
            f'model = pipeline("{self.pipeline_tag}", model="path/to/{self.recipe.name}")\n'
            f"{call}\n"
            "```"
        )

    example = "A text."

    def explanation(self, results: dict[str, Any]) -> str:
        return ""


def token_sums(logits: Any, labels: torch.Tensor) -> torch.Tensor:
    """For each row, over its labels: cross entropy in nats, right first guesses, and their number.

    So whole logits need not leave the device, and sums over rows are exact for any division into batches.

    Args:
        logits: (B, L, V) beside `labels`, or (labels that are not -100, V).
        labels: (B, L); -100 where nothing is predicted.

    Returns:
        (B, 3) float64 (float32 on devices without it).
    """
    logits = logits[0] if isinstance(logits, tuple) else logits
    there = labels != -100
    logits = (logits if logits.dim() == 2 else logits[there]).float()
    targets = labels[there]
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    found = torch.stack(
        [
            F.cross_entropy(logits, targets, reduction="none").to(wide),
            (logits.argmax(-1) == targets).to(wide),
            torch.ones_like(targets, dtype=wide),
        ],
        dim=-1,
    )
    rows = there.nonzero()[:, 0]
    return torch.zeros(labels.shape[0], 3, dtype=wide, device=logits.device).index_add_(0, rows, found)


def token_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Of `token_sums`: mean cross entropy, its exponential, accuracy, and the number of tokens."""
    nats, right, count = np.asarray(prediction.predictions).sum(axis=0).tolist()
    if not count:
        raise RecipeError("the evaluation rows have no token to predict; give more text")
    return {
        # transformers would take the mean of batches
        "loss": nats / count,
        "cross_entropy": nats / count,
        "perplexity": safe_exp(nats / count),
        "accuracy": right / count,
        "tokens": int(count),
    }
