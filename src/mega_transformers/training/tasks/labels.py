"""What the tasks with labels have in common: their names, and rows of texts that may be cut."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
from transformers import EvalPrediction

from .base import Task


class LabelledTask(Task):
    """A task whose `labels` are what the data set calls them, else those of the training rows in order."""

    streams = False
    label_column: ClassVar[str]

    def config(self, tokenizer: Any, **decided: Any) -> Any:
        names = dict(enumerate(self.labels or ["0", "1"]))
        numbers = {name: index for index, name in names.items()}
        return super().config(tokenizer, id2label=names, label2id=numbers, **decided)

    def names_of(self, rows: Any) -> list[str] | None:
        """What a data set calls the numbers that its labels are; None for other labels."""
        feature = rows.features[self.label_column]
        return getattr(getattr(feature, "feature", feature), "names", None)

    def mapped(self, role: str, rows: Any, function: Any, **arguments: Any) -> Any:
        """What `function` makes of batches of rows; how many of them it cuts is noted.

        Args:
            role, rows: The rows.
            function: Takes a batch, the rows' numbers, `where` (what errors call a row), `limit`, and `arguments`.
                Where texts are cut, it tells so in a column `cut`.
            arguments: For it.
        """
        limit = self.recipe.sequence_length
        made = rows.map(
            function,
            batched=True,
            with_indices=True,
            fn_kwargs={"where": f"data, {role} row", "limit": limit, **arguments},
            remove_columns=rows.column_names,
        )
        if "cut" not in made.column_names:
            return made
        if cut := sum(made["cut"][:]):
            self.notes.append(f"{role}: {cut:,} rows are cut to sequence_length={limit} tokens")
        return made.remove_columns("cut")

    def shown_labels(self) -> str:
        """The labels for a model card."""
        return ", ".join(self.labels) if len(self.labels) <= 50 else f"{len(self.labels)} different ones"


def name_of(value: Any, names: list[str] | None) -> str:
    """The name of a label; empty if it is missing."""
    if names is not None and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value)


def in_order(labels: Iterable[str]) -> list[str]:
    """Different labels, but the missing one: numbers by their size, then names in the alphabet's order."""

    def place(label: str) -> tuple[bool, float, str]:
        try:
            return False, float(label), label
        except ValueError:
            return True, 0.0, label

    return sorted({*labels} - {""}, key=place)


def shown(labels: list[str]) -> str:
    """Labels for an error: the first ones."""
    return ", ".join(labels[:20]) + ", ..." * (len(labels) > 20)


def arrays(prediction: EvalPrediction) -> tuple[np.ndarray, np.ndarray]:
    """Logits in float64, and labels."""
    logits = prediction.predictions
    return np.asarray(logits[0] if isinstance(logits, tuple) else logits, np.float64), np.asarray(prediction.label_ids)
