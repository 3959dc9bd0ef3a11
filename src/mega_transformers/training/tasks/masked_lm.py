"""The task `masked-lm`: hidden tokens are predicted from both sides."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset

from ...evaluation.baselines import Ngram
from .. import blocks
from ..recipe import MaskedLMRecipe
from ..trainer import Epoch
from .base import Task, token_metrics, token_sums


class LanguageModel(Task):
    """Running text in blocks."""

    recipe: Any

    def arguments(self) -> dict[str, Any]:
        # the collators read a block's number
        return {"remove_unused_columns": False}

    def texts(self) -> Any:
        return (row["text"] for rows in blocks.documents(self.recipe, "train", self.data_dir) for row in rows)

    def prepare(self, tokenizer: Any) -> None:
        self.rows = blocks.prepare(self.recipe, tokenizer, self.data_dir)

    def train_ids(self) -> np.ndarray | None:
        """The ids of all training blocks (tokens,); None where they are streamed."""
        rows = self.rows.get("train")
        return np.concatenate(list(rows["input_ids"])) if isinstance(rows, Dataset) else None


class MaskedLM(LanguageModel):
    """See `base.Task`."""

    recipe: MaskedLMRecipe
    auto_class = "AutoModelForMaskedLM"
    pipeline_tag = "fill-mask"
    special_tokens = ("mask_token", "cls_token", "sep_token", "pad_token")
    example = "The <mask> is open."
    columns: ClassVar[dict[str, tuple[str, str]]] = {
        "cross_entropy": ("cross entropy", ".4f"),
        "perplexity": ("perplexity", ".2f"),
        "accuracy": ("accuracy", ".2%"),
        "tokens": ("tokens", ","),
    }

    def _collator(self, tokenizer: Any, epoch: Epoch | None) -> blocks.MaskingCollator:
        return blocks.MaskingCollator(tokenizer, self.recipe.masking, self.recipe.seed, epoch)

    def trainer_fields(self, tokenizer: Any, model: Any, epoch: Epoch) -> dict[str, Any]:
        return {
            "data_collator": self._collator(tokenizer, epoch),
            "evaluation_collator": self._collator(tokenizer, None),
            "preprocess_logits_for_metrics": token_sums,
            "compute_metrics": token_metrics,
        }

    def evaluate(self, trainer: Any) -> dict[str, Any]:
        """At fixed masks, beside a unigram and a bigram model that read the left neighbour at the same masks."""
        results = super().evaluate(trainer)
        tokenizer = trainer.processing_class
        train = self.train_ids()
        if train is None:
            return results
        ngram = Ngram(train, len(tokenizer), tokenizer.all_special_ids, order=2)
        collate = self._collator(tokenizer, None)
        for role, systems in results["scores"].items():
            left, targets = [], []
            for batch in self.rows[role].iter(256):
                rows = [dict(zip(batch, values)) for values in zip(*batch.values())]
                masked = {name: tensor.numpy() for name, tensor in collate(rows).items()}
                there = masked["labels"] != -100
                # nothing is left of a block's first token: the mask token, which was never counted
                before = np.roll(masked["input_ids"], 1, axis=1)
                before[:, 0] = tokenizer.mask_token_id
                left.append(before[there])
                targets.append(masked["labels"][there])
            known, wanted = np.concatenate(left), np.concatenate(targets)
            for name, columns in (("unigram", (wanted,)), ("bigram", (known, wanted))):
                nats = -np.log(ngram.probability(*columns)).mean().item()
                systems[name] = {"cross_entropy": nats, "perplexity": float(np.exp(nats)), "tokens": len(wanted)}
        return results

    def save(self, model: Any, tokenizer: Any, folder: Path) -> None:
        sparse = getattr(model.config, "sparse_prediction", None)
        if sparse is not None:
            model.config.sparse_prediction = False
        super().save(model, tokenizer, folder)
        if sparse is not None:
            model.config.sparse_prediction = sparse

    def explanation(self, results: dict[str, Any]) -> str:
        masking = self.recipe.masking
        kept = 1 - masking.mask - masking.random
        return (
            f"{masking.evaluation_probability:.0%} of the tokens are predicted (seed {self.recipe.seed}): of these "
            f"{masking.mask:.0%} are replaced by the mask token, {masking.random:.0%} by a random one, {kept:.0%} "
            f"stay. Texts are cut into blocks of {self.recipe.sequence_length} tokens of this model's own tokenizer. "
            "Cross entropies are in nats per predicted token, so they only compare with models of the same tokenizer "
            "and masks. The unigram and the bigram model (Witten-Bell, reading the left neighbour) are counted on the "
            "same training tokens."
        )
