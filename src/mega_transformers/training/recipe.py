"""Recipes: what a YAML file of `recipes/` may say, checked before any work is done."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..assets import RECIPES
from .cleaning import CLEANERS, SPLITTERS
from .pair_recipe import METRICS, Generation, PairSource, Split
from .schema import RecipeError, build, convert, did_you_mean

TASKS = {"masked-lm": "masked_lm", "causal-lm": "causal_lm", "text-to-text": "text_to_text"}
PAIRS_TASK = "text-to-text"
TOKENIZERS = ("bpe", "symbols")
ROLES = ("train", "validation", "test")
SHAPES = ("cosine", "linear")

# TrainingArguments that a recipe sets elsewhere, or that the run decides
RESERVED_ARGUMENTS = {
    "output_dir": "--output-dir",
    "seed": "seed",
    "data_seed": "seed",
    "max_steps": "schedule.max_steps",
    "num_train_epochs": "schedule.epochs",
    "lr_scheduler_type": "schedule.shape",
    "lr_scheduler_kwargs": "schedule",
    "warmup_steps": "schedule.warmup_steps",
    "warmup_ratio": "schedule.warmup_steps",
    "resume_from_checkpoint": "--resume",
    "remove_unused_columns": "nothing: batches are made by the task",
    "prediction_loss_only": "nothing: the task decides",
    "restore_callback_states_from_checkpoint": "nothing: the run decides",
}

# TrainingArguments that transformers does not check before it trains
ABOVE_0 = (
    "learning_rate",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "eval_steps",
    "save_steps",
    "logging_steps",
    "adam_epsilon",
)
AT_LEAST_0 = ("weight_decay", "max_grad_norm", "eval_delay")
BELOW_1 = ("adam_beta1", "adam_beta2", "label_smoothing_factor")
"""These are at least 0, too."""


@dataclass
class Source:
    """Text to train or judge on: files, or a data set of the Hugging Face hub.

    Args:
        name: What the model card calls it.
        license: Its licence, for the model card.
        attribution: Whom to credit, and where it is from.
        dataset: Name of a Hugging Face data set; None for files.
        config: The data set's configuration.
        text_column: The data set's column of text.
        train, validation, test: What plays this role: files (globs work, `.gz` too) below the data folder, or
            names of the data set's splits.
        clean: Names of `cleaning.CLEANERS`, applied in this order to a whole file or row.
        documents: A name of `cleaning.SPLITTERS`: how a file or row is cut into documents.
    """

    name: str
    license: str
    attribution: str = ""
    dataset: str | None = None
    config: str | None = None
    text_column: str = "text"
    train: list[str] = field(default_factory=list)
    validation: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)
    clean: list[str] = field(default_factory=list)
    documents: str = "whole"

    def __post_init__(self) -> None:
        for name in self.clean:
            if name not in CLEANERS:
                raise RecipeError(f"clean={name!r} is unknown; known are {', '.join(CLEANERS)}")
        if self.documents not in SPLITTERS:
            raise RecipeError(f"documents={self.documents!r} is unknown; known are {', '.join(SPLITTERS)}")
        if not (self.train or self.validation or self.test):
            raise RecipeError(f"train, validation and test are all empty for {self.name!r}; give at least one")
        if self.dataset is None and self.config is not None:
            raise RecipeError(f"config={self.config!r} is for data sets; give dataset too")

    @property
    def roles(self) -> list[str]:
        """The roles its texts play."""
        return [role for role in ROLES if getattr(self, role)]


@dataclass
class TokenizerRecipe:
    """A tokenizer to train on the train texts, or the folder of one to use (`path`).

    Args:
        vocab_size: Entries of the byte-level BPE to train.
        path: The folder.
        kind: `"bpe"`, or for pairs of words and phonemes `"symbols"` (see `tokenizer.symbol_tokenizer`).
    """

    vocab_size: int | None = None
    path: str | None = None
    kind: str = "bpe"

    def __post_init__(self) -> None:
        if self.kind not in TOKENIZERS:
            raise RecipeError(f"kind={self.kind!r} is unknown; known are {', '.join(TOKENIZERS)}")
        if self.kind == "symbols":
            if self.vocab_size is not None or self.path is not None:
                raise RecipeError("kind='symbols' takes its entries from the train texts; leave the other keys out")
            return
        if (self.vocab_size is None) == (self.path is None):
            raise RecipeError("vocab_size to train a tokenizer, or path to use one: give one of them")
        if self.vocab_size is not None and not 261 <= self.vocab_size <= 1 << 20:
            raise RecipeError(
                f"vocab_size={self.vocab_size} must be at least 261 (256 bytes and 5 special tokens), "
                f"at most {1 << 20}"
            )


@dataclass
class Masking:
    """Which tokens are hidden in training, and in evaluations.

    Args:
        probability: Chance of a token to be predicted, in training.
        evaluation_probability: The same in evaluations.
        mask: Of these, the part that is replaced by the mask token.
        random: Of these, the part that is replaced by a random token; the rest stays as it is.
    """

    probability: float = 0.15
    evaluation_probability: float = 0.15
    mask: float = 1.0
    random: float = 0.0

    def __post_init__(self) -> None:
        for name in ("probability", "evaluation_probability"):
            if not 0 < getattr(self, name) < 1:
                raise RecipeError(f"{name}={getattr(self, name)} must be above 0 and below 1")
        if not (self.mask >= 0 and self.random >= 0 and self.mask + self.random <= 1):
            raise RecipeError(f"mask={self.mask} and random={self.random} must be at least 0, and at most 1 together")


@dataclass
class Schedule:
    """Length of the training and course of the learning rate, whose peak is `training.learning_rate`.

    Args:
        max_steps: Optimiser steps; or
        epochs: passes over the data.
        max_hours: Hours of training after which it has ended, if it has not before; None for no limit.
        warmup_steps: Steps over which the learning rate rises.
        shape: `"cosine"` or `"linear"`: how it falls to 0 from then on.
    """

    max_steps: int | None = None
    epochs: float | None = None
    max_hours: float | None = None
    warmup_steps: int = 0
    shape: str = "cosine"

    def __post_init__(self) -> None:
        if (self.max_steps is None) == (self.epochs is None):
            raise RecipeError("max_steps or epochs: give one of them")
        for name in ("max_steps", "epochs", "max_hours"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise RecipeError(f"{name}={value} must be above 0")
        if self.warmup_steps < 0:
            raise RecipeError(f"warmup_steps={self.warmup_steps} must be at least 0")
        if self.shape not in SHAPES:
            raise RecipeError(f"shape={self.shape!r} is unknown; known are {', '.join(SHAPES)}")


@dataclass
class Published:
    """A result of others, to stand in the model card of a text-to-text model.

    Args:
        system: What reached it.
        citation: Authors, year and title.
        scores: Metric -> value, as the model's own are given.
    """

    system: str
    citation: str
    scores: dict[str, float]

    def __post_init__(self) -> None:
        for metric, value in self.scores.items():
            if metric not in METRICS or isinstance(value, bool) or not isinstance(value, (int, float)):
                raise RecipeError(f"scores.{metric}={value!r} must be a number, of one of {', '.join(METRICS)}")


@dataclass
class Card:
    """What only a person can say in the model card.

    Args:
        license: An identifier of the model hub's.
        language: The language, or those of sources and targets.
        summary: What the model is, and what it is for.
        examples: Inputs to show.
        metric_titles: Metric -> what the text-to-text task at hand calls it.
        published: Results of others.
        published_note: In what these differ.
    """

    license: str = "other"
    language: str | list[str] = "en"
    summary: str = ""
    examples: list[str] = field(default_factory=list)
    metric_titles: dict[str, str] = field(default_factory=dict)
    published: list[Published] = field(default_factory=list)
    published_note: str = ""


@dataclass
class Recipe:
    """A training run.

    Args:
        name: Name of the model and of its folder under `runs/`.
        task: A name of `TASKS`.
        sequence_length: Tokens per training example.
        seed: Seed of weights, order and masks.
        validation_blocks: Examples of the validation text used while training; None for all.
        data: Texts, for tasks that read running text.
        pairs: Pairs of texts, for text-to-text.
        split: How those of them are divided that the recipe gives no role.
        generation: How outputs are made and judged, for text-to-text.
        model: Fields of `MegaConfig`; `vocab_size` comes from the tokenizer. For text-to-text, see
            `seq2seq_config.build_config`.
        training: Fields of transformers' `TrainingArguments`.
        masking: For masked-lm, by default `Masking()`; None for other tasks.
    """

    name: str
    task: str
    sequence_length: int
    tokenizer: TokenizerRecipe
    schedule: Schedule
    data: list[Source] = field(default_factory=list)
    pairs: list[PairSource] = field(default_factory=list)
    split: Split | None = None
    generation: Generation | None = None
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    masking: Masking | None = None
    card: Card = field(default_factory=Card)
    seed: int = 0
    validation_blocks: int | None = None

    def __post_init__(self) -> None:
        if not self.name or any(character in self.name for character in "/\\ "):
            raise RecipeError(f"name={self.name!r} must be usable as the name of a folder")
        if self.task not in TASKS:
            raise RecipeError(f"task={self.task!r} is unknown; known are {', '.join(TASKS)}")
        if self.task == "masked-lm":
            self.masking = self.masking or Masking()
        elif self.masking is not None:
            raise RecipeError(f"masking is for the task masked-lm; leave it out for {self.task}")
        if self.sequence_length < 8:
            raise RecipeError(f"sequence_length={self.sequence_length} must be at least 8")
        if self.validation_blocks is not None and self.validation_blocks < 1:
            raise RecipeError(f"validation_blocks={self.validation_blocks} must be at least 1, or null for all")
        self._check_sources()
        if "vocab_size" in self.model:
            raise RecipeError("model.vocab_size comes from the tokenizer; leave it out")
        for key in self.training:
            if key in RESERVED_ARGUMENTS:
                raise RecipeError(f"training.{key} is not set there but by {RESERVED_ARGUMENTS[key]}")
            if key in (*ABOVE_0, *AT_LEAST_0, *BELOW_1) and self.training[key] is not None:
                checked_number(key, self.training[key], f"training.{key}")

    @property
    def sources(self) -> list[Any]:
        """What it trains and judges on: `Source`s or `PairSource`s."""
        return list(self.pairs or self.data)

    def _check_sources(self) -> None:
        if self.task == PAIRS_TASK:
            self.split, self.generation = self.split or Split(), self.generation or Generation()
        pairs_only = {"pairs": self.pairs, "split": self.split, "generation": self.generation}
        for name, value in pairs_only.items() if self.task != PAIRS_TASK else {"data": self.data}.items():
            if value:
                raise RecipeError(f"{name} is for another task; leave it out for {self.task}")
        if self.tokenizer.kind == "symbols" and self.task != PAIRS_TASK:
            raise RecipeError(f"tokenizer.kind='symbols' is for {PAIRS_TASK}; leave it out for {self.task}")
        if not any("train" in source.roles for source in self.sources):
            raise RecipeError(f"{'pairs' if self.task == PAIRS_TASK else 'data'}: no source has the role train")


def checked_number(name: str, value: Any, where: str) -> float:
    """The value of one of the `TrainingArguments` that are `ABOVE_0`, `AT_LEAST_0` or `BELOW_1`.

    Args:
        name: Its name.
        value: What the recipe gives.
        where: The recipe's key, for messages.

    Raises:
        RecipeError: for another value.
    """
    number: float = convert(float, value, where)
    if not (number > 0 if name in ABOVE_0 else 0 <= number < (1 if name in BELOW_1 else math.inf)):
        words = "above 0" if name in ABOVE_0 else "at least 0" + (" and below 1" if name in BELOW_1 else "")
        raise RecipeError(f"{where}={value} must be {words}")
    return number


def find_recipe(path: Path) -> Path:
    """A recipe's file: the path itself, or the bundled recipe that it names.

    Where there is no such file, `mlm-smoke` and `recipes/mlm-smoke.yaml` both name the bundled one.
    """
    bundled = RECIPES / f"{path.name.removesuffix('.yaml')}.yaml"
    named = not path.is_file() and path.parent in (Path(), Path("recipes"))
    return bundled if named and bundled.is_file() else path


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """The recipe of a YAML file, checked: `read_recipe`, then `check_training_arguments`, which imports PyTorch.

    Args:
        path: The file.
        overrides: See `read_recipe`.

    Raises:
        RecipeError: as these do.
    """
    recipe = read_recipe(path, overrides)
    check_training_arguments(recipe.training)
    return recipe


def read_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """The recipe of a YAML file, checked but for the names of `TrainingArguments`.

    Args:
        path: The file.
        overrides: `key=value` each, the key with dots (`schedule.max_steps=10`, `data.0.name=x`), the value in YAML.

    Raises:
        RecipeError: for a file that is missing or not valid YAML, and for everything in it that cannot work.
    """
    import yaml

    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = sorted(file.stem for file in RECIPES.glob("*.yaml"))
        hint = did_you_mean(path.stem, known, f"bundled are {', '.join(known)}")
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}; {hint}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid YAML: {error}") from None
    for override in overrides or []:
        key, separator, text = override.partition("=")
        if not separator:
            raise RecipeError(f"--set {override} must look like key=value, for example schedule.max_steps=100")
        try:
            parsed = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise RecipeError(f"--set {override}: the value is not valid YAML: {error}") from None
        _assign(value, key, parsed)
    return build(Recipe, value)


def _assign(value: Any, key: str, new: Any) -> None:
    *parents, last = key.split(".")
    for name in parents:
        if isinstance(value, list) and name.isdigit() and int(name) < len(value):
            value = value[int(name)]
        elif isinstance(value, dict):
            if value.get(name) is None:
                value[name] = {}
            value = value[name]
        else:
            raise RecipeError(f"--set {key}: there is no {name!r} to set something in")
    if isinstance(value, list) and last.isdigit() and int(last) < len(value):
        value[int(last)] = new
    elif isinstance(value, dict):
        value[last] = new
    else:
        raise RecipeError(f"--set {key}: there is no {last!r} to set")


def check_training_arguments(arguments: dict[str, Any]) -> None:
    """Refuses names that `TrainingArguments` does not have, and turns texts like 1e-3 into numbers, in place.

    Raises:
        RecipeError: naming the key.
    """
    from transformers import TrainingArguments

    known = {item.name: item for item in dataclasses.fields(TrainingArguments) if item.init}
    for key, value in arguments.items():
        if key not in known:
            hint = did_you_mean(key, known, "see transformers.TrainingArguments")
            raise RecipeError(f"training.{key} is not a field of TrainingArguments; {hint}")
        if isinstance(known[key].default, float):
            try:
                arguments[key] = float(value)
            except (TypeError, ValueError):
                raise RecipeError(f"training.{key} must be a number; got {value!r}") from None
