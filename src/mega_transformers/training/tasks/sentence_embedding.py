"""The task `sentence-embedding`: texts that mean the same get vectors that are close, by sentence-transformers."""

from __future__ import annotations

import inspect
import tempfile
from pathlib import Path
from typing import Any, ClassVar

from datasets import Features, Value

from ...errors import RecipeError, did_you_mean
from .. import data, models
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


COLUMNS = ("anchor", "positive", "negative", "score")


def _needs_model_only(loss: Any) -> bool:
    some = inspect.signature(loss).parameters.values()
    needed = [one.name for one in some if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    return needed in ([], ["model"])


class SentenceTrainer(RecipeTrainerMixin, SentenceTransformerTrainer):
    """sentence-transformers' trainer with what recipes add."""


class SentenceEmbedding(Task):
    """See `base.Task`."""

    recipe: SentenceEmbeddingRecipe
    auto_class = "AutoModel"
    pipeline_tag = "sentence-similarity"
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
        if self.recipe.loss is not None and self.recipe.loss not in known:
            raise RecipeError(
                f"loss={recipe.loss!r} is unknown; {did_you_mean(recipe.loss, known, 'see its documentation')}"
            )

    def texts(self) -> Any:
        rows = data.by_role(self.recipe, self.data_dir)["train"]
        names = [name for name in COLUMNS[:3] if name in rows.column_names]
        return (str(text) for batch in rows.iter(1000) for name in names for text in batch[name])

    def prepare(self, tokenizer: Any) -> None:
        for role, rows in data.by_role(self.recipe, self.data_dir).items():
            rows = rows.select_columns([name for name in COLUMNS if name in rows.column_names])
            kinds = {name: Value("float32" if name == "score" else "string") for name in rows.column_names}
            try:
                self.rows[role] = rows.cast(Features(kinds))
            except ValueError as error:
                raise RecipeError(f"data, {role}: texts must be texts, and scores numbers: {error}") from None

    def build_model(self, tokenizer: Any) -> Any:
        model = models.build_model(self.recipe, self.auto_class, self.config(tokenizer))
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
        rows = rows.select(range(min(limit or len(rows), len(rows))))
        if "score" in rows.column_names:
            return EmbeddingSimilarityEvaluator(rows["anchor"], rows["positive"], rows["score"], write_csv=False)
        positives = list(dict.fromkeys(rows["positive"]))
        place = {text: str(index) for index, text in enumerate(positives)}
        wanted: dict[str, set[str]] = {}
        for anchor, positive in zip(rows["anchor"], rows["positive"]):
            wanted.setdefault(anchor, set()).add(place[positive])
        queries = {str(index): text for index, text in enumerate(wanted)}
        corpus = {number: text for text, number in place.items()}
        relevant = {number: wanted[text] for number, text in queries.items()}
        return InformationRetrievalEvaluator(queries, corpus, relevant, write_csv=False)

    def evaluate(self, trainer: Any) -> dict[str, Any]:
        """Of each text the rank of its partner among all partners of the role; or the correlation with scores."""
        model = trainer.accelerator.unwrap_model(trainer.model)
        scores = {}
        for role in ("validation", "test"):
            if role in self.rows:
                found = self._evaluator(role, None)(model)
                kept = {key: float(found[key]) for key in self.columns if key in found}
                scores[role] = {"model": {**kept, "examples": len(self.rows[role])}}
        return {"scores": scores}

    def save(self, model: Any, tokenizer: Any, folder: Path) -> None:
        model.save_pretrained(str(folder), create_model_card=False)

    def usage(self) -> str:
        return (
            "```python\n"
            "import mega_transformers  # registers the model with transformers\n"
            "from sentence_transformers import SentenceTransformer\n\n"
            f'model = SentenceTransformer("path/to/{self.recipe.name}")\n'
            'vectors = model.encode(["A text.", "Another text."])\n'
            "print(model.similarity(vectors, vectors))\n"
            "```"
        )
