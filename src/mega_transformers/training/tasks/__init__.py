"""The tasks, one module each. `task_of` gives the task of a recipe."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from ..recipe import Recipe
from .base import Task

_CLASSES = {
    "masked-lm": "language_models.MaskedLM",
    "causal-lm": "language_models.CausalLM",
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
        RecipeError: see the task.
    """
    return class_of(recipe)(recipe, data_dir)


__all__ = ["Task", "class_of", "task_of"]
