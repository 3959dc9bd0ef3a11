"""The task `token-classification`: a tag for every word of a sentence."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from transformers import DataCollatorForTokenClassification, EvalPrediction

from ...errors import RecipeError
from .. import data
from ..recipe import TokenClassificationRecipe
from ..tokenizer import train_tokenizer
from ..trainer import Epoch
from .base import BaseTask


class TokenClassification(BaseTask):
    """See `tasks.Task`. After `prepare`, `labels` are the tags in the alphabet's order, or the data set's."""

    recipe: TokenClassificationRecipe
    auto_class = "AutoModelForTokenClassification"
    pipeline_tag = "token-classification"
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
        return (" ".join(row["tokens"]) for row in rows)

    def train_tokenizer(self) -> Any:
        wanted = self.recipe.tokenizer
        if wanted is not None and wanted.kind == "bpe" and wanted.vocab_size:
            # a word is encoded as behind a space
            length = self.recipe.sequence_length
            return train_tokenizer(self.texts(), wanted.vocab_size, length, add_prefix_space=True)
        return super().train_tokenizer()

    def check_model(self, tokenizer: Any) -> None:
        self.labels = ["O", "X"]
        super().check_model(tokenizer)

    def config(self, tokenizer: Any, **decided: Any) -> Any:
        names = dict(enumerate(self.labels))
        numbers = {name: index for index, name in names.items()}
        return super().config(tokenizer, num_labels=len(names), id2label=names, label2id=numbers, **decided)

    def prepare(self, tokenizer: Any) -> None:
        rows = data.by_role(self.recipe, self.data_dir)
        feature = rows["train"].features["tags"]
        names = getattr(getattr(feature, "feature", feature), "names", None)
        self.labels = names or sorted({str(tag) for tags in rows["train"]["tags"] for tag in tags})
        numbers = {name: index for index, name in enumerate(self.labels)}
        for role, some in rows.items():
            for number, row in enumerate(some, start=1):
                if len(row["tokens"]) != len(row["tags"]):
                    raise RecipeError(
                        f"data, {role} row {number}: {len(row['tokens'])} tokens, but {len(row['tags'])} tags"
                    )
                wrong = next((tag for tag in row["tags"] if not (names or str(tag) in numbers)), None)
                if wrong is not None:
                    raise RecipeError(f"data, {role} row {number}: the tag {wrong!r} is none of the training rows'")
            arguments = {
                "tokenizer": tokenizer,
                "limit": self.recipe.sequence_length,
                "numbers": None if names else numbers,
            }
            self.rows[role] = some.map(_encoded, batched=True, fn_kwargs=arguments, remove_columns=some.column_names)

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
        if all(name == "O" or name[:2] in ("B-", "I-", "E-", "S-", "U-", "L-") for name in self.labels):
            from seqeval.metrics import precision_recall_fscore_support

            named = [
                [[self.labels[int(tag)] for tag in row[keep]] for row, keep in zip(tags, there)]
                for tags in (wanted, guesses)
            ]
            scores = precision_recall_fscore_support(*named, average="micro", zero_division=0)
            found |= dict(zip(("precision", "recall", "f1"), map(float, scores[:3])))
        return found

    def explanation(self, results: dict[str, Any]) -> str:
        return (
            f"A word's tag is that of its first token. Tags: {', '.join(self.labels)}. F1 of entities is seqeval's: "
            "an entity counts if its tag and both of its ends are right."
        )


def _encoded(batch: dict[str, Any], tokenizer: Any, limit: int, numbers: dict[str, int] | None) -> dict[str, Any]:
    encoded = tokenizer(
        batch["tokens"], is_split_into_words=True, truncation=True, max_length=limit, split_special_tokens=True
    )
    labels = []
    for row, tags in enumerate(batch["tags"]):
        words = encoded.word_ids(row)
        first = [word is not None and word not in words[:place] for place, word in enumerate(words)]
        labels.append(
            [
                (tags[word] if numbers is None else numbers[str(tags[word])]) if is_first else -100
                for word, is_first in zip(words, first)
            ]
        )
    return {"input_ids": encoded["input_ids"], "labels": labels, "length": [len(row) for row in labels]}
