"""Running texts as blocks of ids: what the tasks masked-lm and causal-lm train and judge on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from . import data
from .recipe import ROLES, Recipe
from .schema import RecipeError
from .tokenizer import train_tokenizer
from .trainer import Setup


class BlockMaterial:
    """The texts of a recipe, cut into blocks of `sequence_length` tokens.

    After `prepare`, `tokens` has each role's texts as one line of ids (tokens,), `blocks` the same as
    (blocks, length), and `train` and `validation` are data sets.

    Args:
        recipe: What to train.
        data_dir: Folder that its files are in.
        closed_texts: Whether the tokenizer puts `<s>` and `</s>` around a text, or `<s>` before it alone.

    Raises:
        RecipeError: for files that are missing.
    """

    # the loss tells enough while training
    compute_metrics = None

    def __init__(self, recipe: Recipe, data_dir: Path, closed_texts: bool) -> None:
        data.find_files(recipe.data, data_dir)
        self.recipe = recipe
        self.data_dir = data_dir
        self.closed_texts = closed_texts

    def setup(self) -> Setup:
        """What to train with."""
        return Setup()

    def train_tokenizer(self, console: Console) -> Any:
        """A byte-level BPE of the train texts."""
        size = self.recipe.tokenizer.vocab_size or 0
        console.print(f"Training a tokenizer of {size:,} entries")
        documents = data.iterate_documents(self.recipe.data, "train", self.data_dir)
        return train_tokenizer(documents, size, self.recipe.sequence_length, self.closed_texts)

    def prepare(self, tokenizer: Any, output_dir: Path, console: Console) -> None:
        """Tokenises all texts, or reads what an earlier run left in `output_dir/tokens`.

        Raises:
            RecipeError: for a role whose texts fill no block.
        """
        recipe, length = self.recipe, self.recipe.sequence_length
        self.tokens = {
            role: data.cached_tokens(
                recipe.data, role, tokenizer, self.data_dir, output_dir / "tokens", f"Tokenising {role}"
            )
            for role in ROLES
        }
        self.blocks: dict[str, np.ndarray] = {role: data.to_blocks(line, length) for role, line in self.tokens.items()}
        for role, array in self.blocks.items():
            console.print(f"{role}: {array.shape[0]:,} blocks of {length} tokens")
            if not len(array) and (role == "train" or any(getattr(source, role) for source in recipe.data)):
                raise RecipeError(f"the {role} texts fill no block of sequence_length={length} tokens")
        self.train = data.Blocks(self.blocks["train"], recipe.seed)
        self.validation = data.Blocks(self.blocks["validation"][: recipe.validation_blocks], recipe.seed)

    def amounts(self, examples: int) -> dict[str, int]:
        """For the results: tokens in so many blocks, and in those there are."""
        length = self.recipe.sequence_length
        return {"tokens_seen": examples * length, "train_tokens": len(self.train) * length}
