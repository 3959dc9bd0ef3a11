"""The task `causal-lm`: every token is predicted from those before it."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import numpy as np
import torch

from ...errors import RecipeError
from ...evaluation.baselines import Ngram
from ...evaluation.reading import Reading
from ...evaluation.streaming import score_tokens
from ...evaluation.texts import TextSize, documents_of, encoded_batches
from .. import blocks, data
from ..recipe import CausalLMRecipe
from ..trainer import Epoch
from .base import token_metrics, token_sums
from .masked_lm import LanguageModel


class CausalLM(LanguageModel):
    """See `base.Task`."""

    recipe: CausalLMRecipe
    auto_class = "AutoModelForCausalLM"
    pipeline_tag = "text-generation"
    # a prompt is continued, so nothing ends it
    add_eos = False
    example = "The door"
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
                "model.is_decoder=False, with which a model sees the tokens it is to predict; causal-lm needs "
                "model.is_decoder=True and model.bidirectional=False"
            )
        return config

    def trainer_fields(self, tokenizer: Any, model: Any, epoch: Epoch) -> dict[str, Any]:
        return {
            "data_collator": blocks.NextTokenCollator(),
            "preprocess_logits_for_metrics": _next_token_sums,
            "compute_metrics": token_metrics,
        }

    def evaluate(self, trainer: Any) -> dict[str, Any]:
        """Cross entropy of every token but the first, per token, character and word, beside a trigram model's.

        The text is read in pieces of `sequence_length` tokens: once so that none of them knows those before, and once
        with the state carried from each to the next. Documents are not isolated: where each ends is told, too.
        """
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        tokenizer = trainer.processing_class
        was_training = model.training
        model.eval()
        window = self.recipe.sequence_length
        train = self.train_ids()
        scores: dict[str, dict[str, Any]] = {}
        for role in ("validation", "test"):
            if role not in self.rows:
                continue
            tokens, size = self._line(role, tokenizer)
            nats = {"model": score_tokens(model, tokens, Reading("chunk", window=window), "Evaluating")}
            if model.config.model_type == "mega":
                carried = Reading("full", piece=window)
                nats["model, state carried"] = score_tokens(model, tokens, carried, "State carried")
            if train is not None:
                never = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.mask_token_id]
                ngram = Ngram(train, len(tokenizer), [token for token in never if token is not None], order=3)
                line = tokens.astype(np.int64)
                first = -np.log(ngram.probability(line[:1], line[1:2])).sum()
                nats["trigram"] = float(first - np.log(ngram.probability(line[:-2], line[1:-1], line[2:])).sum())
            scores[role] = {name: size.scores(value, len(tokens) - 1) for name, value in nats.items()}
        model.train(was_training)
        return {"scores": scores}

    def _line(self, role: str, tokenizer: Any) -> tuple[np.ndarray, TextSize]:
        """The texts of a role as one line of ids (tokens,), `<s>` and `</s>` around every document; and their size."""
        size, line = TextSize(), [np.empty(0, dtype=np.int32)]
        for source in self.recipe.data:
            rows = data.load(source, role, self.data_dir)
            for row in rows or []:
                documents = documents_of(row["text"], source.clean, source.documents)
                size.add(row["text"], documents)
                for batch in encoded_batches(documents, tokenizer):
                    start, end = tokenizer.cls_token_id, tokenizer.sep_token_id
                    line.append(np.array([t for ids in batch for t in (start, *ids, end)], dtype=np.int32))
        return np.concatenate(line), size

    def usage(self) -> str:
        example = json.dumps(self.recipe.card.examples[0] if self.recipe.card.examples else self.example)
        return super().usage().replace(f"model({example})", f"model({example}, max_new_tokens=50, do_sample=True)")

    def explanation(self, results: dict[str, Any]) -> str:
        return (
            "Every token of the texts is predicted, the ends and starts of documents too, but not the very first "
            "start. The sum of these cross entropies is divided by the characters and by the words (separated by "
            f"white space) of the documents. The model reads pieces of {self.recipe.sequence_length} tokens: each "
            "without knowledge of those before, or with its state carried on from each to the next, as `mega "
            "perplexity` does. The trigram model (Witten-Bell, interpolated with bigram and unigram) is counted on "
            "the same training tokens and evaluated on the same ones, without cuts.\n\n"
            "The words are those of cleaned text, in which punctuation belongs to the word before it, so that word "
            'perplexities do not compare with those published for raw WikiText. The column "per raw word" divides the '
            "same sum by the words of the files before cleaning; the text predicted is still the cleaned one."
        )


def _next_token_sums(logits: Any, labels: torch.Tensor) -> torch.Tensor:
    logits = logits[0] if isinstance(logits, tuple) else logits
    return token_sums(logits[:, :-1], labels[:, 1:])
