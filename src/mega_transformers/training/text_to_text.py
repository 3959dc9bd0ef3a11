"""The task `text-to-text`: model, batches and judgement."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from transformers import DataCollatorForSeq2Seq, EvalPrediction, GenerationConfig, Seq2SeqTrainingArguments

from . import model_config, seq2seq_config
from .decoding import DECODING, encode_sources, encode_targets, generate_outputs
from .metrics import score, signature
from .neighbour import Neighbour
from .pair_recipe import METRICS, Generation
from .pairs import Example, Pair, Pairs, divide, examples_of
from .recipe import ROLES, Recipe
from .schema import RecipeError
from .tokenizer import symbol_tokenizer, train_pair_tokenizer
from .trainer import PairTrainer, Setup

PIPELINE_TAG = "text2text-generation"
SHOWN_OUTPUTS = 8


class PairMaterial:
    """The pairs of a recipe by role.

    After `prepare`, `train` and `validation` are data sets of ids, the latter with one pair for each of the first
    `generation.validation_examples` sources of its role.

    Args:
        recipe: What to train.
        data_dir: Folder that its files are in.

    Raises:
        RecipeError: for files that are missing or hold something else than pairs, and for an unusable split.
    """

    def __init__(self, recipe: Recipe, data_dir: Path) -> None:
        assert recipe.split is not None and recipe.generation is not None  # every recipe of this task has them
        self.recipe = recipe
        self.generation: Generation = recipe.generation
        self.pairs, self.left_out = divide(recipe.pairs, recipe.split, data_dir)
        self.examples = {role: examples_of(self.pairs[role]) for role in ROLES}

    def setup(self) -> Setup:
        """Seq2SeqTrainer, which decodes validation sources and keeps the checkpoint that does so best."""
        fields: dict[str, Any] = {"train_sampling_strategy": "group_by_length"}
        if self.pairs["validation"]:
            best_by = self.generation.best_by
            fields |= {
                "predict_with_generate": True,
                "generation_max_length": self.generation.max_new_tokens + 1,
                "generation_num_beams": 1,
                "metric_for_best_model": f"eval_{best_by}",
                "greater_is_better": METRICS[best_by],
                "load_best_model_at_end": True,
            }
        return Setup(
            PairTrainer, Seq2SeqTrainingArguments, fields, model_fields=seq2seq_config.learning_rate_of(self.recipe)
        )

    def train_tokenizer(self, console: Console) -> Any:
        """The recipe's kind of tokenizer, of the train pairs."""
        recipe = self.recipe
        texts = [text for pair in self.pairs["train"] for text in pair]
        if recipe.tokenizer.kind == "symbols":
            return symbol_tokenizer(texts, recipe.sequence_length)
        size = recipe.tokenizer.vocab_size or 0
        console.print(f"Training a tokenizer of {size:,} entries")
        return train_pair_tokenizer(texts, size, recipe.sequence_length)

    def prepare(self, tokenizer: Any, output_dir: Path, console: Console) -> None:
        """Makes the data sets.

        Raises:
            RecipeError: if no train pair is within `sequence_length` tokens.
        """
        limit = self.recipe.sequence_length
        for role in ROLES:
            console.print(f"{role}: {len(self.pairs[role]):,} pairs of {len(self.examples[role]):,} different sources")
        if self.left_out:
            console.print(f"left out: {self.left_out:,} pairs with a source of another role")
        with console.status("Tokenising"):
            sources, targets = self._encoded(tokenizer, self.pairs["train"])
        short = [
            index for index in range(len(sources)) if len(sources[index]) <= limit and len(targets[index]) <= limit
        ]
        if len(short) < len(sources):
            console.print(f"left out: {len(sources) - len(short):,} train pairs of more than {limit} tokens")
        if not short:
            raise RecipeError(f"every train pair has more than sequence_length={limit} tokens")
        self.train = Pairs([sources[index] for index in short], [targets[index] for index in short])

        self.tokenizer = tokenizer
        examples = self.examples["validation"][: self.generation.validation_examples]
        self.judged = sorted(examples, key=lambda example: len(example.source))
        self.validation = Pairs(
            *self._encoded(tokenizer, [(example.source, example.references[0]) for example in self.judged])
        )

    def _encoded(self, tokenizer: Any, pairs: Sequence[Pair]) -> tuple[list[list[int]], list[list[int]]]:
        if not pairs:
            return [], []
        sources, targets = zip(*pairs)
        return encode_sources(tokenizer, sources), encode_targets(tokenizer, targets)

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Scores of the outputs for `validation`, in its order."""
        ids = np.asarray(prediction.predictions)
        outputs = self.tokenizer.batch_decode(np.where(ids < 0, self.tokenizer.pad_token_id, ids), **DECODING)
        return score(outputs, [example.references for example in self.judged], self.generation.metrics)

    def amounts(self, examples: int) -> dict[str, int]:
        """For the results: pairs seen, and those there are."""
        return {
            "examples_seen": examples,
            "train_examples": len(self.train),
            **{f"{role}_sources": len(self.examples[role]) for role in ROLES},
        }


def material(recipe: Recipe, data_dir: Path) -> PairMaterial:
    """The recipe's pairs."""
    return PairMaterial(recipe, data_dir)


def check_tokenizer(tokenizer: Any) -> None:
    """Refuses a tokenizer without the special tokens of the task, or that puts no end behind a text."""
    model_config.check_special_tokens(tokenizer, ("bos_token", "eos_token", "pad_token"), "text-to-text")
    if encode_targets(tokenizer, ["a"])[0][-1:] != [tokenizer.eos_token_id]:
        raise RecipeError(f"the tokenizer puts no {tokenizer.eos_token} behind a text, which text-to-text needs")


build_config = seq2seq_config.build_config


def build_model(recipe: Recipe, tokenizer: Any) -> Any:
    """A new model with random weights."""
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    return seq2seq_config.build_model(recipe, build_config(recipe, len(tokenizer), special))


def collator(recipe: Recipe, tokenizer: Any, evaluation: bool) -> DataCollatorForSeq2Seq:
    """What makes batches of pairs."""
    return DataCollatorForSeq2Seq(tokenizer)


def judge(recipe: Recipe, model: Any, tokenizer: Any, material: PairMaterial) -> dict[str, Any]:
    """Scores of the finished model, greedy and with beams, beside the nearest neighbour's, for validation and test.

    The model's generation settings become those with beams.

    Args:
        recipe: What was trained.
        model: The model.
        tokenizer: Its tokenizer.
        material: Its pairs.

    Returns:
        For the results, `scores`: role -> what `evaluate` returns; `signatures`: metric -> sacrebleu's description;
        `samples`: outputs for the card's examples and for the first sources of the test.
    """
    generation, examples = material.generation, material.examples
    # the trainer has filled it with defaults that would stand beside those to come
    model.generation_config = GenerationConfig.from_model_config(model.config)
    neighbour = Neighbour(material.pairs["train"])
    judged = [role for role in ("validation", "test") if examples[role]]
    scores = {
        role: evaluate(model, tokenizer, examples[role], generation, recipe.sequence_length, neighbour)
        for role in judged
    }
    shown = [Example(text, ()) for text in recipe.card.examples] + examples["test"][:SHOWN_OUTPUTS]
    outputs = _outputs(model, tokenizer, [example.source for example in shown], generation, generation.num_beams)
    model.generation_config.update(**_arguments(generation, generation.num_beams))
    return {
        "scores": scores,
        "signatures": signatures_of(generation.metrics, examples[judged[-1]]) if judged else {},
        "samples": [
            {"source": example.source, "output": output, "references": list(example.references)}
            for example, output in zip(shown, outputs)
        ],
    }


def signatures_of(metrics: Sequence[str], examples: Sequence[Example]) -> dict[str, str]:
    """sacrebleu's descriptions of its metrics among `metrics`."""
    references = [example.references for example in examples]
    found = {name: signature(name, references) for name in metrics}
    return {name: text for name, text in found.items() if text is not None}


def _outputs(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    generation: Generation,
    num_beams: int,
    limit: int | None = None,
    description: str = "Outputs",
) -> list[str]:
    """The best output for each text, in their order, of a model in evaluation mode. Shows a progress bar."""
    from rich.progress import track

    sources = encode_sources(tokenizer, texts, limit)
    outputs = [""] * len(texts)
    was_training = model.training
    model.eval()
    try:
        made = generate_outputs(model, tokenizer, sources, **_arguments(generation, num_beams))
        for index, best in track(made, total=len(texts), description=description):
            outputs[index] = best[0]
    finally:
        model.train(was_training)
    return outputs


def _arguments(generation: Generation, num_beams: int) -> dict[str, Any]:
    beams = {"length_penalty": generation.length_penalty, "early_stopping": True} if num_beams > 1 else {}
    return {"max_new_tokens": generation.max_new_tokens, "num_beams": num_beams, "do_sample": False, **beams}


def evaluate(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    generation: Generation,
    limit: int | None = None,
    neighbour: Neighbour | None = None,
) -> dict[str, dict[str, float]]:
    """Scores of a model's outputs.

    Args:
        model: A sequence-to-sequence model.
        tokenizer: Its tokenizer.
        examples: Sources with their references.
        generation: How outputs are made and judged.
        limit: Longer sources are cut to so many tokens; None for no limit.
        neighbour: A baseline to judge on the same sources.

    Returns:
        For "model, greedy", "model, N beams" if N > 1, and with a baseline "nearest neighbour": the metrics and
        `sources`, the number of examples.
    """
    from rich.progress import track

    texts = [example.source for example in examples]
    outputs = {}
    for num_beams in sorted({1, generation.num_beams}):
        name = "model, greedy" if num_beams == 1 else f"model, {num_beams} beams"
        outputs[name] = _outputs(model, tokenizer, texts, generation, num_beams, limit, name)
    if neighbour is not None:
        outputs["nearest neighbour"] = [neighbour(text) for text in track(texts, description="Nearest neighbours")]
    references = [example.references for example in examples]
    return {
        name: {**score(some, references, generation.metrics), "sources": len(examples)}
        for name, some in outputs.items()
    }
