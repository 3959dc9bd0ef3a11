"""Blocks of ids of running text, and batches of them, for the tasks masked-lm and causal-lm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, IterableDataset, Sequence, Value

from ..errors import RecipeError
from ..evaluation.texts import documents_of, encode_documents
from . import data
from .recipe import LanguageModelRecipe, Masking
from .sources import ROLES
from .trainer import Epoch


def documents(recipe: LanguageModelRecipe, role: str, data_dir: Path) -> list[data.Rows]:
    """The cleaned documents of each source with this role, in a column `text`."""
    found = []
    for source in recipe.data:
        rows = data.by_role(recipe.model_copy(update={"data": [source]}), data_dir, (role,)).get(role)
        if rows is not None:
            arguments = {"clean": list(source.clean), "splitter": source.documents}
            found.append(rows.map(_documents, batched=True, batch_size=16, fn_kwargs=arguments))
    return found


def _documents(batch: dict[str, list[str]], clean: list[str], splitter: str) -> dict[str, list[str]]:
    return {"text": [piece for text in batch["text"] for piece in documents_of(text, clean, splitter)]}


def blocks_of(recipe: LanguageModelRecipe, role: str, tokenizer: Any, data_dir: Path) -> data.Rows | None:
    """Blocks of exactly `sequence_length` tokens, with `<s>` and `</s>` around every document; None if the role is
    empty.

    Rows have `input_ids`, `index` (the number of the block) and, for isolated documents, `position_ids`, which start
    at 0 with every document and at the start of a block. Tokens after the last full block are not used. Texts too
    short for one block raise a RecipeError.
    """
    # datasets would pass each element of a list to a generator of its own
    sources = tuple(
        rows.map(_tokens, batched=True, remove_columns="text", fn_kwargs={"tokenizer": tokenizer})
        for rows in documents(recipe, role, data_dir)
    )
    if not sources:
        return None
    isolated, length = recipe.packing == "isolated", recipe.sequence_length
    ids = Sequence(Value("int32"), length)
    columns = {"index": Value("int64"), "input_ids": ids, **({"position_ids": ids} if isolated else {})}
    kind = IterableDataset if any(isinstance(rows, IterableDataset) for rows in sources) else Dataset
    packed = {"sources": sources, "length": length, "isolated": isolated, "role": role}
    making = {"features": Features(columns), "gen_kwargs": packed}
    blocks = data.guarded(f"the {role} texts", kind.from_generator, _packed, **making)
    return blocks.with_format("numpy") if kind is Dataset else blocks


def _tokens(batch: dict[str, list[str]], tokenizer: Any) -> dict[str, list[list[int]]]:
    start, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    return {"input_ids": [[start, *ids, end] for ids in encode_documents(tokenizer, batch["text"])]}


def _packed(sources: tuple[data.Rows, ...], length: int, isolated: bool, role: str) -> Iterator[dict[str, Any]]:
    left = np.empty((2, 0), dtype=np.int32)
    index = 0
    for rows in sources:
        for batch in rows.iter(1000):
            ids = [np.asarray(row, dtype=np.int32) for row in batch["input_ids"]]
            starts = [np.arange(len(row), dtype=np.int32) == 0 for row in ids]
            line = np.concatenate([left, np.stack([np.concatenate(ids), np.concatenate(starts)])], axis=1)
            full = line.shape[1] // length * length
            for start in range(0, full, length):
                block = {"index": index, "input_ids": line[0, start : start + length]}
                if isolated:
                    block["position_ids"] = positions(line[1, start : start + length])
                yield block
                index += 1
            left = line[:, full:]
    if not index:
        raise RecipeError(f"the {role} texts are shorter than one block of sequence_length={length} tokens")


def positions(starts: np.ndarray) -> np.ndarray:
    """Document starts (tokens,), 1 or 0 -> the distance of each token from the last start or the beginning."""
    place = np.arange(len(starts), dtype=np.int32)
    return place - np.maximum.accumulate(np.where(starts > 0, place, 0)).astype(np.int32)


class NextTokenCollator:
    """Blocks that are their own labels; the first token of a block or of an isolated document is not predicted."""

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Blocks -> `input_ids`, `labels` and, for isolated documents, `position_ids`, each (B, L)."""
        batch = _stacked(features)
        labels = batch["input_ids"].clone()
        labels[:, 0] = -100
        if "position_ids" in batch:
            labels[batch["position_ids"] == 0] = -100
        return {**batch, "labels": labels}


class MaskingCollator:
    """Blocks with some tokens masked, as in BERT.

    The mask of a token depends only on the seed, the epoch, the block's number and the token's place: it is the same
    for any batch size and any number of processes and workers, and after an interruption. transformers' own collator
    draws from a generator, whose state depends on all of these.

    Args:
        tokenizer: The tokenizer.
        masking: The settings of the masks.
        seed: The recipe's seed.
        epoch: The epoch of the training; None for evaluations, whose masks are fixed.
    """

    def __init__(self, tokenizer: Any, masking: Masking, seed: int, epoch: Epoch | None) -> None:
        self.mask_token, self.size = tokenizer.mask_token_id, len(tokenizer)
        self.masking, self.seed, self.epoch = masking, seed, epoch
        self.special = torch.zeros(self.size, dtype=torch.bool)
        self.special[tokenizer.all_special_ids] = True

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """As `NextTokenCollator`; labels are -100 at tokens that are not predicted."""
        batch = _stacked(features)
        masking, ids = self.masking, batch["input_ids"]
        epoch = 0 if self.epoch is None else self.epoch.number
        rows = np.array([int(feature["index"]) for feature in features])
        chosen, how, word = (
            torch.from_numpy(uniform(self.seed, 3 * epoch + stream, rows, ids.shape[1])) for stream in range(3)
        )
        hidden = masking.probability if self.epoch is not None else masking.evaluation_probability
        plain = ~self.special[ids]
        # at least one in every row: a batch without any would have no loss
        least = torch.where(plain, chosen, 2.0).amin(1, keepdim=True)
        predicted = plain & (chosen <= least.clamp(min=hidden))
        labels = torch.where(predicted, ids, -100)
        masked = predicted & (how < masking.mask)
        replaced = predicted & ~masked & (how < masking.mask + masking.random)
        ids = torch.where(masked, self.mask_token, torch.where(replaced, (word * self.size).long(), ids))
        return {**batch, "input_ids": ids, "labels": labels}


def _stacked(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    names = [name for name in ("input_ids", "position_ids") if name in features[0]]
    return {name: torch.from_numpy(np.stack([row[name] for row in features]).astype(np.int64)) for name in names}


def uniform(seed: int, stream: int, rows: np.ndarray, length: int) -> np.ndarray:
    """Numbers in [0, 1) for (rows, length): a hash (splitmix64) of seed, stream, row and place."""

    def mixed(x: np.ndarray) -> np.ndarray:
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))

    step = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        state = mixed(np.array([seed], dtype=np.uint64) + step)
        for number in (np.array([stream]), rows[:, None], np.arange(1, length + 1)):
            state = mixed(state + number.astype(np.uint64) * step)
    return (state >> np.uint64(11)) * 2.0**-53


def prepare(recipe: LanguageModelRecipe, tokenizer: Any, data_dir: Path) -> dict[str, data.Rows]:
    """Role -> its blocks."""
    blocks = {role: blocks_of(recipe, role, tokenizer, data_dir) for role in ROLES}
    return {role: rows for role, rows in blocks.items() if rows is not None}
