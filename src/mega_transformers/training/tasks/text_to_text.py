"""The task `text-to-text`: an encoder-decoder learns pairs of a source and a target."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, EvalPrediction, GenerationConfig, Seq2SeqTrainingArguments

from ...errors import RecipeError
from ...evaluation.baselines import nearest_neighbours
from ...evaluation.decoding import DECODING, encode_sources, encode_targets
from ...evaluation.metrics import METRICS, score, signatures
from .. import data
from ..recipe import TextToTextRecipe
from ..tokenizer import symbol_tokenizer, train_pair_tokenizer
from ..trainer import Epoch, RecipeSeq2SeqTrainer
from .base import Task

SHOWN_OUTPUTS = 8


class TextToText(Task):
    """See `base.Task`. `pairs` holds the pairs of each role, `references` the sources of each role with all their
    targets.
    """

    recipe: TextToTextRecipe
    auto_class = "AutoModelForSeq2SeqLM"
    pipeline_tag = "text2text-generation"
    trainer_class = RecipeSeq2SeqTrainer
    arguments_class = Seq2SeqTrainingArguments
    special_tokens = ("bos_token", "eos_token", "pad_token")
    columns: ClassVar[dict[str, tuple[str, str]]] = {
        "bleu": ("BLEU", ".1f"),
        "chrf": ("chrF", ".1f"),
        "exact_match": ("exact match", ".2%"),
        "sequence_error_rate": ("outputs unlike any reference", ".2%"),
        "symbol_error_rate": ("symbol error rate", ".2%"),
        "sources": ("sources", ","),
    }

    def __init__(self, recipe: Any, data_dir: Path) -> None:
        super().__init__(recipe, data_dir)
        self.pairs: dict[str, list[tuple[str, str]]] = {}
        for role, rows in data.by_role(recipe, data_dir, without_leakage=True).items():
            # equal pairs count once
            pairs = dict.fromkeys((normalized(row["source"]), normalized(row["target"])) for row in rows)
            if not all(source and target for source, target in pairs):
                raise RecipeError(f"data: a {role} pair has an empty source or target; remove it")
            self.pairs[role] = list(pairs)
        self.references = {role: references_of(self.pairs.get(role, [])) for role in ("train", "validation", "test")}

    def arguments(self) -> dict[str, Any]:
        fields: dict[str, Any] = {"train_sampling_strategy": "group_by_length"}
        if not self.references["validation"]:
            return fields
        best_by = str(self.recipe.generation.best_by)
        return {
            **fields,
            "predict_with_generate": True,
            "generation_max_length": self.recipe.generation.max_new_tokens + 1,
            "generation_num_beams": 1,
            "metric_for_best_model": f"eval_{best_by}",
            "greater_is_better": METRICS[best_by],
            "load_best_model_at_end": True,
        }

    def train_tokenizer(self) -> Any:
        wanted: Any = self.recipe.tokenizer
        texts, length = [text for pair in self.pairs["train"] for text in pair], self.recipe.sequence_length
        if wanted.kind == "symbols":
            return symbol_tokenizer(texts, length)
        if wanted.kind == "bytes":
            return train_pair_tokenizer([], 260, length)
        return train_pair_tokenizer(texts, wanted.vocab_size, length)

    def check_tokenizer(self, tokenizer: Any) -> None:
        super().check_tokenizer(tokenizer)
        if encode_targets(tokenizer, ["a"])[0][-1:] != [tokenizer.eos_token_id]:
            raise RecipeError(f"the tokenizer puts no {tokenizer.eos_token} after a text, which text-to-text needs")

    def config(self, tokenizer: Any, **decided: Any) -> Any:
        size, end = 512, 2
        if tokenizer is not None:
            size, end = len(tokenizer), tokenizer.eos_token_id
            decided |= {"bos_token_id": tokenizer.bos_token_id}
        # like BART, the decoder starts with the end token; and long outputs are not forced to end
        decided |= {"decoder_start_token_id": end, "eos_token_id": end, "forced_eos_token_id": None}
        return super().config(tokenizer, decoder_vocab_size=size, **decided)

    def prepare(self, tokenizer: Any) -> None:
        limit = self.recipe.sequence_length
        if pairs := self.pairs.get("train"):
            ids = _encoded(tokenizer, pairs)
            short = ids.filter(lambda row: len(row["input_ids"]) <= limit and len(row["labels"]) <= limit)
            if not len(short):
                raise RecipeError(f"every train pair has more than sequence_length={limit} tokens")
            self.rows["train"] = short
        if self.references["validation"]:
            some = list(self.references["validation"].items())[: self.recipe.validation_examples]
            # batches hold rows of similar lengths
            self.shown = sorted(some, key=lambda pair: len(pair[0]))
            self.rows["validation"] = _encoded(tokenizer, [(source, targets[0]) for source, targets in self.shown])

    def validation_rows(self) -> Any:
        # the labels of `shown`, since the metrics rely on that order
        return self.rows.get("validation")

    def trainer_fields(self, tokenizer: Any, model: Any, epoch: Epoch) -> dict[str, Any]:
        def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
            outputs = _decoded(tokenizer, prediction.predictions)
            return score(outputs, [targets for _, targets in self.shown], self.recipe.generation.metrics)

        return {"data_collator": DataCollatorForSeq2Seq(tokenizer, model=model), "compute_metrics": compute_metrics}

    def evaluate(self, trainer: Any) -> dict[str, Any]:
        """Scores of greedy and beam search and of the nearest neighbour; sacrebleu's signatures; and some outputs.

        Sets the model's generation settings to beam search.
        """
        generation, model = self.recipe.generation, trainer.accelerator.unwrap_model(trainer.model)
        # the trainer has set defaults that would contradict the new settings
        model.generation_config = GenerationConfig.from_model_config(model.config)
        scores: dict[str, dict[str, Any]] = {}
        outputs: dict[str, list[str]] = {}
        roles = [role for role in ("validation", "test") if self.references[role]]
        for role in roles:
            sources, wanted = list(self.references[role]), list(self.references[role].values())
            by_system = {}
            for beams in sorted({1, generation.num_beams}):
                outputs[role] = self._outputs(trainer, sources, beams)
                by_system["model, greedy" if beams == 1 else f"model, {beams} beams"] = outputs[role]
            if self.pairs.get("train"):
                train_sources, train_targets = zip(*self.pairs["train"])
                by_system["nearest neighbour"] = nearest_neighbours(train_sources, train_targets, sources)
            scores[role] = {
                name: {**score(made, wanted, generation.metrics), "sources": len(sources)}
                for name, made in by_system.items()
            }
        shown: list[tuple[str, list[str]]] = [(text, []) for text in self.recipe.card.examples]
        made = self._outputs(trainer, self.recipe.card.examples, generation.num_beams) if shown else []
        shown += list(self.references["test"].items())[:SHOWN_OUTPUTS]
        made += outputs.get("test", [])
        model.generation_config.update(**self._arguments(generation.num_beams))
        return {
            "scores": scores,
            "signatures": signatures(generation.metrics, list(self.references[roles[-1]].values())) if roles else {},
            "samples": [
                {"source": text, "output": output, "references": targets}
                for (text, targets), output in zip(shown, made)
            ],
        }

    def _arguments(self, beams: int) -> dict[str, Any]:
        generation = self.recipe.generation
        more = {"length_penalty": generation.length_penalty, "early_stopping": True} if beams > 1 else {}
        return {"max_new_tokens": generation.max_new_tokens, "num_beams": beams, "do_sample": False, **more}

    def _outputs(self, trainer: Any, sources: Sequence[str], beams: int) -> list[str]:
        """The best output for each source, in order."""
        tokenizer = trainer.processing_class
        ids = encode_sources(tokenizer, sources, self.recipe.sequence_length)
        order = np.argsort([len(row) for row in ids], kind="stable")
        # transformers always computes a loss; a label of one token is the cheapest
        labels = [[tokenizer.eos_token_id]] * len(ids)
        rows = Dataset.from_dict({"input_ids": [ids[index] for index in order], "labels": labels})
        metrics, trainer.compute_metrics = trainer.compute_metrics, None
        generate, trainer.args.predict_with_generate = trainer.args.predict_with_generate, True
        try:
            made = _decoded(tokenizer, trainer.predict(rows, **self._arguments(beams)).predictions)
        finally:
            trainer.compute_metrics, trainer.args.predict_with_generate = metrics, generate
        return [made[place] for place in np.argsort(order)]

    def code(self, path: str) -> str:
        small = self.recipe.tokenizer is not None and self.recipe.tokenizer.kind == "symbols"
        return (
            "from transformers import AutoModelForSeq2SeqLM, AutoTokenizer\n\n"
            f"tokenizer = AutoTokenizer.from_pretrained({path})\n"
            f"model = AutoModelForSeq2SeqLM.from_pretrained({path})\n"
            f'inputs = tokenizer({self.quoted_example()}{".lower()" if small else ""}, return_tensors="pt")\n'
            "print(tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True))"
        )

    def usage(self) -> str:
        command = f"mega text2text {self.quoted_example()} --model path/to/{self.recipe.name}"
        return f"```bash\n{command}\n```\n\n{super().usage()}"

    def explanation(self, results: dict[str, Any]) -> str:
        counts = {role: f"{len(some):,}" for role, some in self.references.items()}
        signed = "".join(f" {name} of sacrebleu: `{text}`." for name, text in results.get("signatures", {}).items())
        return (
            f"There are {counts['train']} different sources to train on, {counts['validation']} for validation and "
            f"{counts['test']} for the test (split seed {self.recipe.split.seed}); two that differ only in case, "
            "punctuation or white space are in the same part. All targets of a source are its references. The "
            f"checkpoint is the one with the best {self.recipe.generation.best_by} of greedy outputs for validation "
            'sources. "Nearest neighbour" is the target of the training source with the greatest cosine of tf-idf '
            f"weights of character trigrams.{signed}"
        )


def normalized(text: Any) -> str:
    """Unicode's composed form, stripped, with single spaces for white space."""
    return " ".join(unicodedata.normalize("NFC", str(text)).split())


def references_of(pairs: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """Each different source with all its targets, in the order of hashes, so that the first ones are a fair sample."""
    found: dict[str, list[str]] = {}
    for source, target in pairs:
        found.setdefault(source, []).append(target)
    return {source: found[source] for source in sorted(found, key=data.hash_of)}


def _encoded(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> Dataset:
    sources, targets = zip(*pairs)
    ids = {"input_ids": encode_sources(tokenizer, sources), "labels": encode_targets(tokenizer, targets)}
    lengths = [len(source) + len(target) for source, target in zip(*ids.values())]
    return Dataset.from_dict({**ids, "length": lengths})


def _decoded(tokenizer: Any, ids: Any) -> list[str]:
    ids = np.asarray(ids)
    return tokenizer.batch_decode(np.where(ids < 0, tokenizer.pad_token_id, ids), **DECODING)
