"""The tasks `masked-lm` and `causal-lm`: the model predicts tokens from both sides, or from earlier tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset

from ...errors import RecipeError
from ...evaluation.baselines import Ngram
from ...evaluation.reading import Reading
from ...evaluation.streaming import score_tokens
from ...evaluation.texts import TextSize, documents_of, encoded_batches
from ...parallel import check_can_be_cut, unparallelize_sequence
from .. import blocks, data
from ..recipe import CausalLMRecipe, MaskedLMRecipe
from ..trainer import Epoch, RecipeSequenceParallelTrainer
from .base import Task, token_metrics, token_sums


class LanguageModel(Task):
    """Running text in blocks."""

    recipe: Any
    trainer_class: ClassVar[Any] = RecipeSequenceParallelTrainer

    def check_model(self, tokenizer: Any) -> None:
        config, size, length = self.config(tokenizer), self.recipe.sequence_parallel, self.recipe.sequence_length
        if size == 1:
            return
        if config.model_type != "mega":
            raise RecipeError(f"sequence_parallel={size} is for mega; model.architecture is {config.model_type!r}")
        try:
            check_can_be_cut(config)
        except ValueError as error:
            raise RecipeError(f"sequence_parallel={size}, but model.{error}") from None
        if (chunks := -(-length // config.chunk_size)) < size:
            raise RecipeError(
                f"sequence_parallel={size}, but a block of sequence_length={length} has {chunks} chunks of "
                f"model.chunk_size={config.chunk_size}, fewer than processes; lower one or raise the other"
            )

    def arguments(self) -> dict[str, Any]:
        # the collators read the block's number
        return {"remove_unused_columns": False}

    def texts(self) -> Any:
        return (row["text"] for rows in blocks.documents(self.recipe, "train", self.data_dir) for row in rows)

    def prepare(self, tokenizer: Any) -> None:
        self.rows = blocks.prepare(self.recipe, tokenizer, self.data_dir)

    def sums(self, of_rows: Any) -> dict[str, Any]:
        """Arguments of the trainer: what evaluations make of logits of whole rows, or of their pieces."""
        if self.recipe.sequence_parallel > 1:
            return {"piece_sums": token_sums}
        return {"preprocess_logits_for_metrics": of_rows}

    def ngram(self, tokenizer: Any, never: list[int | None], order: int) -> Ngram | None:
        """n-gram counts of all training blocks; None for streamed blocks."""
        rows = self.rows.get("train")
        if not isinstance(rows, Dataset):
            return None
        ids = np.concatenate(list(rows["input_ids"]))
        return Ngram(ids, len(tokenizer), [token for token in never if token is not None], order)


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
            **self.sums(token_sums),
            "compute_metrics": token_metrics,
        }

    def evaluate(self, trainer: Any) -> dict[str, Any]:
        """Scores at fixed masks, with those of a unigram and a bigram model at the same masks, which read the left
        neighbour.
        """
        results, tokenizer = super().evaluate(trainer), trainer.processing_class
        ngram, collate = self.ngram(tokenizer, tokenizer.all_special_ids, 2), self._collator(tokenizer, None)
        if ngram is None:
            return results
        for role, systems in results["scores"].items():
            found = []
            for batch in self.rows[role].iter(256):
                masked = collate([dict(zip(batch, values)) for values in zip(*batch.values())])
                labels, ids = masked["labels"].numpy(), masked["input_ids"].numpy()
                # a block's first token has no left neighbour; the mask token stands in, which was never counted
                before = np.roll(ids, 1, axis=1)
                before[:, 0] = tokenizer.mask_token_id
                found.append(np.stack([before, labels])[:, labels != -100])
            left, wanted = np.concatenate(found, axis=1)
            for name, columns in (("unigram", (wanted,)), ("bigram", (left, wanted))):
                nats = -np.log(ngram.probability(*columns)).mean().item()
                systems[name] = {"cross_entropy": nats, "perplexity": float(np.exp(nats)), "tokens": len(wanted)}
        return results

    def save(self, model: Any, tokenizer: Any, folder: Path) -> None:
        # ModernBERT gives only the logits of masked tokens in training
        sparse = getattr(model.config, "sparse_prediction", None)
        if sparse is not None:
            model.config.sparse_prediction = False
        super().save(model, tokenizer, folder)
        if sparse is not None:
            model.config.sparse_prediction = sparse

    def explanation(self, results: dict[str, Any]) -> str:
        masking = self.recipe.masking
        return (
            f"{masking.evaluation_probability:.0%} of the tokens are predicted (seed {self.recipe.seed}): of these "
            f"{masking.mask:.0%} are replaced by the mask token, {masking.random:.0%} by a random one. Blocks have "
            f"{self.recipe.sequence_length} tokens. Cross entropies are in nats per predicted token, and can be "
            "compared only between models with the same tokenizer and masks. The unigram and the bigram model "
            "(Witten-Bell, reading the "
            "left neighbour) are counted on the training tokens."
        )


class CausalLM(LanguageModel):
    """See `base.Task`."""

    recipe: CausalLMRecipe
    auto_class = "AutoModelForCausalLM"
    pipeline_tag = "text-generation"
    # a prompt to continue has no end token
    add_eos = False
    example = "The door"
    call = "model({}, max_new_tokens=50, do_sample=True)"
    columns: ClassVar[dict[str, tuple[str, str]]] = {
        "bits_per_character": ("bits per character", ".4f"),
        "word_perplexity": ("word perplexity", ".2f"),
        "raw_word_perplexity": ("per raw word", ".2f"),
        "cross_entropy": ("nats per token", ".4f"),
        "perplexity": ("token perplexity", ".2f"),
        "tokens": ("tokens", ","),
        "characters": ("characters", ","),
        "words": ("words", ","),
        "raw_words": ("raw words", ","),
    }

    def config(self, tokenizer: Any, **decided: Any) -> Any:
        config = super().config(tokenizer, **decided)
        if config.model_type == "mega" and not config.is_decoder:
            raise RecipeError(
                "model.is_decoder=False would let the model see the tokens that it predicts; causal-lm needs "
                "model.is_decoder=True and model.bidirectional=False"
            )
        return config

    def trainer_fields(self, tokenizer: Any, model: Any, epoch: Epoch) -> dict[str, Any]:
        return {
            "data_collator": blocks.NextTokenCollator(),
            **self.sums(_next_token_sums),
            "compute_metrics": token_metrics,
        }

    def evaluate(self, trainer: Any) -> dict[str, Any]:
        """Cross entropy of every token but the first, per token, character and word, with that of a trigram model.

        The text is read twice in pieces of `sequence_length` tokens: once without context from earlier pieces, and
        once with the state carried on. Documents are not isolated: the model also predicts their ends.
        """
        model = unparallelize_sequence(trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False))
        tokenizer, window = trainer.processing_class, self.recipe.sequence_length
        never = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.mask_token_id]
        ngram = self.ngram(tokenizer, never, 3)
        readings = {"model": Reading("chunk", window=window)}
        # the time of full attention over a whole text grows with the square of its length
        if getattr(model.config, "use_chunking", False):
            readings["model, state carried"] = Reading("full", piece=window)
        was_training = model.training
        model.eval()
        scores: dict[str, dict[str, Any]] = {}
        for role in self.evaluated_roles():
            tokens, size = self._line(role, tokenizer)
            nats = {name: score_tokens(model, tokens, reading, name) for name, reading in readings.items()}
            if ngram is not None:
                # only one token precedes the second token
                second = ngram.probability(tokens[:1], tokens[1:2])
                others = ngram.probability(tokens[:-2], tokens[1:-1], tokens[2:])
                nats["trigram"] = float(-np.log(np.concatenate([second, others])).sum())
            scores[role] = {name: size.scores(value, len(tokens) - 1) for name, value in nats.items()}
        model.train(was_training)
        return {"scores": scores}

    def _line(self, role: str, tokenizer: Any) -> tuple[np.ndarray, TextSize]:
        """The texts of a role as one sequence of ids (tokens,), `<s>` and `</s>` around every document; and their
        size.
        """
        size, line = TextSize(), [np.empty(0, dtype=np.int32)]
        start, end = tokenizer.cls_token_id, tokenizer.sep_token_id
        for source in self.recipe.data:
            for row in data.load(source, role, self.data_dir) or []:
                documents = documents_of(row["text"], source.clean, source.documents)
                size.add(row["text"], documents)
                for batch in encoded_batches(documents, tokenizer):
                    line.append(np.array([t for ids in batch for t in (start, *ids, end)], dtype=np.int32))
        return np.concatenate(line), size

    def explanation(self, results: dict[str, Any]) -> str:
        return (
            "The summed cross entropy of all tokens except the first, including starts and ends of documents, is "
            f"divided by the number of characters or words. The model reads pieces of {self.recipe.sequence_length} "
            "tokens: without context from earlier pieces, or with the state carried on. The trigram model "
            "(Witten-Bell) is counted on "
            "the training tokens. Words are those of the cleaned text, which the model predicts, or of the text "
            "before cleaning; neither perplexity is comparable with those published for raw WikiText."
        )


def _next_token_sums(logits: Any, labels: torch.Tensor) -> torch.Tensor:
    logits = logits[0] if isinstance(logits, tuple) else logits
    return token_sums(logits[:, :-1], labels[:, 1:])
