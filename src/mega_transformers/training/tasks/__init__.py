"""What can be trained: one module a task. `task_of` gives the task of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Protocol

from transformers import Trainer, TrainingArguments

from ..data import Rows
from ..recipe import Recipe
from ..trainer import Epoch


class Task(Protocol):
    """What a task does with a recipe; `base.BaseTask` does what most have in common.

    Attributes:
        recipe: What to train.
        rows: After `prepare`, role -> what the model is trained or evaluated on.
        notes: After `prepare`, sentences about them to be shown.
        labels: The classes or tags of a model to evaluate, if given before `prepare`; else those of the training rows.
        pipeline_tag, library_name: Names on the model hub, of the task and of what loads the model.
        columns: Metric -> title and format, for tables.
        trainer_class, arguments_class: transformers', or subclasses.
    """

    recipe: Recipe
    rows: dict[str, Rows]
    notes: list[str]
    labels: Sequence[str]
    pipeline_tag: str
    library_name: ClassVar[str]
    columns: ClassVar[dict[str, tuple[str, str]]]
    trainer_class: ClassVar[type[Trainer]]
    arguments_class: ClassVar[type[TrainingArguments]]

    def __init__(self, recipe: Recipe, data_dir: Path) -> None:
        """Reads what can be checked at once.

        Raises:
            RecipeError: for what cannot work.
        """

    def arguments(self) -> dict[str, Any]:
        """Fields of the `TrainingArguments` that the task decides; the recipe's go before them."""

    def train_tokenizer(self) -> Any:
        """The tokenizer that the recipe describes, from the train texts; None if the task needs none."""

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raises RecipeError for a tokenizer that cannot be used."""

    def check_model(self, tokenizer: Any) -> None:
        """Raises RecipeError for fields of `model` that cannot be used; before `prepare`."""

    def prepare(self, tokenizer: Any) -> None:
        """Makes `rows`."""

    def validation_rows(self) -> Rows | None:
        """The rows to evaluate on while training: `validation_examples` of that role."""

    def build_model(self, tokenizer: Any) -> Any:
        """The model to train, after `prepare`."""

    def trainer_fields(self, tokenizer: Any, model: Any, epoch: Epoch) -> dict[str, Any]:
        """Arguments of the trainer: collators, metrics."""

    def evaluate(self, trainer: Any) -> dict[str, Any]:
        """For the results: `scores`, role -> system -> metric -> value, and what else the task reports."""

    def save(self, model: Any, tokenizer: Any, folder: Path) -> None:
        """Writes what is published, in float32."""

    def usage(self) -> str:
        """How to use the model, in Markdown."""

    def explanation(self, results: dict[str, Any]) -> str:
        """What the numbers mean, in Markdown."""


_CLASSES = {
    "masked-lm": "masked_lm.MaskedLM",
    "causal-lm": "causal_lm.CausalLM",
    "text-to-text": "text_to_text.TextToText",
    "sequence-classification": "sequence_classification.SequenceClassification",
    "token-classification": "token_classification.TokenClassification",
    "sentence-embedding": "sentence_embedding.SentenceEmbedding",
}


def class_of(recipe: Recipe) -> type[Task]:
    """The class of a recipe's task."""
    module, _, name = _CLASSES[recipe.task].partition(".")
    return getattr(import_module(f".{module}", __package__), name)


def task_of(recipe: Recipe, data_dir: Path) -> Task:
    """The recipe's task.

    Raises:
        RecipeError: as the task does.
    """
    return class_of(recipe)(recipe, data_dir)
