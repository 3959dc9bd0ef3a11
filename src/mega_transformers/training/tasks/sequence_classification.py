"""The task `sequence-classification`: one or several labels, or numbers, for a text, a pair of texts or values."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Audio, Image
from torch.nn.utils.rnn import pad_sequence
from transformers import EvalPrediction

from ... import MegaForSequencePairClassification
from ...errors import RecipeError
from .. import data
from ..lra import wav_samples
from ..recipe import Normalization, SequenceClassificationRecipe
from ..trainer import Epoch
from .labels import Batch, LabelledTask, arrays, name_of, shown

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
TEXTS = ("text", "text_pair")
# the id after those of pixels
PAD_PIXEL = 256


class SequenceClassification(LabelledTask):
    """See `base.Task`. `prepare` sets `labels` (the classes, or the names of numbers) and `problem_type`."""

    recipe: SequenceClassificationRecipe
    auto_class: Any = "AutoModelForSequenceClassification"
    pipeline_tag = "text-classification"
    special_tokens = ("pad_token",)
    text_columns = TEXTS
    label_column = "label"
    problem_type: str = SINGLE
    # whether values are pixels, which are divided by 255
    grey = False
    columns: ClassVar[dict[str, tuple[str, str]]] = {
        "accuracy": ("accuracy", ".2%"),
        "f1_macro": ("macro F1", ".2%"),
        "f1_micro": ("micro F1", ".2%"),
        "spearman": ("Spearman's rho", ".3f"),
        "mean_squared_error": ("mean squared error", ".4f"),
        "loss": ("loss", ".4f"),
        "examples": ("examples", ","),
    }

    def __init__(self, recipe: Any, data_dir: Any) -> None:
        super().__init__(recipe, data_dir)
        if self.apart:
            self.auto_class = MegaForSequencePairClassification
        if self.apart or recipe.input != "tokens":
            self.pipeline_tag = "other"  # transformers has no pipeline for it

    @property
    def apart(self) -> bool:
        """Whether the texts of a pair are read separately."""
        return self.recipe.text_pairs == "apart"

    def config(self, tokenizer: Any, **decided: Any) -> Any:
        values = self.recipe.input == "values"
        if self.recipe.input != "tokens":
            decided |= {"vocab_size": 257, "pad_token_id": PAD_PIXEL, "bos_token_id": None, "eos_token_id": None}
        if values:
            decided |= {"input_type": "values"}
        config = super().config(tokenizer, problem_type=self.problem_type, **decided)
        if values and getattr(config, "input_type", None) != "values":
            raise RecipeError(f"input='values': {config.model_type!r} reads tokens; use input: pixels")
        if self.apart and config.model_type != "mega":
            raise RecipeError(f"text_pairs='apart' is for Mega, not for {config.model_type!r}")
        return config

    def prepare(self, tokenizer: Any) -> None:
        rows, tokens = data.by_role(self.recipe, self.data_dir), self.recipe.input == "tokens"
        for name in TEXTS[: 1 + self.apart] if tokens else ("values",):
            if name not in rows["train"].column_names:
                raise RecipeError(f"data: the rows have no {name}, which input={self.recipe.input!r} needs")
        self._find_labels(rows["train"])
        for role, some in rows.items():
            labels = self._numbers(role, some)
            if tokens:
                made = self.mapped(role, some, _tokens, tokenizer=tokenizer, apart=self.apart)
            else:
                made = self._flat(role, some)
            self.rows[role] = made.add_column("labels", labels).with_format("numpy")

    def _flat(self, role: str, rows: Any) -> Any:
        """Rows of `input_values`, or of `input_ids` for pixels as tokens: flattened row by row, images in grey."""
        feature, pixels = rows.features["values"], self.recipe.input == "pixels"
        self.grey = isinstance(feature, Image) or "uint8" in str(feature)
        if isinstance(feature, Audio):
            rows = rows.cast_column("values", Audio(decode=False))
        elif not isinstance(feature, Image):
            rows = rows.with_format("numpy")
        return self.mapped(role, rows, _values, pixels=pixels, dtype="uint8" if pixels or self.grey else "float32")

    def _find_labels(self, train: Any) -> None:
        """The problem, and the classes of the training rows."""
        found = train["label"][:]
        lists = isinstance(found[0], list)
        values = (value for some in found for value in some) if lists else found
        fractions = any(isinstance(value, float) and not value.is_integer() for value in values)
        self.problem_type = self.recipe.problem_type or (REGRESSION if fractions else MULTI if lists else SINGLE)
        if self.problem_type == REGRESSION:
            names = [f"value_{index}" for index in range(len(found[0]))] if lists else ["value"]
            self.labels = self.labels or names
            return
        self.labels = self.labels or self.classes_of(train)
        if len(self.labels) < 2:
            raise RecipeError(f"data: the training rows have only one class, {self.labels}; give at least two")

    def _numbers(self, role: str, rows: Any) -> list[Any]:
        """The labels of rows in the model's form.

        Raises:
            RecipeError: names the row, for a label that is missing or does not occur in the training rows.
        """
        names, places = self.names_of(rows), {name: index for index, name in enumerate(self.labels)}
        regression, multi = self.problem_type == REGRESSION, self.problem_type == MULTI
        size = len(self.labels) if regression else 1
        found: list[Any] = []
        for row, label in enumerate(rows["label"][:], start=1):
            values = label if isinstance(label, list) else [label]
            try:
                known = [float(value) if regression else places[name_of(value, names)] for value in values]
                if (not multi and len(known) != size) or not np.isfinite(known).all():
                    raise ValueError
            except (KeyError, TypeError, ValueError):
                wanted = f"{'some' if multi else 'one'} of the classes {shown(self.labels)}"
                if regression:
                    wanted = f"{size} finite number{'s' * (size > 1)}"
                raise RecipeError(f"data, {role} row {row}: the label is {label!r}; it must be {wanted}") from None
            if multi:
                known = [float(place in known) for place in places.values()]
            found.append(known if multi or size > 1 else known[0])
        return found

    def trainer_fields(self, tokenizer: Any, model: Any, epoch: Epoch) -> dict[str, Any]:
        padding = PAD_PIXEL if tokenizer is None else tokenizer.pad_token_id
        divisor = 255 if self.grey else 1
        return {
            "data_collator": Collator(padding, self.recipe.normalize, divisor, self.problem_type == SINGLE),
            "compute_metrics": self._metrics,
        }

    def _metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        from scipy.stats import spearmanr
        from sklearn.metrics import accuracy_score, f1_score, mean_squared_error

        # with the loss over all rows; transformers would average over batches
        logits, labels = arrays(prediction)
        if self.problem_type == REGRESSION:
            wanted = labels.reshape(logits.shape)
            error = mean_squared_error(wanted, logits)
            # constant values have no ranks
            rho = np.mean([np.nan_to_num(spearmanr(*columns).statistic) for columns in zip(logits.T, wanted.T)])
            return {"loss": error, "mean_squared_error": error, "spearman": float(rho), "examples": len(labels)}
        multi = self.problem_type == MULTI
        guesses = logits > 0 if multi else logits.argmax(-1)
        loss = F.binary_cross_entropy_with_logits if multi else F.cross_entropy
        found = {
            "loss": loss(torch.tensor(logits), torch.tensor(labels, dtype=torch.double if multi else None)).item(),
            "accuracy": accuracy_score(labels, guesses),
            "examples": len(labels),
        }
        for kind in ("macro", "micro") if multi else ("macro",):
            found[f"f1_{kind}"] = f1_score(labels, guesses, average=kind, zero_division=0.0)
        return found

    def evaluate(self, trainer: Any) -> dict[str, Any]:
        """The model's scores, and those of the most frequent class of the training rows."""
        results = super().evaluate(trainer)
        if self.problem_type == SINGLE:
            most = np.bincount(self.rows["train"]["labels"][:]).argmax()
            for role, systems in results["scores"].items():
                right = np.asarray(self.rows[role]["labels"][:]) == most
                systems["most frequent class"] = {"accuracy": float(right.mean()), "examples": len(right)}
        return results

    def code(self, path: str) -> str:
        if self.pipeline_tag != "other":
            return super().code(path)
        if self.apart:
            return (
                "from mega_transformers import MegaForSequencePairClassification\n"
                "from transformers import AutoTokenizer\n\n"
                f"model = MegaForSequencePairClassification.from_pretrained({path})\n"
                f"tokenizer = AutoTokenizer.from_pretrained({path})\n"
                'first, second = (tokenizer(text, return_tensors="pt") for text in ("A text.", "Another one."))\n'
                'logits = model(**first, pair_input_ids=second["input_ids"]).logits'
            )
        normalize, inputs, kind = self.recipe.normalize, "input_ids=values", "whole numbers from 0 to 255"
        if self.recipe.input == "values":
            scaled, kind = ("values / 255" if self.grey else "values"), "numbers"
            inputs = f"input_values=({scaled} - {normalize.mean:g}) / {normalize.std:g}"
        return (
            "from transformers import AutoModelForSequenceClassification\n\n"
            f"model = AutoModelForSequenceClassification.from_pretrained({path})\n"
            f"logits = model({inputs}).logits  # values: {kind}, (batch, length)"
        )

    def explanation(self, results: dict[str, Any]) -> str:
        cut = f"Texts are cut to {self.recipe.sequence_length} tokens. " if self.recipe.input == "tokens" else ""
        return f"{cut}Labels: {shown(self.labels)}."


@dataclass
class Collator:
    """Rows of ids or values as batches, shorter rows padded on the right."""

    padding: int  # of ids; values get 0
    normalize: Normalization  # for values
    divisor: int  # of values, before that
    single: bool  # whether labels are classes instead of numbers

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Rows -> `input_values` or `input_ids` (B, L), `labels`, and `attention_mask` if lengths differ."""
        labels = torch.as_tensor(np.array([feature["labels"] for feature in features]))
        batch = {"labels": labels.to(torch.int64 if self.single else torch.float32)}
        for name in ("input_ids", "pair_input_ids", "input_values"):
            if name not in features[0]:
                continue
            values = name == "input_values"
            rows = [torch.from_numpy(np.array(one[name], np.float32 if values else np.int64)) for one in features]
            if values:
                rows = [(row / self.divisor - self.normalize.mean) / self.normalize.std for row in rows]
            batch[name] = pad_sequence(rows, batch_first=True, padding_value=0 if values else self.padding)
            if len({len(row) for row in rows}) > 1:
                mask = "pair_attention_mask" if name == "pair_input_ids" else "attention_mask"
                batch[mask] = pad_sequence([torch.ones(len(row), dtype=torch.int64) for row in rows], batch_first=True)
        return batch


def _tokens(batch: Batch, indices: list[int], where: str, limit: int, tokenizer: Any, apart: bool) -> Batch:
    texts = [[str(text) for text in batch[name]] for name in TEXTS if name in batch]
    found: dict[str, Any] = {}
    cut = np.zeros(len(indices), bool)
    for prefix, some in (("", texts[:1]), ("pair_", texts[1:])) if apart else (("", texts),):
        encoded = tokenizer(
            *some, truncation=True, max_length=limit, split_special_tokens=True, return_attention_mask=False
        )
        found |= {f"{prefix}{name}": ids for name, ids in encoded.items()}
        cut |= [bool(one.overflowing) for one in encoded.encodings]
    return {**found, "cut": cut, "length": [len(ids) for ids in found["input_ids"]]}


def _values(batch: Batch, indices: list[int], where: str, limit: int, pixels: bool, dtype: str) -> Batch:
    rows = []
    for index, value in zip(indices, batch["values"]):
        row = f"{where} {index + 1}"
        if hasattr(value, "convert"):
            value = value.convert("L")
        elif isinstance(value, dict):
            value = wav_samples(io.BytesIO(value["bytes"]) if value["bytes"] else value["path"], row)
        try:
            array = np.asarray(value, np.float64).ravel()
        except (TypeError, ValueError):
            raise RecipeError(f"{row}: the values are not all numbers") from None
        if not 0 < array.size <= limit:
            raise RecipeError(f"{row} has {array.size} values; give 1 to sequence_length={limit}")
        if not np.isfinite(array).all():
            raise RecipeError(f"{row}: a value is not finite")
        if pixels and (array != array.round().clip(0, PAD_PIXEL - 1)).any():
            raise RecipeError(f"{row}: input='pixels' needs whole numbers from 0 to 255")
        rows.append(array.astype(dtype))
    return {"input_ids" if pixels else "input_values": rows, "length": [len(row) for row in rows]}
