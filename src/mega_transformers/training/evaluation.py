"""Judging a finished model on files: a masked language model on texts, a sequence-to-sequence model on pairs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from . import data, masked_lm, text_to_text
from .baselines import NgramBaselines
from .cleaning import check_names, documents_of
from .masked_lm import evaluate
from .pair_recipe import Generation
from .pairs import Example, divide, examples_of, read_file
from .reading import read_text
from .recipe import PAIRS_TASK, Masking, Recipe
from .schema import RecipeError
from .streaming import input_limit


def evaluate_files(
    model: Any,
    tokenizer: Any,
    files: list[Path],
    baseline_files: list[Path],
    *,
    clean: list[str],
    documents: str,
    sequence_length: int,
    masking: Masking,
    seed: int,
    batch_size: int,
) -> dict[str, dict[str, float]]:
    """As `masked_lm.evaluate`, for text files.

    Args:
        model: A masked language model.
        tokenizer: Its tokenizer, a fast one.
        files: Texts to judge on.
        baseline_files: Texts to count unigrams and bigrams on; none leaves the baselines out.
        clean: Names of `cleaning.CLEANERS`.
        documents: A name of `cleaning.SPLITTERS`.
        sequence_length: Tokens per block.
        masking: How tokens are masked.
        seed: Seed of the masks.
        batch_size: Blocks at a time.

    Raises:
        RecipeError: for files that cannot be read, unknown names, and a tokenizer without a mask token.
    """
    check_names(clean, documents)
    masked_lm.check_tokenizer(tokenizer)

    def tokens(paths: list[Path], description: str) -> Any:
        texts = (document for path in paths for document in documents_of(read_text(path), clean, documents))
        return data.tokenize(texts, tokenizer, description)

    blocks = data.to_blocks(tokens(files, "Tokenising"), sequence_length)
    if not len(blocks):
        raise RecipeError(f"the text fills no block of {sequence_length} tokens; lower --sequence-length")
    baselines = None
    if baseline_files:
        counted = tokens(baseline_files, "Counting")
        baselines = NgramBaselines(len(tokenizer), tokenizer.all_special_ids).fit(counted)
    return evaluate(model, tokenizer, blocks, masking, seed, baselines, batch_size)


def pairs_of_files(files: list[Path], source: str | int, target: str | int) -> list[Example]:
    """The sources of tsv, csv or jsonl files with all their targets; see `pairs.read_file`.

    Raises:
        RecipeError: for what cannot be read, and if there is no pair.
    """
    examples = examples_of(pair for file in files for pair in read_file(file, source, target))
    if not examples:
        raise RecipeError(f"there is no pair in {', '.join(map(str, files))}")
    return examples


def pairs_of_recipe(recipe: Recipe, data_dir: Path) -> list[Example]:
    """The sources of a recipe's test part with all their targets.

    Raises:
        RecipeError: for a recipe of another task, and if there is no pair in this part.
    """
    if recipe.task != PAIRS_TASK:
        raise RecipeError(f"--recipe is for {PAIRS_TASK}; the recipe's task is {recipe.task}, so give --data")
    assert recipe.split is not None  # every recipe of this task has one
    examples = examples_of(divide(recipe.pairs, recipe.split, data_dir)[0]["test"])
    if not examples:
        raise RecipeError("the recipe leaves no pair for the test; give --data")
    return examples


def evaluate_pairs(
    model: Any,
    tokenizer: Any,
    examples: list[Example],
    recipe: Recipe | None = None,
    metrics: list[str] | None = None,
    num_beams: int | None = None,
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """As `text_to_text.evaluate`, with a recipe's settings; and sacrebleu's descriptions of the metrics.

    Args:
        model: A sequence-to-sequence model.
        tokenizer: Its tokenizer.
        examples: Sources with their references.
        recipe: Its `generation` and `sequence_length` count; for None `Generation()`, and lengths as the model says.
        metrics, num_beams: In place of `generation`'s.

    Raises:
        RecipeError: for unknown metrics, and a tokenizer that cannot be used.
    """
    generation = ((recipe and recipe.generation) or Generation()).changed(metrics, num_beams)
    text_to_text.check_tokenizer(tokenizer)
    if recipe is None and model.generation_config.max_new_tokens is not None:
        generation = replace(generation, max_new_tokens=model.generation_config.max_new_tokens)
    config = model.config
    limit = input_limit(getattr(config, "encoder", config)) if recipe is None else recipe.sequence_length
    scores = text_to_text.evaluate(model, tokenizer, examples, generation, limit)
    return scores, text_to_text.signatures_of(generation.metrics, examples)
