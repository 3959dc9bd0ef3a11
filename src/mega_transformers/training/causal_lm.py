"""The task `causal-lm`: model, batches and judgement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import model_config
from .baselines import Trigram
from .blocks import BlockMaterial
from .data import TextSize, text_size
from .recipe import Recipe
from .schema import RecipeError
from .streaming import Reading, score_tokens

PIPELINE_TAG = "text-generation"


def material(recipe: Recipe, data_dir: Path) -> BlockMaterial:
    """Texts in blocks; a prompt has no end, so that it is gone on with."""
    return BlockMaterial(recipe, data_dir, closed_texts=False)


def check_tokenizer(tokenizer: Any) -> None:
    """Refuses a tokenizer without the special tokens of the task."""
    model_config.check_special_tokens(tokenizer, ("cls_token", "sep_token", "pad_token"), "causal-lm")


def build_config(recipe: Recipe, vocab_size: int, special_ids: dict[str, int] | None = None) -> Any:
    """As `model_config.build_config`.

    Raises:
        RecipeError: also for a model that sees the future.
    """
    config = model_config.build_config(recipe, vocab_size, special_ids)
    if not config.is_decoder:
        raise RecipeError(
            "model.is_decoder=False, with which a model sees the words it is to predict; causal-lm needs "
            "model.is_decoder=True and model.bidirectional=False"
        )
    return config


def build_model(recipe: Recipe, tokenizer: Any) -> Any:
    """A new model with random weights."""
    from ..models.mega.modeling_mega import MegaForCausalLM

    return MegaForCausalLM(build_config(recipe, len(tokenizer), model_config.special_ids_of(tokenizer)))


class NextTokenCollator:
    """Blocks with themselves as labels: the model compares the label at t with its prediction at t - 1."""

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Blocks -> `{"input_ids": (B, L), "labels": (B, L), -100 at the first token, which nothing predicts}`."""
        ids = torch.from_numpy(np.stack([feature["input_ids"] for feature in features]))
        labels = ids.clone()
        labels[:, 0] = -100
        return {"input_ids": ids, "labels": labels}


def collator(recipe: Recipe, tokenizer: Any, evaluation: bool) -> NextTokenCollator:
    """What makes batches of blocks."""
    return NextTokenCollator()


def judge(recipe: Recipe, model: Any, tokenizer: Any, material: BlockMaterial) -> dict[str, Any]:
    """Scores of the finished model beside a trigram model's, for validation and test.

    Args:
        recipe: What was trained.
        model: The model.
        tokenizer: Its tokenizer.
        material: Its texts.

    Returns:
        For the results, `scores`: role -> what `evaluate` returns.
    """
    tokens = material.tokens
    never = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.mask_token_id]
    trigram = Trigram(len(tokenizer), [token for token in never if token is not None]).fit(tokens["train"])
    scores = {
        role: evaluate(
            model, tokens[role], text_size(recipe.data, role, material.data_dir), recipe.sequence_length, trigram
        )
        for role in ("validation", "test")
        if len(tokens[role])
    }
    return {"scores": scores}


def evaluate(
    model: Any, tokens: np.ndarray, size: TextSize, window: int, trigram: Trigram | None = None
) -> dict[str, dict[str, float]]:
    """Cross entropy of every token but the first, per token, character and word.

    The first token is the `<s>` that every text starts with. All others count, the `</s>` and `<s>` between documents
    too: the sum is what it costs to tell the documents and where each ends.

    Args:
        model: A causal language model.
        tokens: (tokens,) ids, `<s>` and `</s>` around every document.
        size: Characters and words of the documents.
        window: The text is read in pieces of that many tokens: once so that none of them knows those before, and once
            with the state carried from each to the next.
        trigram: A counting model to judge on the same tokens.

    Returns:
        For "model", "model, state carried" and, if given, "trigram": `TextSize.scores`.
    """
    nats = {
        "model": score_tokens(model, tokens, Reading("chunk", window=window), "Evaluating"),
        "model, state carried": score_tokens(model, tokens, Reading("full", piece=window), "State carried"),
    }
    if trigram is not None:
        nats["trigram"] = trigram.nats(tokens)
    return {name: size.scores(value, len(tokens) - 1) for name, value in nats.items()}
