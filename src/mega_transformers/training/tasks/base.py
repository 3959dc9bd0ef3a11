"""The base class of tasks, and code that most tasks share."""

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
from ..lra import listops_tokenizer
from ..tokenizer import byte_tokenizer, train_tokenizer
from ..trainer import Epoch, RecipeTrainer


class Task:
    """A recipe's rows, model, scores and text for its card. Methods raise RecipeError for invalid recipes and data.

    Args:
        recipe: The recipe.
        data_dir: Folder of its files.

    Attributes:
        rows: After `prepare`, role -> rows to train or evaluate on.
        notes: After `prepare`, notes about the rows for the user.
        labels: The classes or tags: of the model to evaluate, if set before `prepare`, else of the training rows.
    """

    auto_class: Any
    trainer_class: ClassVar[Any] = RecipeTrainer
    arguments_class: ClassVar[Any] = TrainingArguments
    labels: Sequence[str] = ()
    # metric -> title and format, for tables
    columns: ClassVar[dict[str, tuple[str, str]]] = {}
    # names on the model hub, an example text for the model card, and the call of the pipeline with it
    pipeline_tag: str
    library_name: ClassVar[str] = "transformers"
    example: ClassVar[str] = "A text."
    call: ClassVar[str] = "model({})"
    # whether training rows can be read during the training
    streams: ClassVar[bool] = True
    # for tokenizers: whether a text gets an end token, and its first word a space before it
    text_columns: ClassVar[tuple[str, ...]] = ()
    special_tokens: ClassVar[tuple[str, ...]] = ("cls_token", "sep_token", "pad_token")
    add_eos: ClassVar[bool] = True
    add_prefix_space: ClassVar[bool] = False

    def __init__(self, recipe: Any, data_dir: Path) -> None:
        data.check(recipe, data_dir)
        if not self.streams and any(source.streaming for source in recipe.data):
            raise RecipeError(f"streaming is not for {recipe.task}, which reads all training rows first")
        self.recipe = recipe
        self.data_dir = data_dir
        self.rows: dict[str, data.Rows] = {}
        self.notes: list[str] = []

    def arguments(self) -> dict[str, Any]:
        """The task's defaults for fields of `TrainingArguments`; the recipe's values override them."""
        return {}

    def texts(self) -> Any:
        """The train texts, for a tokenizer; a list holds the words of a text."""
        rows = data.by_role(self.recipe, self.data_dir)["train"]
        texts = (text for batch in rows.iter(1000) for name in self.text_columns for text in batch.get(name, []))
        return (" ".join(text) if isinstance(text, list) else str(text) for text in texts)

    def train_tokenizer(self) -> Any:
        """The recipe's tokenizer, trained on the train texts if needed."""
        wanted, length = self.recipe.tokenizer, self.recipe.sequence_length
        if wanted.kind == "bytes":
            return byte_tokenizer(length, self.add_eos, self.add_prefix_space)
        if wanted.kind == "listops":
            return listops_tokenizer(length)
        if wanted.kind == "symbols":
            raise RecipeError(f"tokenizer.kind='symbols' is for text-to-text, not for {self.recipe.task}")
        return train_tokenizer(self.texts(), wanted.vocab_size, length, self.add_eos, self.add_prefix_space)

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Refuses a tokenizer that does not fit the task."""
        for name in self.special_tokens:
            if getattr(tokenizer, name) is None:
                raise RecipeError(f"the tokenizer has no {name}, which {self.recipe.task} needs")

    def check_model(self, tokenizer: Any) -> None:
        """Refuses fields of `model` that do not fit the task, before `prepare`."""
        self.config(tokenizer)

    def config(self, tokenizer: Any, **decided: Any) -> Any:
        """The model's configuration; before `prepare`, one that only serves to check the fields."""
        ids = {"vocab_size": 512} if tokenizer is None else models.special_ids(tokenizer)
        return models.build_config(self.recipe, **{**ids, **decided})

    def prepare(self, tokenizer: Any) -> None:
        """Makes `rows`."""
        raise NotImplementedError

    def validation_rows(self) -> Any:
        """The rows to evaluate on during the training: `validation_examples` of that role."""
        rows, limit = self.rows.get("validation"), self.recipe.validation_examples
        if rows is None or limit is None or limit >= len(rows):
            return rows
        return rows.shuffle(seed=self.recipe.seed).select(range(limit))

    def evaluated_roles(self) -> list[str]:
        """The roles to evaluate a finished model on."""
        return [role for role in ("validation", "test") if role in self.rows]

    def build_model(self, tokenizer: Any) -> Any:
        """The model to train, after `prepare`."""
        return models.build_model(self.recipe, self.auto_class, self.config(tokenizer))

    def trainer_fields(self, tokenizer: Any, model: Any, epoch: Epoch) -> dict[str, Any]:
        """Arguments of the trainer: collators, metrics."""
        raise NotImplementedError

    def evaluate(self, trainer: Any) -> dict[str, Any]:
        """The results: `scores`, role -> system -> metric -> value, and other values of the task."""
        scores = {}
        for role in self.evaluated_roles():
            found = trainer.evaluate(self.rows[role], metric_key_prefix=role)
            scores[role] = {"model": {key: found[f"{role}_{key}"] for key in self.columns if f"{role}_{key}" in found}}
        return {"scores": scores}

    def save(self, model: Any, tokenizer: Any, folder: Path) -> None:
        """Writes the model for publication, in float32."""
        model.save_pretrained(folder, max_shard_size="1TB")
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)

    def quoted_example(self) -> str:
        """An example text as a Python literal."""
        return json.dumps([*self.recipe.card.examples, self.example][0], ensure_ascii=False)

    def code(self, path: str) -> str:
        """Python code for the model card that uses the model at `path`, a quoted text."""
        return (
            "from transformers import pipeline\n\n"
            f'model = pipeline("{self.pipeline_tag}", model={path})\n'
            f"{self.call.format(self.quoted_example())}"
        )

    def usage(self) -> str:
        """How to use the model, in Markdown."""
        code = self.code(f'"path/to/{self.recipe.name}"')
        return f"```python\nimport mega_transformers  # registers the model with transformers\n{code}\n```"

    def explanation(self, results: dict[str, Any]) -> str:
        """The meaning of the numbers, in Markdown."""
        return ""


def token_sums(logits: Any, labels: torch.Tensor) -> torch.Tensor:
    """For each row, sums over its labels (B, 3): cross entropy in nats, correct predictions, number of labels.

    So the logits need not leave the device, and sums over rows do not depend on the division into batches.

    Args:
        logits: (B, L, V) beside `labels`, or (labels that are not -100, V).
        labels: (B, L); -100 at tokens that are not predicted.
    """
    logits = logits[0] if isinstance(logits, tuple) else logits
    there = labels != -100
    logits = (logits if logits.dim() == 2 else logits[there]).float()
    targets = labels[there]
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    nats = F.cross_entropy(logits, targets, reduction="none")
    found = torch.stack([nats, logits.argmax(-1) == targets, torch.ones_like(targets)], dim=-1).to(wide)
    rows = there.nonzero()[:, 0]
    return torch.zeros(labels.shape[0], 3, dtype=wide, device=logits.device).index_add_(0, rows, found)


def token_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """From `token_sums`: mean cross entropy, its exponential, accuracy, and the number of tokens."""
    nats, right, count = np.asarray(prediction.predictions).sum(axis=0).tolist()
    if not count:
        raise RecipeError("the evaluation rows have no token to predict; give more text")
    mean = nats / count
    return {
        "loss": mean,  # transformers would take the mean of batches
        "cross_entropy": mean,
        "perplexity": safe_exp(mean),
        "accuracy": right / count,
        "tokens": int(count),
    }
