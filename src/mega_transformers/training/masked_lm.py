"""The task `masked-lm`: model, batches and judgement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import DataCollatorForLanguageModeling

from .baselines import NgramBaselines, Score
from .blocks import BlockMaterial
from .data import Blocks
from .model_config import build_config, check_special_tokens, special_ids_of
from .recipe import Masking, Recipe
from .schema import RecipeError

PIPELINE_TAG = "fill-mask"


def material(recipe: Recipe, data_dir: Path) -> BlockMaterial:
    """Texts between `<s>` and `</s>`, in blocks."""
    return BlockMaterial(recipe, data_dir, closed_texts=True)


class MaskingCollator(DataCollatorForLanguageModeling):
    """transformers' masking, each block's drawn from the block's own seed (see `Blocks`)."""

    def __init__(self, tokenizer: Any, masking: Masking, evaluation: bool = False) -> None:
        super().__init__(
            tokenizer=tokenizer,
            mlm_probability=masking.evaluation_probability if evaluation else masking.probability,
            mask_replace_prob=masking.mask,
            random_replace_prob=masking.random,
        )
        self.special = torch.zeros(len(tokenizer), dtype=torch.bool)
        self.special[tokenizer.all_special_ids] = True

    def __call__(self, features: list[dict[str, Any]], return_tensors: str | None = None) -> dict[str, torch.Tensor]:
        """Blocks -> `{"input_ids": (B, L), "labels": (B, L), -100 where nothing is predicted}`."""
        rows = []
        generator = self.generator = torch.Generator()
        for feature in features:
            ids = torch.from_numpy(feature["input_ids"])
            generator.manual_seed(feature["seed"])
            rows.append(self.torch_mask_tokens(ids.unsqueeze(0).clone(), self.special[ids].unsqueeze(0)))
        inputs, labels = zip(*rows)
        return {"input_ids": torch.cat(inputs), "labels": torch.cat(labels)}


def check_tokenizer(tokenizer: Any) -> None:
    """Refuses a tokenizer without the special tokens of the task."""
    check_special_tokens(tokenizer, ("mask_token", "cls_token", "sep_token", "pad_token"), "masked-lm")


def build_model(recipe: Recipe, tokenizer: Any) -> Any:
    """A new model with random weights."""
    from ..models.mega.modeling_mega import MegaForMaskedLM

    return MegaForMaskedLM(build_config(recipe, len(tokenizer), special_ids_of(tokenizer)))


def collator(recipe: Recipe, tokenizer: Any, evaluation: bool) -> MaskingCollator:
    """What makes batches of blocks."""
    return MaskingCollator(tokenizer, _masking_of(recipe), evaluation)


def _masking_of(recipe: Recipe) -> Masking:
    assert recipe.masking is not None  # every recipe of this task has one
    return recipe.masking


def judge(recipe: Recipe, model: Any, tokenizer: Any, material: BlockMaterial) -> dict[str, Any]:
    """Scores of the finished model beside counting models', for validation and test.

    Args:
        recipe: What was trained.
        model: The model.
        tokenizer: Its tokenizer.
        material: Its texts.

    Returns:
        For the results, `scores`: role -> what `evaluate` returns.
    """
    blocks = material.blocks
    baselines = NgramBaselines(len(tokenizer), tokenizer.all_special_ids).fit(blocks["train"].reshape(-1))
    scores = {
        role: evaluate(model, tokenizer, blocks[role], _masking_of(recipe), recipe.seed, baselines)
        for role in ("validation", "test")
        if len(blocks[role])
    }
    return {"scores": scores}


def evaluate(
    model: Any,
    tokenizer: Any,
    blocks: np.ndarray,
    masking: Masking,
    seed: int,
    baselines: NgramBaselines | None = None,
    batch_size: int = 16,
) -> dict[str, dict[str, float]]:
    """Cross entropy (nats), perplexity and accuracy at masked tokens, exact over all of them.

    Args:
        model: A masked language model.
        tokenizer: Its tokenizer.
        blocks: (blocks, length) ids.
        masking: How tokens are masked; `evaluation_probability` counts.
        seed: Seed of the masks, which do not depend on the batch size.
        baselines: Counting models to judge on the same masks.
        batch_size: Blocks at a time.

    Returns:
        For each of "model" and, with baselines, "unigram" and "bigram": their `Score.summary()`.
    """
    from rich.progress import track

    data, collate = Blocks(blocks, seed), MaskingCollator(tokenizer, masking, evaluation=True)
    scores = {"model": Score()}
    was_training = model.training
    model.eval()
    sparse = getattr(model.config, "sparse_prediction", None)
    if sparse is not None:
        model.config.sparse_prediction = True
    try:
        for start in track(range(0, len(data), batch_size), description="Evaluating"):
            batch = collate([data[index] for index in range(start, min(start + batch_size, len(data)))])
            labelled = batch["labels"] != -100
            targets = batch["labels"][labelled]
            if not len(targets):
                continue
            with torch.inference_mode():
                logits = model(**{name: tensor.to(model.device) for name, tensor in batch.items()}).logits
            logits = (logits if logits.dim() == 2 else logits[labelled.to(logits.device)]).float().cpu()
            nats = F.cross_entropy(logits, targets, reduction="sum").item()
            scores["model"].add(nats, int((logits.argmax(dim=-1) == targets).sum()), len(targets))
            if baselines is not None:
                # nothing stands left of a block's first token: the mask token, which was never counted
                left = F.pad(batch["input_ids"], (1, 0), value=tokenizer.mask_token_id)[:, :-1][labelled]
                for name, score in baselines.score(left.numpy(), targets.numpy()).items():
                    scores.setdefault(name, Score()).add(score.nats, score.right, score.count)
    finally:
        model.train(was_training)
        if sparse is not None:
            model.config.sparse_prediction = sparse
    if not scores["model"].count:
        raise RecipeError("the evaluation text gives no masked token; give more text, or a shorter sequence_length")
    return {name: score.summary() for name, score in scores.items()}
