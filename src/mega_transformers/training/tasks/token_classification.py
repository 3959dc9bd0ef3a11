"""The task `token-classification`: a tag for every word of a sentence."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from transformers import DataCollatorForTokenClassification, EvalPrediction

from ...errors import RecipeError
from .. import data
from ..recipe import TokenClassificationRecipe
from ..tokenizer import put_space_before_words
from ..trainer import Epoch
from .labels import Batch, LabelledTask, arrays, name_of, shown


class TokenClassification(LabelledTask):
    """See `base.Task`."""

    recipe: TokenClassificationRecipe
    auto_class = "AutoModelForTokenClassification"
    pipeline_tag = "token-classification"
    text_columns = ("tokens",)
    label_column = "tags"
    add_prefix_space = True
    columns: ClassVar[dict[str, tuple[str, str]]] = {
        "accuracy": ("accuracy of words", ".2%"),
        "f1": ("F1 of entities", ".2%"),
        "precision": ("precision", ".2%"),
        "recall": ("recall", ".2%"),
        "f1_macro": ("macro F1 of tags", ".2%"),
        "words": ("words", ","),
    }

    def check_tokenizer(self, tokenizer: Any) -> None:
        super().check_tokenizer(tokenizer)
        put_space_before_words(tokenizer)

    def prepare(self, tokenizer: Any) -> None:
        rows = data.by_role(self.recipe, self.data_dir)
        self.labels = self.labels or self.classes_of(rows["train"])
        for role, some in rows.items():
            arguments = {"tokenizer": tokenizer, "labels": self.labels, "names": self.names_of(some)}
            self.rows[role] = self.mapped(role, some, _encoded, **arguments)

    def trainer_fields(self, tokenizer: Any, model: Any, epoch: Epoch) -> dict[str, Any]:
        return {"data_collator": DataCollatorForTokenClassification(tokenizer), "compute_metrics": self._metrics}

    def _metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        from seqeval import metrics
        from sklearn.metrics import accuracy_score, f1_score

        logits, labels = arrays(prediction)
        there = labels != -100
        guesses, wanted = logits.argmax(-1)[there], labels[there]
        found = {
            "loss": F.cross_entropy(torch.from_numpy(logits[there]), torch.from_numpy(wanted)).item(),
            "accuracy": accuracy_score(wanted, guesses),
            "f1_macro": f1_score(wanted, guesses, average="macro", zero_division=0.0),
            "words": len(wanted),
        }
        if all(name == "O" or name[:2] in ("B-", "I-", "E-", "S-") for name in self.labels):
            named = [
                [[self.labels[tag] for tag in row[words]] for row, words in zip(tags, there)]
                for tags in (labels, logits.argmax(-1))
            ]
            for name in ("precision", "recall", "f1"):
                found[name] = float(getattr(metrics, f"{name}_score")(*named, zero_division=0))
        return found

    def explanation(self, results: dict[str, Any]) -> str:
        return (
            f"A word's tag is that of its first token. Tags: {shown(self.labels)}. F1 of entities is seqeval's: an "
            "entity counts if its tag and both of its ends are right."
        )


def _encoded(
    batch: Batch, indices: list[int], where: str, limit: int, tokenizer: Any, labels: list[str], names: Any
) -> Batch:
    encoded = tokenizer(
        batch["tokens"], is_split_into_words=True, truncation=True, max_length=limit, split_special_tokens=True
    )
    numbers = {name: index for index, name in enumerate(labels)}
    found = []
    for row, (words, tags) in enumerate(zip(batch["tokens"], batch["tags"])):
        place = f"{where} {indices[row] + 1}"
        if len(words) != len(tags):
            raise RecipeError(f"{place}: {len(words)} tokens, but {len(tags)} tags")
        known = [numbers.get(name_of(tag, names)) for tag in tags]
        if None in known:
            raise RecipeError(
                f"{place}: the tag {tags[known.index(None)]!r} is unknown; the known tags are {shown(labels)}"
            )
        # only the first token of a word has its tag
        places = pairwise([None, *encoded.word_ids(row)])
        found.append([-100 if word is None or word == before else known[word] for before, word in places])
    return {
        "input_ids": encoded["input_ids"],
        "labels": found,
        "length": [len(row) for row in found],
        "cut": [bool(one.overflowing) for one in encoded.encodings],
    }
