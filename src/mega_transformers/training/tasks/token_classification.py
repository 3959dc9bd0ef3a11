"""The task `token-classification`: a tag for every word of a sentence."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from transformers import DataCollatorForTokenClassification, EvalPrediction

from ...errors import RecipeError
from .. import data
from ..recipe import TokenClassificationRecipe
from ..trainer import Epoch
from .base import BaseTask


class TokenClassification(BaseTask):
    """See `tasks.Task`. After `prepare`, `labels` are the tags in the alphabet's order, or the data set's."""

    recipe: TokenClassificationRecipe
    auto_class = "AutoModelForTokenClassification"
    pipeline_tag = "token-classification"
    streams = False
    add_prefix_space = True
    columns: ClassVar[dict[str, tuple[str, str]]] = {
        "accuracy": ("accuracy of words", ".2%"),
        "f1": ("F1 of entities", ".2%"),
        "precision": ("precision", ".2%"),
        "recall": ("recall", ".2%"),
        "f1_macro": ("macro F1 of tags", ".2%"),
        "words": ("words", ","),
    }

    def texts(self) -> Any:
        rows = data.by_role(self.recipe, self.data_dir)["train"]
        return (" ".join(words) for batch in rows.iter(1000) for words in batch["tokens"])

    def check_tokenizer(self, tokenizer: Any) -> None:
        super().check_tokenizer(tokenizer)
        # words come one by one, as if each began a text, but in texts they stand behind spaces
        words = tokenizer.backend_tokenizer.pre_tokenizer
        if hasattr(words, "add_prefix_space"):
            words.add_prefix_space = True
            # both are saved
            tokenizer.add_prefix_space = tokenizer.init_kwargs["add_prefix_space"] = True

    def config(self, tokenizer: Any, **decided: Any) -> Any:
        # before `prepare` any will do
        names = dict(enumerate(self.labels or ["O", "X"]))
        numbers = {name: index for index, name in names.items()}
        return super().config(tokenizer, id2label=names, label2id=numbers, **decided)

    def prepare(self, tokenizer: Any) -> None:
        rows = data.by_role(self.recipe, self.data_dir)
        if not self.labels:
            names = _names(rows["train"])
            self.labels = names or sorted(
                {str(tag) for tags in rows["train"]["tags"][:] for tag in tags if tag is not None}
            )
        for role, some in rows.items():
            arguments = {
                "tokenizer": tokenizer,
                "limit": self.recipe.sequence_length,
                "labels": self.labels,
                "names": _names(some),
                "role": role,
            }
            made = some.map(
                _encoded, batched=True, with_indices=True, fn_kwargs=arguments, remove_columns=some.column_names
            )
            self.rows[role] = self.without_cut(role, made)

    def trainer_fields(self, tokenizer: Any, model: Any, epoch: Epoch) -> dict[str, Any]:
        return {"data_collator": DataCollatorForTokenClassification(tokenizer), "compute_metrics": self._metrics}

    def _metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        from sklearn.metrics import accuracy_score, f1_score

        logits = prediction.predictions
        logits = np.asarray(logits[0] if isinstance(logits, tuple) else logits)
        guesses = logits.argmax(-1)
        wanted = np.asarray(prediction.label_ids)
        there = wanted != -100
        found = {
            "loss": F.cross_entropy(torch.from_numpy(logits[there]), torch.from_numpy(wanted[there])).item(),
            "accuracy": accuracy_score(wanted[there], guesses[there]),
            "f1_macro": f1_score(wanted[there], guesses[there], average="macro", zero_division=0.0),
            "words": int(there.sum()),
        }
        if all(name == "O" or name[:2] in ("B-", "I-", "E-", "S-") for name in self.labels):
            from seqeval import metrics

            named = [
                [[self.labels[int(tag)] for tag in row[keep]] for row, keep in zip(tags, there)]
                for tags in (wanted, guesses)
            ]
            for name in ("precision", "recall", "f1"):
                found[name] = float(getattr(metrics, f"{name}_score")(*named, zero_division=0))
        return found

    def explanation(self, results: dict[str, Any]) -> str:
        return (
            f"A word's tag is that of its first token. Tags: {', '.join(self.labels)}. F1 of entities is seqeval's: "
            "an entity counts if its tag and both of its ends are right."
        )


def _names(rows: Any) -> list[str] | None:
    """What a data set calls the numbers that its tags are; None for other tags."""
    return getattr(getattr(rows.features["tags"], "feature", None), "names", None)


def _encoded(
    batch: dict[str, Any],
    indices: list[int],
    tokenizer: Any,
    limit: int,
    labels: list[str],
    names: list[str] | None,
    role: str,
) -> dict[str, Any]:
    encoded = tokenizer(
        batch["tokens"], is_split_into_words=True, truncation=True, max_length=limit, split_special_tokens=True
    )
    numbers, found = {name: index for index, name in enumerate(labels)}, []
    for row, (words, tags) in enumerate(zip(batch["tokens"], batch["tags"])):
        where = f"data, {role} row {indices[row] + 1}"
        if len(words) != len(tags):
            raise RecipeError(f"{where}: {len(words)} tokens, but {len(tags)} tags")
        named = [names[tag] if names and tag is not None and tag >= 0 else str(tag) for tag in tags]
        unknown = [tag for tag, name in zip(tags, named) if name not in numbers]
        if unknown:
            raise RecipeError(f"{where}: the tag {unknown[0]!r} is unknown; known are {', '.join(labels[:20])}")
        places = [None, *encoded.word_ids(row)]
        found.append(
            [-100 if word is None or word == before else numbers[named[word]] for before, word in pairwise(places)]
        )
    return {
        "input_ids": encoded["input_ids"],
        "labels": found,
        "length": [len(row) for row in found],
        "cut": [bool(one.overflowing) for one in encoded.encodings],
    }
