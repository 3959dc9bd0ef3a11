"""Shared by the tasks with labels: names of labels, and rows of texts that may be cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from transformers import EvalPrediction

from .base import Task

Batch = dict[str, Any]


class LabelledTask(Task):
    """A task whose rows have labels, in `label_column`."""

    streams = False
    label_column: ClassVar[str]

    def config(self, tokenizer: Any, **decided: Any) -> Any:
        names = dict(enumerate(self.labels or ["0", "1"]))
        numbers = {name: index for index, name in names.items()}
        return super().config(tokenizer, id2label=names, label2id=numbers, **decided)

    def names_of(self, rows: Any) -> list[str] | None:
        """A data set's names of numeric labels; None for other labels."""
        feature = rows.features[self.label_column]
        return getattr(getattr(feature, "feature", feature), "names", None)

    def classes_of(self, train: Any) -> list[str]:
        """The data set's names of the labels, else the labels of the rows: numbers in ascending order, then names."""
        labels = train[self.label_column][:]
        values = {one for label in labels for one in (label if isinstance(label, list) else [label])}
        return self.names_of(train) or sorted({name_of(one, None) for one in values} - {""}, key=_numbers_first)

    def mapped(self, role: str, rows: Any, function: Any, **arguments: Any) -> Any:
        """Maps `function` over batches of rows, and notes how many rows are cut (column `cut`).

        It takes a batch, the rows' numbers, `where` (the name of a row in errors), `limit` and `arguments`.
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


def name_of(value: Any, names: list[str] | None) -> str:
    """The name of a label, or an empty string."""
    if names is not None and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value)


def _numbers_first(label: str) -> tuple[bool, float, str]:
    try:
        return False, float(label), label
    except ValueError:
        return True, 0.0, label


def shown(labels: Sequence[str]) -> str:
    """The first labels."""
    return ", ".join(labels[:30]) + ", ..." * (len(labels) > 30)


def arrays(prediction: EvalPrediction) -> tuple[np.ndarray, np.ndarray]:
    """Logits in float64, and labels."""
    logits = prediction.predictions
    return np.asarray(logits[0] if isinstance(logits, tuple) else logits, np.float64), np.asarray(prediction.label_ids)
