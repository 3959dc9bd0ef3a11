"""The task `sequence-classification`: one or several labels, or a number, for a text, a pair of texts or values."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from transformers import DataCollatorWithPadding, EvalPrediction

from ...errors import RecipeError
from .. import data
from ..recipe import SequenceClassificationRecipe
from ..trainer import Epoch
from .base import BaseTask

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


class SequenceClassification(BaseTask):
    """See `tasks.Task`. After `prepare`, `labels` are the classes in their order and `problem_type` is known."""

    recipe: SequenceClassificationRecipe
    auto_class = "AutoModelForSequenceClassification"
    pipeline_tag = "text-classification"
    special_tokens = ("pad_token",)
    columns: ClassVar[dict[str, tuple[str, str]]] = {
        "accuracy": ("accuracy", ".2%"),
        "f1_macro": ("macro F1", ".2%"),
        "f1_micro": ("micro F1", ".2%"),
        "spearman": ("Spearman's rho", ".3f"),
        "mean_squared_error": ("mean squared error", ".4f"),
        "loss": ("loss", ".4f"),
        "examples": ("examples", ","),
    }

    def texts(self) -> Any:
        rows = data.by_role(self.recipe, self.data_dir)["train"]
        names = [name for name in ("text", "text_pair") if name in rows.column_names]
        return (row[name] for row in rows.select_columns(names) for name in names)

    def check_model(self, tokenizer: Any) -> None:
        self.labels, self.problem_type = ["0", "1"], SINGLE
        super().check_model(tokenizer)

    def config(self, tokenizer: Any, **decided: Any) -> Any:
        if self.recipe.input != "tokens":
            decided |= {"vocab_size": 257, "pad_token_id": 256, "bos_token_id": None, "eos_token_id": None}
        if self.recipe.input == "values":
            decided |= {"input_type": "values"}
        count = 1 if self.problem_type == REGRESSION and not self.labels else len(self.labels)
        names = self.labels or ["value"]
        config = super().config(
            tokenizer,
            num_labels=count,
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
            problem_type=self.problem_type,
            **decided,
        )
        if self.recipe.input == "values" and getattr(config, "input_type", None) != "values":
            raise RecipeError(f"input='values': {config.model_type!r} reads tokens; use input: pixels")
        return config

    def prepare(self, tokenizer: Any) -> None:
        rows = data.by_role(self.recipe, self.data_dir)
        self._find_labels(rows["train"])
        for role, some in rows.items():
            drop = [name for name in some.column_names if name != "labels"]
            some = some.add_column("labels", self._numbers(role, some["label"]))
            if self.recipe.input == "tokens":
                arguments = {"tokenizer": tokenizer, "limit": self.recipe.sequence_length}
                self.rows[role] = some.map(_tokens, batched=True, fn_kwargs=arguments, remove_columns=drop)
                continue
            feature = some.features["values"]
            arguments = {
                "limit": self.recipe.sequence_length,
                "normalize": self.recipe.normalize.model_dump(),
                "grey": "uint8" in str(feature) or type(feature).__name__ == "Image",
                "pixels": self.recipe.input == "pixels",
            }
            self.rows[role] = some.map(_values, fn_kwargs=arguments, remove_columns=drop)

    def _find_labels(self, train: Any) -> None:
        """The problem, and the classes of the training rows: numbers in their order, names in the alphabet's."""
        found = train["label"]
        is_list = isinstance(found[0], (list, tuple))
        values = [value for some in found for value in some] if is_list else list(found)
        fractions = any(isinstance(value, float) and not value.is_integer() for value in values)
        self.problem_type = self.recipe.problem_type or (MULTI if is_list else REGRESSION if fractions else SINGLE)
        feature = train.features["label"]
        # what the hub's data sets call their numbers
        self.names = getattr(getattr(feature, "feature", feature), "names", None)
        if self.problem_type == REGRESSION:
            self.labels = [f"value_{index}" for index in range(len(found[0]))] if is_list else []
            return
        self.labels = self.names or sorted({str(value) for value in values}, key=_in_order)
        if self.problem_type == SINGLE and len(self.labels) < 2:
            raise RecipeError(
                f"data: the training rows have one class only, {self.labels}; there must be at least two"
            )

    def _numbers(self, role: str, column: Any) -> list[Any]:
        """The labels of a column as the model wants them.

        Raises:
            RecipeError: for a label that the training rows do not have, naming the row.
        """
        numbers = {name: index for index, name in enumerate(self.labels)}
        found = []
        for row, value in enumerate(column, start=1):
            several = list(value) if isinstance(value, (list, tuple)) else [value]
            try:
                if self.problem_type == REGRESSION:
                    known: list[Any] = [float(one) for one in several]
                elif self.names:
                    known = [
                        one if isinstance(one, int) and 0 <= one < len(self.names) else numbers[one] for one in several
                    ]
                else:
                    known = [numbers[str(one)] for one in several]
            except (KeyError, TypeError, ValueError):
                some = ", ".join(self.labels[:20]) or "numbers"
                raise RecipeError(
                    f"data, {role} row {row}: the label is {value!r}; training rows have {some}"
                ) from None
            if self.problem_type == MULTI:
                known = [[float(index in known) for index in range(len(numbers))]]
            found.append(known if self.problem_type == REGRESSION and len(known) > 1 else known[0])
        return found

    def trainer_fields(self, tokenizer: Any, model: Any, epoch: Epoch) -> dict[str, Any]:
        collator = (
            DataCollatorWithPadding(tokenizer) if self.recipe.input == "tokens" else ValueCollator(self.problem_type)
        )
        return {"data_collator": collator, "compute_metrics": self._loss_and_metrics}

    def _loss_and_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        # transformers would take the mean of batches
        found, labels = prediction.predictions, torch.as_tensor(prediction.label_ids)
        logits = torch.as_tensor(found[0] if isinstance(found, tuple) else found).double()
        if self.problem_type == SINGLE:
            loss = F.cross_entropy(logits, labels)
        elif self.problem_type == MULTI:
            loss = F.binary_cross_entropy_with_logits(logits, labels.double())
        else:
            loss = F.mse_loss(logits.flatten(), labels.double().flatten())
        return {**self._metrics(prediction), "loss": loss.item()}

    def _metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        from scipy.stats import spearmanr
        from sklearn.metrics import accuracy_score, f1_score, mean_squared_error

        logits = prediction.predictions
        logits = np.asarray(logits[0] if isinstance(logits, tuple) else logits, dtype=np.float64)
        labels = np.asarray(prediction.label_ids)
        size = {"examples": len(labels)}
        if self.problem_type == REGRESSION:
            rho = spearmanr(logits.ravel(), labels.ravel()).statistic
            return {
                "mean_squared_error": mean_squared_error(labels, logits.reshape(labels.shape)),
                "spearman": rho,
                **size,
            }
        guesses = logits > 0 if self.problem_type == MULTI else logits.argmax(-1)
        micro = {"f1_micro": f1_score(labels, guesses, average="micro")} if self.problem_type == MULTI else {}
        return {
            "accuracy": accuracy_score(labels, guesses),
            "f1_macro": f1_score(labels, guesses, average="macro", zero_division=0.0),
            **micro,
            **size,
        }

    def evaluate(self, trainer: Any) -> dict[str, Any]:
        """Scores beside those of the most frequent class of the training rows."""
        results = super().evaluate(trainer)
        if self.problem_type == SINGLE and "train" in self.rows:
            counts = np.bincount(np.asarray(self.rows["train"]["labels"]))
            for role, systems in results["scores"].items():
                labels = np.asarray(self.rows[role]["labels"])
                systems["most frequent class"] = {
                    "accuracy": float((labels == counts.argmax()).mean()),
                    "examples": len(labels),
                }
        return results

    def explanation(self, results: dict[str, Any]) -> str:
        text = f"Inputs are cut to {self.recipe.sequence_length} tokens or values."
        return text + (f" Classes: {', '.join(map(str, self.labels))}." if 0 < len(self.labels) <= 50 else "")


class ValueCollator:
    """Batches of values or pixels, shorter rows padded on the right with 0."""

    def __init__(self, problem_type: str) -> None:
        self.dtype = torch.int64 if problem_type == SINGLE else torch.float32

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Rows -> `input_values` or `input_ids` (B, L), `labels`, and `attention_mask` where lengths differ."""
        name = "input_values" if "input_values" in features[0] else "input_ids"
        rows = [torch.as_tensor(np.asarray(feature[name])) for feature in features]
        lengths = torch.tensor([len(row) for row in rows])
        batch = {
            name: torch.nn.utils.rnn.pad_sequence(
                rows, batch_first=True, padding_value=256 if name == "input_ids" else 0
            )
        }
        if bool((lengths != lengths[0]).any()):
            batch["attention_mask"] = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        batch["labels"] = torch.tensor(np.array([feature["labels"] for feature in features]), dtype=self.dtype)
        return batch


def _in_order(label: str) -> tuple[bool, float, str]:
    """Numbers before names, by their size."""
    try:
        return (False, float(label), label)
    except ValueError:
        return (True, 0.0, label)


def _tokens(batch: dict[str, Any], tokenizer: Any, limit: int) -> dict[str, Any]:
    texts = [batch[name] for name in ("text", "text_pair") if name in batch]
    encoded = tokenizer(
        *texts, truncation=True, max_length=limit, split_special_tokens=True, return_attention_mask=False
    )
    return {**encoded, "length": [len(ids) for ids in encoded["input_ids"]]}


def _values(row: dict[str, Any], limit: int, normalize: dict[str, float], grey: bool, pixels: bool) -> dict[str, Any]:
    """Numbers of an image (grey, row by row), of sound, or given as they are."""
    value = row["values"]
    if hasattr(value, "convert"):
        value = value.convert("L")
    elif isinstance(value, dict) and "array" in value:
        value = value["array"]
    array = np.asarray(value).ravel()
    if array.size > limit:
        raise RecipeError(f"a row has {array.size} values, more than sequence_length={limit}; raise it")
    if pixels:
        return {"input_ids": array.astype(np.int64)}
    array = array / 255 if grey else array
    return {"input_values": ((array - normalize["mean"]) / normalize["std"]).astype(np.float32)}
