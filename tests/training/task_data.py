"""Small recipes and rows for the tests of classification, tags and embeddings."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from rich.console import Console

from mega_transformers.assets import RECIPES
from mega_transformers.training.recipe import find_recipe, read_recipe, recipe_of
from mega_transformers.training.run import RunOptions, run

MODEL = {
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "intermediate_size": 32,
    "nffn_hidden_size": 32,
    "shared_representation_size": 16,
    "ema_projection_size": 4,
    "classifier_pooling": "mean",
    "dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "nffn_activation_dropout_prob": 0.0,
    "initializer_range": 0.125,
}
# a word of a class, its neighbours in a text
WORDS = {"sea": ["ship", "wave", "sail"], "land": ["field", "plough", "horse"], "air": ["wing", "cloud", "kite"]}
FILLING = ["the", "a", "of", "and", "under", "over", "small", "old", "new", "with"]


def texts(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts whose class one of their words gives away."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        label = rng.choice([*WORDS])
        words = [rng.choice(FILLING) for _ in range(rng.randint(3, 9))]
        words.insert(rng.randrange(len(words)), rng.choice(WORDS[label]))
        rows.append({"text": " ".join(words), "label": label})
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    """Writes jsonl; the file's name."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path.name


def recipe(task: str, data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The values of a small recipe; mappings among the changes are added to its own."""
    values: dict[str, Any] = {
        "name": "tiny",
        "task": task,
        "sequence_length": 32,
        "data": [{"name": "Rows", "license": "CC0", **data}],
        "tokenizer": {"kind": "bytes"},
        "model": MODEL,
        "training": {
            "max_steps": 2,
            "per_device_train_batch_size": 16,
            "per_device_eval_batch_size": 64,
            "learning_rate": 0.01,
            "warmup_steps": 1,
            "eval_steps": 100,
            "save_steps": 100,
            "disable_tqdm": True,
            "use_cpu": True,
        },
    }
    for key, value in changes.items():
        add = isinstance(value, dict) and isinstance(values.get(key), dict) and key in ("model", "training")
        values[key] = {**values[key], **value} if add else value
    return {key: value for key, value in values.items() if value is not None}


def train(values: dict[str, Any], folder: Path, output: str = "run", **options: Any) -> tuple[dict[str, Any], str]:
    """Results and messages of a run whose files are in `folder`."""
    with open(folder / f"{output}.txt", "w", encoding="utf-8") as file:
        results = run(recipe_of(values), RunOptions(folder, folder / output, **options), Console(file=file, width=300))
    return results, (folder / f"{output}.txt").read_text(encoding="utf-8")


def train_bundled(name: str, folder: Path) -> dict[str, Any]:
    """Results of two steps of a bundled recipe."""
    changes = ["training.max_steps=2", "training.use_cpu=true", "training.disable_tqdm=true"]
    results = run(
        read_recipe(find_recipe(Path(name)), changes), RunOptions(RECIPES, folder / "run"), Console(quiet=True)
    )
    assert results is not None
    return results
