"""The task `sentence-embedding`: texts with the same meaning get similar vectors, with sentence-transformers."""

from __future__ import annotations

import inspect
import tempfile
from pathlib import Path
from typing import Any, ClassVar

from datasets import Features, Value

from ...errors import RecipeError, did_you_mean
from .. import data
from ..recipe import SentenceEmbeddingRecipe
from ..trainer import Epoch, RecipeTrainerMixin
from .base import Task

try:
    from sentence_transformers import (  # type: ignore[attr-defined]
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
        losses,
    )
    from sentence_transformers.models import Pooling, Transformer
except ImportError:
    raise RecipeError(
        "task='sentence-embedding' needs the package sentence-transformers: pip install 'mega-transformers[embed]'"
    ) from None


class SentenceTrainer(RecipeTrainerMixin, SentenceTransformerTrainer):
    """sentence-transformers' trainer with what recipes add."""


class SentenceEmbedding(Task):
    """See `base.Task`."""

    recipe: SentenceEmbeddingRecipe
    auto_class = "AutoModel"
    pipeline_tag = "sentence-similarity"
    text_columns = ("anchor", "positive", "negative")
    library_name = "sentence-transformers"
    trainer_class = SentenceTrainer
    arguments_class = SentenceTransformerTrainingArguments
    columns: ClassVar[dict[str, tuple[str, str]]] = {
        "spearman_cosine": ("Spearman's rho of cosines", ".3f"),
        "cosine_accuracy@1": ("found first", ".2%"),
        "cosine_mrr@10": ("MRR@10", ".3f"),
        "cosine_ndcg@10": ("nDCG@10", ".3f"),
        "examples": ("examples", ","),
    }

    def __init__(self, recipe: Any, data_dir: Path) -> None:
        super().__init__(recipe, data_dir)
        known = [name for name in dir(losses) if name.endswith("Loss") and _needs_model_only(getattr(losses, name))]
        if recipe.loss is not None and recipe.loss not in known:
            hint = did_you_mean(recipe.loss, known, "see its documentation")
            raise RecipeError(f"loss={recipe.loss!r} is unknown; {hint}")

    def prepare(self, tokenizer: Any) -> None:
        for role, rows in data.by_role(self.recipe, self.data_dir).items():
            names = [name for name in (*self.text_columns, "score") if name in rows.column_names]
            kinds = {name: Value("float32" if name == "score" else "string") for name in names}
            try:
                self.rows[role] = rows.select_columns(names).cast(Features(kinds))
            except ValueError as error:
                raise RecipeError(f"data, {role}: text columns must hold texts, and scores numbers: {error}") from None

    def build_model(self, tokenizer: Any) -> Any:
        model = super().build_model(tokenizer)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            transformer = Transformer(folder, max_seq_length=self.recipe.sequence_length)
        pooling = Pooling(model.config.hidden_size, pooling_mode=self.recipe.pooling)
        return SentenceTransformer(modules=[transformer, pooling])

    def trainer_fields(self, tokenizer: Any, model: Any, epoch: Epoch) -> dict[str, Any]:
        scored = "score" in self.rows["train"].column_names
        name = self.recipe.loss or ("CoSENTLoss" if scored else "MultipleNegativesRankingLoss")
        fields = {"loss": getattr(losses, name)(model)}
        if "validation" in self.rows:
            fields["evaluator"] = self._evaluator("validation", self.recipe.validation_examples)
        return fields

    def _evaluator(self, role: str, limit: int | None) -> Any:
        from sentence_transformers.evaluation import EmbeddingSimilarityEvaluator, InformationRetrievalEvaluator

        rows = self.rows[role]
        rows = rows.take(min(limit or len(rows), len(rows)))
        if "score" in rows.column_names:
            return EmbeddingSimilarityEvaluator(rows["anchor"], rows["positive"], rows["score"], write_csv=False)
        # a text is its own key; equal texts count once
        relevant: dict[str, set[str]] = {}
        for anchor, positive in zip(rows["anchor"], rows["positive"]):
            relevant.setdefault(anchor, set()).add(positive)
        queries, corpus = ({text: text for text in texts} for texts in (relevant, rows["positive"]))
        return InformationRetrievalEvaluator(queries, corpus, relevant, write_csv=False)

    def evaluate(self, trainer: Any) -> dict[str, Any]:
        """The rank of each text's partner among all partners of the role, or the correlation with scores."""
        model = trainer.accelerator.unwrap_model(trainer.model)
        scores = {}
        for role in self.evaluated_roles():
            found = self._evaluator(role, None)(model)
            kept = {key: float(found[key]) for key in self.columns if key in found}
            scores[role] = {"model": {**kept, "examples": len(self.rows[role])}}
        return {"scores": scores}

    def save(self, model: Any, tokenizer: Any, folder: Path) -> None:
        model.save_pretrained(str(folder), create_model_card=False)

    def code(self, path: str) -> str:
        return (
            "from sentence_transformers import SentenceTransformer\n\n"
            f"model = SentenceTransformer({path})\n"
            'vectors = model.encode(["A text.", "Another text."])\n'
            "print(model.similarity(vectors, vectors))"
        )


def _needs_model_only(loss: Any) -> bool:
    some = inspect.signature(loss).parameters.values()
    needed = [one.name for one in some if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    return needed in ([], ["model"])
