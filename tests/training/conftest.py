"""Small recipes of three tasks, and the files they read."""

from __future__ import annotations

import copy
import os
import signal
from pathlib import Path

import pytest
import torch
import yaml
from transformers import TrainerCallback

from mega_transformers.training import run as run_module
from mega_transformers.training.recipe import recipe_of

TEXT = "the cat sat on a mat and the dog ran to the old house by the sea while rain fell on green hills"
WORDS = TEXT.split()


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in one order, so that runs can be compared bit by bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sentences(count: int, seed: int) -> str:
    generator = torch.Generator().manual_seed(seed)
    lines = []
    for _ in range(count):
        picks = torch.randint(len(WORDS), (12,), generator=generator).tolist()
        lines.append(" ".join(WORDS[pick] for pick in picks) + ".")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for role, count, seed in (("train", 120, 0), ("validation", 30, 1), ("test", 30, 2)):
        (folder / f"{role}.txt").write_text(sentences(count, seed), encoding="utf-8")
    return folder


RECIPE = {
    "name": "tiny",
    "task": "masked-lm",
    "sequence_length": 32,
    "seed": 3,
    "data": [
        {
            "name": "Sentences",
            "license": "CC0",
            "attribution": "Nobody.",
            "train": "train.txt",
            "validation": "validation.txt",
            "test": "test.txt",
            "documents": "lines",
        }
    ],
    "tokenizer": {"vocab_size": 280},
    "model": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "intermediate_size": 16,
        "nffn_hidden_size": 16,
        "shared_representation_size": 8,
        "ema_projection_size": 4,
        "sparse_prediction": True,
    },
    "masking": {"probability": 0.3},
    "training": {
        "max_steps": 12,
        "warmup_steps": 2,
        "per_device_train_batch_size": 16,
        "learning_rate": 0.01,
        "eval_steps": 4,
        "save_steps": 4,
        "logging_steps": 2,
        "disable_tqdm": True,
        "use_cpu": True,
    },
    "card": {"license": "cc0-1.0", "summary": "A test.", "examples": ["The <mask> sat."]},
}


@pytest.fixture
def recipe_dict() -> dict:
    return copy.deepcopy(RECIPE)


def causal(recipe: dict) -> dict:
    """The recipe of masked-lm as one of causal-lm."""
    recipe = copy.deepcopy(recipe)
    del recipe["masking"], recipe["model"]["sparse_prediction"]
    recipe |= {"name": "tiny-clm", "task": "causal-lm"}
    recipe["model"] |= {"is_decoder": True, "bidirectional": False, "use_chunking": True, "chunk_size": 16}
    recipe["card"]["examples"] = ["The cat"]
    return recipe


@pytest.fixture
def causal_recipe_dict() -> dict:
    return causal(RECIPE)


@pytest.fixture
def recipe(recipe_dict):
    return recipe_of(recipe_dict)


@pytest.fixture(scope="module")
def module_recipe():
    """Gives a new copy of a task's recipe to fixtures that live as long as a module."""
    values = {"masked-lm": RECIPE, "causal-lm": causal(RECIPE), "text-to-text": PAIRS_RECIPE}
    return lambda task: copy.deepcopy(values[task])


class SignalAfter(TrainerCallback):
    """Stands for a user's Ctrl-C in a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def signal_after():
    return SignalAfter


@pytest.fixture
def with_trainer(monkeypatch):
    """Calls `change` with every trainer that is made, from then on; gives the list of them."""
    original = run_module.make_trainer

    def patch(change=lambda trainer: None):
        made = []

        def changed(*args, **kwargs):
            trainer = original(*args, **kwargs)
            made.append(trainer)
            change(trainer)
            return trainer

        monkeypatch.setattr(run_module, "make_trainer", changed)
        return made

    return patch


@pytest.fixture
def write_recipe(tmp_path):
    def write(value: dict) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(value), encoding="utf-8")
        return path

    return write


PAIRS_RECIPE = {
    "name": "tiny-pairs",
    "task": "text-to-text",
    "sequence_length": 16,
    "seed": 3,
    "data": [
        {"name": "Words", "license": "CC0", "attribution": "Nobody.", "divide": "words.tsv", "source": 1, "target": 2}
    ],
    "split": {"seed": 1, "validation": 20, "test": 30},
    "tokenizer": {"kind": "symbols"},
    "model": {
        "mega": {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "intermediate_size": 16,
            "nffn_hidden_size": 16,
            "shared_representation_size": 8,
            "ema_projection_size": 4,
            "initializer_range": 0.25,
            "encoder": {"num_hidden_layers": 2},
        },
        "bart": {
            "learning_rate": 0.005,
            "d_model": 16,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 16,
            "decoder_ffn_dim": 16,
            "max_position_embeddings": 32,
        },
    },
    "generation": {
        "metrics": ["sequence_error_rate", "symbol_error_rate", "chrf"],
        "best_by": "symbol_error_rate",
        "num_beams": 2,
        "max_new_tokens": 12,
    },
    "validation_examples": 10,
    "training": {
        "max_steps": 12,
        "warmup_steps": 2,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 16,
        "learning_rate": 0.02,
        "label_smoothing_factor": 0.1,
        "eval_steps": 4,
        "save_steps": 4,
        "logging_steps": 2,
        "disable_tqdm": True,
        "use_cpu": True,
    },
    "card": {"license": "cc0-1.0", "summary": "A test.", "examples": ["abba"]},
}


@pytest.fixture(scope="session")
def pairs_dir(tmp_path_factory) -> Path:
    """`words.tsv`: words of the letters a to f with their letters as symbols; every seventh word has two targets."""
    folder = tmp_path_factory.mktemp("pairs")
    generator = torch.Generator().manual_seed(0)
    words: dict[str, None] = {}
    while len(words) < 200:
        letters = torch.randint(6, (int(torch.randint(2, 9, (1,), generator=generator)),), generator=generator)
        words["".join("abcdef"[letter] for letter in letters)] = None
    lines = []
    for index, word in enumerate(words):
        target = " ".join(f"{letter.upper()}H" for letter in word)
        lines += [f"{word}\t{target}", *([f"{word}\t{target} XH"] if index % 7 == 0 else [])]
    (folder / "words.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def pairs_recipe_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pairs-recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(PAIRS_RECIPE), encoding="utf-8")
    return path


@pytest.fixture
def pairs_recipe_dict() -> dict:
    return copy.deepcopy(PAIRS_RECIPE)
