"""Recipes: the schema of the YAML files in `recipes/`. Imports nothing heavy; pydantic checks keys, types and ranges.

A RecipeError names the key, the fault and the value.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from ..assets import RECIPES
from ..errors import RecipeError, did_you_mean
from ..evaluation.metrics import MAX_BEAMS, METRICS
from ..evaluation.texts import CLEANERS

ROLES = ("train", "validation", "test")

# keys of older recipes -> their replacement
MOVED = {
    "schedule": "it is now part of training: max_steps or num_train_epochs, warmup_steps, lr_scheduler_type",
    "pairs": "it is now named data",
    "package": "it is now split into reader and divide",
    "validation_blocks": "it is now named validation_examples",
    "validation_examples": "it is now a key of the recipe, next to generation",
}


class Section(BaseModel):
    """A mapping in a recipe. The error for an unknown key suggests a similar known key."""

    model_config = ConfigDict(validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _only_known_keys(cls, value: Any) -> Any:
        known = cls.model_fields
        for key in value if isinstance(value, Mapping) else []:
            if key not in known:
                hint = MOVED.get(key) or did_you_mean(str(key), known, f"the known keys are {', '.join(known)}")
                raise ValueError(f"unknown key {key!r}; {hint}")
        return value


def _strings(value: Any) -> Any:
    values = value if isinstance(value, list) else [value]
    return [str(one) if isinstance(one, int) and not isinstance(one, bool) else one for one in values]


def _among(known: Collection[str]) -> AfterValidator:
    def check(names: list[str]) -> list[str]:
        for name in names:
            if name not in known:
                raise ValueError(f"{name!r} is unknown; the known values are {', '.join(known)}")
        return names

    return AfterValidator(check)


# a single value means a list of one
Strings = Annotated[list[str], BeforeValidator(_strings)]
# in tsv and csv files without a header, a number counted from 1
Column = str | int


class Source(Section):
    """Rows to train or evaluate on: files, a data set of the Hugging Face hub, or rows that a reader makes from files.

    A role lists files below the data folder (globs and `.gz` work), or names of the data set's splits; for a reader
    that generates rows, their number; for a reader of a package, the package's name.
    """

    name: str  # for the model card, like the licence and the credit
    license: str
    attribution: str = ""
    dataset: str | None = None  # the name of a data set on the hub
    config: str | None = None  # the data set's configuration
    streaming: bool = False  # whether to read training rows during the training, never all at once
    reader: str | None = None  # one of `data.READERS`; None for text, tsv, csv, json, jsonl and parquet
    options: dict[str, Any] = {}  # keyword arguments of the reader, such as a generator's seed
    train: Strings = []
    validation: Strings = []
    test: Strings = []
    divide: Strings = []  # rows to divide into the three roles, by `Split`
    group: Column | None = (
        None  # rows with equal values in this column keep the same role; None for the task's first column
    )

    # the task's column names
    columns: ClassVar[tuple[str, ...]]

    @model_validator(mode="after")
    def _can_be_read(self) -> Source:
        if not self.roles:
            raise ValueError(f"train, validation, test and divide are all empty for {self.name!r}; give at least one")
        if self.dataset is None and self.config is not None:
            raise ValueError(f"config={self.config!r} is for data sets of the hub; give dataset too")
        if self.options and self.reader is None:
            raise ValueError(f"options={self.options} are for a reader; give reader too")
        names = list(self.column_names.values())
        if len(set(names)) < len(names):
            raise ValueError(f"two columns are both named {max(names, key=names.count)!r}; name different ones")
        return self

    @property
    def roles(self) -> list[str]:
        """The roles of its rows."""
        return [role for role in ROLES if self.divide or getattr(self, role)]

    @property
    def column_names(self) -> dict[str, Column]:
        """The task's name of each column -> the name in the user's rows."""
        names = {name: getattr(self, name) for name in (*self.columns, "group")}
        return {name: column for name, column in names.items() if column is not None}


class TextSource(Source):
    """Running text."""

    text_column: str = "text"
    clean: Annotated[Strings, _among(CLEANERS)] = []  # applied in this order to a whole file or row
    # how to cut a file or row into documents
    documents: Literal["whole", "lines", "paragraphs", "sections", "articles"] = "whole"

    columns = ("text",)

    @property
    def column_names(self) -> dict[str, Column]:
        """As `Source.column_names`."""
        return {"text": self.text_column} | ({} if self.group is None else {"group": self.group})


class PairSource(Source):
    """Pairs of a source text and a target text."""

    source: Column = "source"
    target: Column = "target"
    columns = ("source", "target")


class LabelledSource(Source):
    """Inputs and their labels.

    A label is a class (name or number), a number to predict, or a list of either, which csv and tsv files cannot hold.
    """

    values: Column | None = None  # numbers, images or sound, for `input: values` and `input: pixels`
    text: Column | None = Field(default_factory=lambda given: "text" if given.get("values") is None else None)
    text_pair: Column | None = None  # a second text to compare the first with
    label: Column = "label"

    columns = ("text", "text_pair", "values", "label")


class TaggedSource(Source):
    """Sentences as lists of words, and a tag for each word."""

    tokens: str = "tokens"
    tags: str = "tags"

    columns = ("tokens", "tags")


class SentenceSource(Source):
    """Texts that belong together, or a pair of texts and their similarity."""

    anchor: Column = "anchor"  # with `positive`, two texts with the same meaning, or a pair with a score
    positive: Column = "positive"
    negative: Column | None = None  # a text with another meaning
    score: Column | None = None  # from 0 to 1

    columns = ("anchor", "positive", "negative", "score")


class Split(Section):
    """How to divide rows into roles: by a text, so that no text has two roles."""

    seed: int = 0  # separate from the recipe's seed, which can change without changing the division
    validation: float = Field(0.05, ge=0)  # a number of different texts, or a fraction below 1
    test: float = Field(0.05, ge=0)

    @model_validator(mode="after")
    def _whole_numbers(self) -> Split:
        for name, value in (("validation", self.validation), ("test", self.test)):
            if value > 1 and value % 1:
                raise ValueError(f"{name}={value:g} must be a fraction below 1, or a whole number")
        return self


class TokenizerRecipe(Section):
    """A tokenizer to train on the train texts, an existing one, or one that needs no training."""

    vocab_size: int | None = Field(None, ge=261, le=1 << 20)  # the size of the byte-level BPE to train
    path: str | None = None  # a folder, or an id on the hub
    # one token per byte; for pairs of words and phonemes; for the Long Range Arena
    kind: Literal["bpe", "bytes", "symbols", "listops"] = "bpe"

    @model_validator(mode="after")
    def _one_way(self) -> TokenizerRecipe:
        if (self.vocab_size is not None) + (self.path is not None) != (self.kind == "bpe"):
            raise ValueError(
                "give one of vocab_size (to train a tokenizer), path (an existing one) and kind (one that needs "
                "neither)"
            )
        return self


class Masking(Section):
    """The tokens to predict, and what replaces them."""

    probability: float = Field(0.15, gt=0, lt=1)  # the probability that training predicts a token
    evaluation_probability: float = Field(0.15, gt=0, lt=1)
    mask: float = Field(1.0, ge=0, le=1)  # the share of these that becomes the mask token
    random: float = Field(0.0, ge=0, le=1)  # the share that becomes a random token; the rest stays

    @model_validator(mode="after")
    def _parts(self) -> Masking:
        if self.mask + self.random > 1:
            raise ValueError(f"mask={self.mask} and random={self.random} must be at most 1 together")
        return self


class Generation(Section):
    """How to generate and evaluate outputs."""

    metrics: Annotated[Strings, _among(METRICS), Field(min_length=1)] = ["bleu", "chrf"]
    # the metric that selects the checkpoint
    best_by: str = Field(default_factory=lambda given: given["metrics"][0])
    num_beams: int = Field(5, ge=1, le=MAX_BEAMS)  # for the final evaluation, which also uses greedy decoding
    length_penalty: float = 1.0  # the exponent of the length that divides a beam's score
    max_new_tokens: int = Field(128, ge=1)

    @model_validator(mode="after")
    def _best_is_reported(self) -> Generation:
        if self.best_by not in self.metrics:
            raise ValueError(f"best_by={self.best_by!r} is not among metrics={self.metrics}; add it")
        return self

    def changed(self, metrics: list[str] | None, num_beams: int | None) -> Generation:
        """These settings with other metrics or another number of beams; None leaves them as they are."""
        values = {**self.model_dump(), "num_beams": num_beams or self.num_beams}
        if metrics:
            values |= {"metrics": metrics, "best_by": metrics[0]}
        return parse(Generation, values, "generation")


class Published(Section):
    """A result of others for the model card."""

    system: str
    citation: str
    scores: dict[str, float]  # metric -> value, in the units of the model's own


class Card(Section):
    """The parts of the model card that a person must write."""

    license: str = "other"  # a licence id of the model hub
    language: str | list[str] = "en"  # or those of sources and targets
    summary: str = ""
    examples: list[str] = []  # example inputs
    metric_titles: dict[str, str] = {}
    published: list[Published] = []
    published_note: str = ""  # how these results differ


class Recipe(Section):
    """A training run; each task adds its own keys."""

    name: str = Field(pattern=r"^[^/\\\s]+$")  # the name of the model, and of its folder under `runs/`
    task: str
    sequence_length: int = Field(ge=8)  # most tokens, bytes or values per example
    seed: int = Field(0, ge=0)  # the seed of weights, order and masks
    validation_examples: int | None = Field(None, ge=1)  # rows to evaluate on during the training; None for all
    early_stopping: int | None = Field(None, ge=1)  # training stops after this many evaluations without progress
    data: list[Any] = Field(min_length=1)
    split: Split = Split()  # for the rows under `divide`
    tokenizer: TokenizerRecipe | None = None
    model: dict[str, Any] = {}  # fields of `MegaConfig`; see `models.build_config`
    training: dict[str, Any] = {}  # fields of transformers' `TrainingArguments`
    card: Card = Card()

    @model_validator(mode="after")
    def _can_be_trained(self, info: ValidationInfo) -> Recipe:
        to_train = (info.context or {}).get("to_train", True)
        if to_train and not any("train" in source.roles for source in self.data):
            raise ValueError("data: no source has the role train")
        if "vocab_size" in self.model:
            raise ValueError("model.vocab_size comes from the tokenizer; leave it out")
        if self.tokenizer is None and "checkpoint" not in self.model and getattr(self, "input", "tokens") == "tokens":
            raise ValueError("tokenizer is missing; only a model.checkpoint has its own")
        if any(source.streaming for source in self.data) and not self.training.get("max_steps", 0) > 0:
            raise ValueError(
                "training.max_steps is missing: it is required for streamed rows, whose number is not known"
            )
        return self


class LanguageModelRecipe(Recipe):
    """Running text in blocks of `sequence_length` tokens."""

    data: list[TextSource] = Field(min_length=1)
    # documents do not see each other, and are cut at the end of a block; or they form one long text
    packing: Literal["isolated", "wrapped"] = "isolated"


class MaskedLMRecipe(LanguageModelRecipe):
    """The task masked-lm."""

    masking: Masking = Masking()


class CausalLMRecipe(LanguageModelRecipe):
    """The task causal-lm."""


class TextToTextRecipe(Recipe):
    """The task text-to-text."""

    data: list[PairSource] = Field(min_length=1)
    generation: Generation = Generation()


class Normalization(Section):
    """(value - mean) / std, after pixels (images, and one-byte numbers in Arrow's types) are divided by 255."""

    mean: float = 0.0
    std: float = Field(1.0, gt=0)


class SequenceClassificationRecipe(Recipe):
    """The task sequence-classification."""

    data: list[LabelledSource] = Field(min_length=1)
    # tokens of the tokenizer; real numbers, such as pixels row by row or samples of sound; or grey levels, 0 to 255,
    # as tokens for architectures that read nothing else
    input: Literal["tokens", "values", "pixels"] = "tokens"
    # as one text with the tokenizer's separator, or each by the same Mega (`MegaForSequencePairClassification`)
    text_pairs: Literal["together", "apart"] = "together"
    # None decides by the labels: lists are several classes, numbers with a fraction a regression, others one class
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] | None = None
    normalize: Normalization = Normalization()  # for `input: values`


class TokenClassificationRecipe(Recipe):
    """The task token-classification."""

    data: list[TaggedSource] = Field(min_length=1)


class SentenceEmbeddingRecipe(Recipe):
    """The task sentence-embedding."""

    data: list[SentenceSource] = Field(min_length=1)
    # a loss of sentence-transformers; None is MultipleNegativesRankingLoss, or CoSENTLoss with scores
    loss: str | None = None
    pooling: Literal["mean", "cls", "max", "lasttoken"] = "mean"


RECIPES_OF_TASKS: dict[str, type[Recipe]] = {
    "masked-lm": MaskedLMRecipe,
    "causal-lm": CausalLMRecipe,
    "text-to-text": TextToTextRecipe,
    "sequence-classification": SequenceClassificationRecipe,
    "token-classification": TokenClassificationRecipe,
    "sentence-embedding": SentenceEmbeddingRecipe,
}


def parse(kind: Any, value: Any, where: str = "", to_train: bool = True) -> Any:
    """`value` parsed as `kind` by pydantic."""
    try:
        return TypeAdapter(kind).validate_python(value, context={"to_train": to_train})
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False):
            path = ".".join(str(part) for part in (where, *problem["loc"]) if part != "")
            text = problem["msg"].removeprefix("Value error, ")
            got = "" if problem["type"] in ("value_error", "missing") else f"; got {problem['input']!r}"
            lines.append(f"{path}: {text}{got}" if path else f"{text}{got}")
        raise RecipeError("\n".join(lines)) from None


def recipe_of(values: Any, to_train: bool = True) -> Recipe:
    """The recipe for plain values; it must have training rows if `to_train`."""
    if not isinstance(values, Mapping):
        raise RecipeError(f"a recipe must be a mapping of keys such as name and task; got {values!r:.80}")
    task = values.get("task")
    if task not in RECIPES_OF_TASKS:
        hint = did_you_mean(str(task), RECIPES_OF_TASKS, f"the known tasks are {', '.join(RECIPES_OF_TASKS)}")
        raise RecipeError(f"task={task!r} is unknown; {hint}")
    kind = RECIPES_OF_TASKS[task]
    for key in values:
        owners = [name for name, other in RECIPES_OF_TASKS.items() if key in other.model_fields]
        if key not in kind.model_fields and owners:
            raise RecipeError(f"{key} is for {' and '.join(owners)}; leave it out for {task}")
    return parse(kind, values, to_train=to_train)


def find_recipe(path: Path) -> Path:
    """The file of a recipe: the path itself, or the bundled recipe of that name.

    If there is no such file, `mlm-smoke` and `recipes/mlm-smoke.yaml` both mean the bundled recipe.
    """
    parts = (path.parent / f"{path.name.removesuffix('.yaml')}.yaml").parts
    bundled = RECIPES.joinpath(*parts[parts[0] == "recipes" :])
    return bundled if not path.is_file() and not path.is_absolute() and bundled.is_file() else path


def read_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """The recipe of a YAML file, checked except for `training`, which needs transformers (`arguments.checked`).

    Each of `overrides` is `key=value`: the key has dots (`training.max_steps=10`, `data.0.name=x`), the value is YAML.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = sorted(str(file.relative_to(RECIPES).with_suffix("")) for file in RECIPES.rglob("*.yaml"))
        hint = did_you_mean(path.stem, known, f"bundled are {', '.join(known)}")
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}; {hint}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid YAML: {error}") from None
    for override in overrides or []:
        key, equals, text = override.partition("=")
        if not equals:
            raise RecipeError(f"--set {override} must be key=value, such as training.max_steps=100")
        try:
            _set(values, key.split("."), yaml.safe_load(text), key)
        except yaml.YAMLError as error:
            raise RecipeError(f"--set {override}: the value is not valid YAML: {error}") from None
    return recipe_of(values)


def _set(values: Any, keys: list[str], value: Any, where: str) -> None:
    for index, key in enumerate(keys):
        place: Any = int(key) if isinstance(values, list) and key.isdigit() else key
        if not isinstance(values, dict) and not (isinstance(values, list) and place in range(len(values))):
            raise RecipeError(f"--set {where}: the recipe has no {'.'.join(keys[: index + 1])}")
        if index == len(keys) - 1:
            values[place] = value
        elif isinstance(values, dict) and values.get(place) is None:
            values[place] = {}
        values = values[place]


def plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain JSON or YAML values."""
    return json.loads(recipe.model_dump_json())
