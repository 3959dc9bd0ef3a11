"""Judging a finished masked language model on text files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import data
from .baselines import NgramBaselines
from .cleaning import check_names, documents_of
from .masked_lm import check_tokenizer, evaluate
from .recipe import Masking
from .schema import RecipeError
from .tokenizer import load_tokenizer


def evaluate_files(
    model_name: str,
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
    """As `masked_lm.evaluate`, for a saved model and text files.

    Args:
        model_name: Folder or hub name.
        files: Texts to judge on.
        baseline_files: Texts to count unigrams and bigrams on; none leaves the baselines out.
        clean: Names of `cleaning.CLEANERS`.
        documents: A name of `cleaning.SPLITTERS`.
        sequence_length: Tokens per block.
        masking: How tokens are masked.
        seed: Seed of the masks.
        batch_size: Blocks at a time.

    Raises:
        RecipeError: for files that cannot be read, unknown names, and what is no masked language model.
    """
    check_names(clean, documents)
    for file in [*files, *baseline_files]:
        if not file.is_file():
            raise RecipeError(f"there is no file {file}")
    from transformers import AutoModelForMaskedLM

    import mega_transformers  # noqa: F401  (registers the models)

    try:
        model = AutoModelForMaskedLM.from_pretrained(model_name)
    except (OSError, ValueError) as error:
        raise RecipeError(f"no masked language model can be loaded from {model_name}: {error}") from None
    tokenizer = load_tokenizer(model_name)
    check_tokenizer(tokenizer)

    def tokens(paths: list[Path], description: str) -> Any:
        texts = (document for path in paths for document in documents_of(data.read_text(path), clean, documents))
        return data.tokenize(texts, tokenizer, description)

    blocks = data.to_blocks(tokens(files, "Tokenising"), sequence_length)
    if not len(blocks):
        raise RecipeError(f"the text fills no block of {sequence_length} tokens; lower --sequence-length")
    baselines = None
    if baseline_files:
        counted = tokens(baseline_files, "Counting")
        baselines = NgramBaselines(len(tokenizer), tokenizer.all_special_ids).fit(counted)
    return evaluate(model, tokenizer, blocks, masking, seed, baselines, batch_size)
