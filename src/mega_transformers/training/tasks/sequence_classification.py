"""The task `sequence-classification`: one or several labels, or numbers, for a text, a pair of texts or values."""

from __future__ import annotations

import io
import math
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
from .base import BaseTask

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
TEXTS = ("text", "text_pair")
# the id behind those of pixels
PAD_PIXEL = 256


class SequenceClassification(BaseTask):
    """See `tasks.Task`. After `prepare`, `labels` are the classes or the names of numbers, `problem_type` is known."""

    recipe: SequenceClassificationRecipe
    auto_class: Any = "AutoModelForSequenceClassification"
    pipeline_tag = "text-classification"
    special_tokens = ("pad_token",)
    streams = False
    problem_type: str = SINGLE
    # whether values are pixels, to be divided by 255
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
            # what no pipeline of transformers does
            self.pipeline_tag = "other"

    @property
    def apart(self) -> bool:
        """Whether both texts of a pair are read apart."""
        return self.recipe.text_pairs == "apart"

    def texts(self) -> Any:
        rows = data.by_role(self.recipe, self.data_dir)["train"]
        return (str(text) for batch in rows.iter(1000) for name in TEXTS for text in batch.get(name, []))

    def config(self, tokenizer: Any, **decided: Any) -> Any:
        if self.recipe.input != "tokens":
            decided |= {"vocab_size": 257, "pad_token_id": PAD_PIXEL, "bos_token_id": None, "eos_token_id": None}
        if self.recipe.input == "values":
            decided |= {"input_type": "values"}
        # before `prepare` any will do
        names = dict(enumerate(self.labels or ["0", "1"]))
        config = super().config(
            tokenizer,
            id2label=names,
            label2id={name: index for index, name in names.items()},
            problem_type=self.problem_type,
            **decided,
        )
        if self.recipe.input == "values" and getattr(config, "input_type", None) != "values":
            raise RecipeError(f"input='values': {config.model_type!r} reads tokens; use input: pixels")
        if self.apart and config.model_type != "mega":
            raise RecipeError(f"text_pairs='apart' is for Mega, and not for {config.model_type!r}")
        return config

    def prepare(self, tokenizer: Any) -> None:
        rows = data.by_role(self.recipe, self.data_dir)
        wanted = ("text", "text_pair") if self.apart else ("text",) if self.recipe.input == "tokens" else ("values",)
        for name in wanted:
            if name not in rows["train"].column_names:
                raise RecipeError(f"data: the rows have no {name}, which input={self.recipe.input!r} needs")
        self._find_labels(rows["train"])
        for role, some in rows.items():
            labels = self._numbers(role, some)
            limit = self.recipe.sequence_length
            if self.recipe.input == "tokens":
                arguments = {"tokenizer": tokenizer, "limit": limit, "apart": self.apart}
                made = some.map(_tokens, batched=True, fn_kwargs=arguments, remove_columns=some.column_names)
                made = self.without_cut(role, made)
            else:
                made = self._flat(role, some)
            self.rows[role] = made.add_column("labels", labels).with_format("numpy")

    def _flat(self, role: str, rows: Any) -> Any:
        """Rows of `input_values`, or of `input_ids` for pixels as tokens: any shape row by row, images in grey."""
        feature = rows.features["values"]
        self.grey = isinstance(feature, Image) or "uint8" in str(feature)
        if isinstance(feature, Audio):
            rows = rows.cast_column("values", Audio(decode=False))
        elif not isinstance(feature, Image):
            rows = rows.with_format("numpy")
        arguments = {
            "role": role,
            "limit": self.recipe.sequence_length,
            "pixels": self.recipe.input == "pixels",
            "name": "input_ids" if self.recipe.input == "pixels" else "input_values",
            "dtype": "uint8" if self.grey else "int16" if self.recipe.input == "pixels" else "float32",
        }
        return rows.map(
            _values, batched=True, with_indices=True, fn_kwargs=arguments, remove_columns=rows.column_names
        )

    def _find_labels(self, train: Any) -> None:
        """The problem, and the classes of the training rows: numbers in their order, names in the alphabet's."""
        found = train["label"][:]
        lists = isinstance(found[0], list)
        values = [value for some in found for value in some] if lists else found
        fractions = any(isinstance(value, float) and not value.is_integer() for value in values)
        self.problem_type = self.recipe.problem_type or (REGRESSION if fractions else MULTI if lists else SINGLE)
        if self.labels:
            return
        if self.problem_type == REGRESSION:
            self.labels = [f"value_{index}" for index in range(len(found[0]))] if lists else ["value"]
            return
        names = _names(train)
        self.labels = names or sorted({_class(value, names) for value in values} - {""}, key=_in_order)
        if len(self.labels) < 2:
            raise RecipeError(
                f"data: the training rows have one class only, {self.labels}; there must be at least two"
            )

    def _numbers(self, role: str, rows: Any) -> list[Any]:
        """The labels of rows as the model wants them.

        Raises:
            RecipeError: for a label that is missing or that the training rows do not have, naming the row.
        """
        labels, names = self.labels, _names(rows)
        numbers, found = {name: index for index, name in enumerate(labels)}, []
        regression, multi = self.problem_type == REGRESSION, self.problem_type == MULTI
        size = len(labels) if regression else 1
        for row, value in enumerate(rows["label"][:], start=1):
            several = value if isinstance(value, list) else [value]
            try:
                known = [float(one) if regression else numbers[_class(one, names)] for one in several]
                if (not multi and len(known) != size) or not all(map(math.isfinite, known)):
                    raise ValueError
            except (KeyError, TypeError, ValueError):
                shown = ", ".join(labels[:20]) + ", ..." * (len(labels) > 20)
                wanted = f"{size} finite number{'s' * (size > 1)}" if regression else f"of the classes {shown}"
                one = "" if regression or multi else "one "
                raise RecipeError(
                    f"data, {role} row {row}: the label is {value!r}; it must be {one}{wanted}"
                ) from None
            if multi:
                known = [float(index in known) for index in range(len(labels))]
            found.append(known if multi or size > 1 else known[0])
        return found

    def trainer_fields(self, tokenizer: Any, model: Any, epoch: Epoch) -> dict[str, Any]:
        padding = PAD_PIXEL if tokenizer is None else tokenizer.pad_token_id
        divisor = 255 if self.grey else 1
        return {
            "data_collator": Collator(padding, self.recipe.normalize, divisor, self.problem_type == SINGLE),
            "compute_metrics": self._loss_and_metrics,
        }

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
        if self.problem_type == REGRESSION:
            wanted = labels.reshape(logits.shape)
            # a constant has no ranks
            rho = [np.nan_to_num(spearmanr(*columns).statistic) for columns in zip(logits.T, wanted.T)]
            error = mean_squared_error(wanted, logits)
            return {"mean_squared_error": error, "spearman": float(np.mean(rho)), "examples": len(labels)}
        guesses = logits > 0 if self.problem_type == MULTI else logits.argmax(-1)
        kinds = ("macro", "micro") if self.problem_type == MULTI else ("macro",)
        return {
            "accuracy": accuracy_score(labels, guesses),
            **{f"f1_{kind}": f1_score(labels, guesses, average=kind, zero_division=0.0) for kind in kinds},
            "examples": len(labels),
        }

    def evaluate(self, trainer: Any) -> dict[str, Any]:
        """Scores beside those of the most frequent class of the training rows."""
        results = super().evaluate(trainer)
        if self.problem_type == SINGLE:
            most = np.bincount(self.rows["train"]["labels"][:]).argmax()
            for role, systems in results["scores"].items():
                labels = np.asarray(self.rows[role]["labels"][:])
                share = float((labels == most).mean())
                systems["most frequent class"] = {"accuracy": share, "examples": len(labels)}
        return results

    def usage(self) -> str:
        if self.pipeline_tag != "other":
            return super().usage()
        path, normalize = f'"path/to/{self.recipe.name}"', self.recipe.normalize
        code = (
            "import mega_transformers  # registers the model with transformers\n"
            "from transformers import AutoModelForSequenceClassification\n\n"
            f"model = AutoModelForSequenceClassification.from_pretrained({path})\n"
            "# values: a tensor (batch, length)"
        )
        if self.apart:
            code = (
                "from transformers import AutoTokenizer\n"
                "from mega_transformers import MegaForSequencePairClassification\n\n"
                f"model = MegaForSequencePairClassification.from_pretrained({path})\n"
                f"tokenizer = AutoTokenizer.from_pretrained({path})\n"
                'first, second = (tokenizer(text, return_tensors="pt") for text in ("A text.", "Another one."))\n'
                'logits = model(**first, pair_input_ids=second["input_ids"]).logits'
            )
        elif self.recipe.input == "pixels":
            code += " of whole numbers from 0 to 255\nlogits = model(input_ids=values).logits"
        else:
            values = "(values / 255" if self.grey else "(values"
            code += f"\nlogits = model(input_values={values} - {normalize.mean:g}) / {normalize.std:g}).logits"
        return f"```python\n{code}\n```"

    def explanation(self, results: dict[str, Any]) -> str:
        labels = self.labels
        cut = f"Texts are cut to {self.recipe.sequence_length} tokens. " if self.recipe.input == "tokens" else ""
        return cut + (f"Labels: {', '.join(labels)}." if len(labels) <= 50 else f"{len(labels)} labels.")


class Collator:
    """Rows of ids or values as batches, shorter rows padded on the right.

    Args:
        padding: The id of padding; that of values is 0.
        normalize: For values.
        divisor: Of values, before that.
        single: Whether labels are classes, and not numbers.
    """

    def __init__(self, padding: int, normalize: Normalization, divisor: int, single: bool) -> None:
        self.padding, self.normalize, self.divisor = padding, normalize, divisor
        self.dtype = torch.int64 if single else torch.float32

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Rows -> `input_values` or `input_ids` (B, L), `labels`, and `attention_mask` where lengths differ."""
        batch: dict[str, torch.Tensor] = {}
        for name in ("input_ids", "pair_input_ids", "input_values"):
            if name not in features[0]:
                continue
            values = name == "input_values"
            kind = np.float32 if values else np.int64
            rows = [torch.from_numpy(np.array(feature[name], kind)) for feature in features]
            if values:
                rows = [(row / self.divisor - self.normalize.mean) / self.normalize.std for row in rows]
            lengths = torch.tensor([len(row) for row in rows])
            batch[name] = pad_sequence(rows, batch_first=True, padding_value=0 if values else self.padding)
            if bool((lengths != lengths[0]).any()):
                mask = "pair_attention_mask" if name == "pair_input_ids" else "attention_mask"
                batch[mask] = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        labels = np.array([feature["labels"] for feature in features])
        return {**batch, "labels": torch.as_tensor(labels).to(self.dtype)}


def _names(rows: Any) -> list[str] | None:
    """What a data set calls the numbers that its labels are; None for other labels."""
    feature = rows.features["label"]
    return getattr(getattr(feature, "feature", feature), "names", None)


def _class(value: Any, names: list[str] | None) -> str:
    """The name of a label; empty if it is missing."""
    if names is not None and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value)


def _in_order(label: str) -> tuple[bool, float, str]:
    """Numbers before names, by their size."""
    try:
        return (False, float(label), label)
    except ValueError:
        return (True, 0.0, label)


def _tokens(batch: dict[str, Any], tokenizer: Any, limit: int, apart: bool) -> dict[str, Any]:
    texts = [[str(text) for text in batch[name]] for name in TEXTS if name in batch]
    found: dict[str, Any] = {}
    for prefix, some in (("", texts[:1]), ("pair_", texts[1:])) if apart else (("", texts),):
        encoded = tokenizer(
            *some, truncation=True, max_length=limit, split_special_tokens=True, return_attention_mask=False
        )
        found |= {f"{prefix}{name}": ids for name, ids in encoded.items()}
        cut = [bool(one.overflowing) for one in encoded.encodings]
        found["cut"] = [before or now for before, now in zip(found.get("cut", cut), cut)]
    return {**found, "length": [len(ids) for ids in found["input_ids"]]}


def _values(
    batch: dict[str, Any], indices: list[int], role: str, limit: int, pixels: bool, name: str, dtype: str
) -> dict[str, Any]:
    rows = []
    for index, value in zip(indices, batch["values"]):
        where = f"data, {role} row {index + 1}"
        if hasattr(value, "convert"):
            value = value.convert("L")
        elif isinstance(value, dict):
            value = wav_samples(io.BytesIO(value["bytes"]) if value["bytes"] else value["path"], where)
        try:
            array = np.asarray(value, None if dtype == "uint8" else np.float64).ravel()
        except (TypeError, ValueError):
            raise RecipeError(f"{where}: the values are not all numbers") from None
        if not 0 < array.size <= limit:
            raise RecipeError(f"{where} has {array.size} values; there must be 1 to sequence_length={limit}")
        if not np.isfinite(array).all():
            raise RecipeError(f"{where}: a value is not finite")
        if pixels and not (array == np.clip(array.astype(np.int64), 0, PAD_PIXEL - 1)).all():
            raise RecipeError(f"{where}: input='pixels' needs whole numbers from 0 to 255")
        rows.append(array.astype(dtype))
    return {name: rows, "length": [len(row) for row in rows]}
