"""Recipes: the schema of the YAML files in `recipes/`. Imports nothing heavy; pydantic checks keys, types and ranges.

A RecipeError names the key, the fault and the value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError, ValidationInfo, model_validator

from ..assets import RECIPES
from ..errors import RecipeError, did_you_mean
from ..evaluation.metrics import MAX_BEAMS, METRICS
from .sources import LabelledSource, PairSource, Section, SentenceSource, Strings, TaggedSource, TextSource, among


class Split(Section):
    """How rows under `divide` are divided into roles: by group, so that no group has two roles.

    Args:
        seed: Seed of the division. It is separate from the recipe's seed, which may change without changing it.
        validation: Groups for validation: a fraction below 1, or their number.
        test: Groups for test, likewise.
    """

    seed: int = 0
    validation: float = Field(0.05, ge=0)
    test: float = Field(0.05, ge=0)

    @model_validator(mode="after")
    def _whole_numbers(self) -> Split:
        for name, value in (("validation", self.validation), ("test", self.test)):
            if value > 1 and value % 1:
                raise ValueError(f"{name}={value:g} must be a fraction below 1, or a whole number")
        return self


class TokenizerRecipe(Section):
    """A tokenizer: one to train on the training texts, one to load, or one that needs no training.

    Args:
        vocab_size: Entries of the byte-level BPE to train.
        path: Folder, or id on the hub, of a tokenizer to load.
        kind: `bpe` with one of the above; without: `bytes`, a token for each byte; `symbols`, for words and phonemes;
            `listops`, for the Long Range Arena.
    """

    vocab_size: int | None = Field(None, ge=261, le=1 << 20)
    path: str | None = None
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
    """Which tokens a masked language model predicts, and what replaces them in its input.

    Args:
        probability: Probability that a token is to be predicted, in training.
        evaluation_probability: The same in evaluations.
        mask: Share of these tokens that the mask token replaces.
        random: Share that a random token replaces; the rest stays as it is.
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
    """How outputs of a text-to-text model are made and evaluated.

    Args:
        metrics: Metrics to report: `bleu`, `chrf`, `exact_match`, `sequence_error_rate`, `symbol_error_rate`.
        best_by: Metric that decides which checkpoint is the result; the first of `metrics` by default.
        num_beams: Beams of the final evaluation, which also decodes greedily.
        length_penalty: Exponent of the length by which the score of a beam is divided.
        max_new_tokens: Tokens of an output at most.
    """

    metrics: Annotated[Strings, among(METRICS), Field(min_length=1)] = ["bleu", "chrf"]
    best_by: str = Field(default_factory=lambda given: given["metrics"][0])
    num_beams: int = Field(5, ge=1, le=MAX_BEAMS)
    length_penalty: float = 1.0
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
    """A published result of others, for comparison in the model card.

    Args:
        system: Name of the system.
        citation: Where it was published.
        scores: Metric and value, in the unit of the model's own.
    """

    system: str
    citation: str
    scores: dict[str, float]


class Card(Section):
    """What the model card says that no program can know.

    Args:
        license: Licence of the model, an identifier of the hub.
        language: Code of the language, or a list of those of sources and targets.
        summary: What the model is, in a few sentences.
        examples: Inputs whose outputs the card shows.
        metric_titles: Metric and the title that the card gives it.
        published: Published results, each with `system`, `citation` and `scores`.
        published_note: How the published results differ from the model's own.
    """

    license: str = "other"
    language: str | list[str] = "en"
    summary: str = ""
    examples: list[str] = []
    metric_titles: dict[str, str] = {}
    published: list[Published] = []
    published_note: str = ""


class Recipe(Section):
    """A training run. Each task adds its own keys.

    Args:
        name: Name of the model, and of its folder under `runs/`.
        task: Task to train for.
        sequence_length: Tokens, bytes or values of a row, at most.
        seed: Seed of the weights, the order of the rows and the masks.
        validation_examples: Validation rows to evaluate on during training; None for all.
        early_stopping: Evaluations without progress after which training ends; None for never.
        data: Sources of rows.
        split: How rows under `divide` are divided.
        tokenizer: Tokenizer; None where `model.checkpoint` has one, or for real numbers.
        model: Fields of `MegaConfig`, a `checkpoint` to continue from, or an `architecture` with its fields.
        training: Fields of `TrainingArguments` of transformers.
        card: Content of the model card.
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
            raise ValueError(
                "training.max_steps is missing: it is required for streamed rows, whose number is not known"
            )
        return self


class LanguageModelRecipe(Recipe):
    """Running text in blocks of `sequence_length` tokens, for `masked-lm` and `causal-lm`.

    Args:
        packing: `isolated`: documents in a block do not see each other; `wrapped`: all documents are one long text.
        sequence_parallel: Over how many processes each block is cut; see docs/long-inputs.md.
    """

    data: list[TextSource] = Field(min_length=1)
    packing: Literal["isolated", "wrapped"] = "isolated"
    sequence_parallel: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _blocks_can_be_cut(self) -> LanguageModelRecipe:
        if self.sequence_parallel > 1 and self.packing == "isolated":
            raise ValueError(
                f"sequence_parallel={self.sequence_parallel} needs packing: wrapped; isolated documents begin "
                "anywhere in a block, and a cut would lie within one of their chunks"
            )
        return self


class MaskedLMRecipe(LanguageModelRecipe):
    """The task `masked-lm`.

    Args:
        masking: Which tokens are predicted.
    """

    masking: Masking = Masking()


class CausalLMRecipe(LanguageModelRecipe):
    """The task `causal-lm`."""


class TextToTextRecipe(Recipe):
    """The task `text-to-text`.

    Args:
        generation: How outputs are made and evaluated.
    """

    data: list[PairSource] = Field(min_length=1)
    generation: Generation = Generation()


class Normalization(Section):
    """(value - mean) / std, after pixels (images, and numbers of one byte in Arrow's types) were divided by 255.

    Args:
        mean: What is subtracted.
        std: What the difference is divided by.
    """

    mean: float = 0.0
    std: float = Field(1.0, gt=0)


class SequenceClassificationRecipe(Recipe):
    """The task `sequence-classification`.

    Args:
        input: `tokens` of the tokenizer; real `values`, such as pixels row by row or samples of sound; or grey
            `pixels`, 0 to 255, as tokens, for architectures that cannot read real numbers.
        text_pairs: `together` as one text with the tokenizer's separator, or `apart`, each read by the same Mega
            (`MegaForSequencePairClassification`).
        problem_type: Kind of the labels; None decides by the labels: lists are several classes, numbers with a
            fraction a regression, all others one class.
        normalize: How real numbers are normalised, for `input: values`.
    """

    data: list[LabelledSource] = Field(min_length=1)
    input: Literal["tokens", "values", "pixels"] = "tokens"
    text_pairs: Literal["together", "apart"] = "together"
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] | None = None
    normalize: Normalization = Normalization()


class TokenClassificationRecipe(Recipe):
    """The task `token-classification`."""

    data: list[TaggedSource] = Field(min_length=1)


class SentenceEmbeddingRecipe(Recipe):
    """The task `sentence-embedding`.

    Args:
        loss: A loss of sentence-transformers; None for `MultipleNegativesRankingLoss`, with scores `CoSENTLoss`.
        pooling: How the vectors of tokens become one vector.
    """

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
    """The recipe that plain values describe.

    Args:
        values: A mapping, as YAML gives it.
        to_train: Whether the recipe must have rows to train on.

    Raises:
        RecipeError: naming each key that is wrong, and its value.
    """
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
    """The file of a recipe: the path itself, or the bundled recipe that it names.

    If there is no file of that name, `mlm-smoke` and `recipes/mlm-smoke.yaml` both name the bundled recipe.

    Args:
        path: A file, or the name of a bundled recipe.
    """
    parts = (path.parent / f"{path.name.removesuffix('.yaml')}.yaml").parts
    bundled = RECIPES.joinpath(*parts[parts[0] == "recipes" :])
    return bundled if not path.is_file() and not path.is_absolute() and bundled.is_file() else path


def read_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Reads a recipe and checks everything but `training`, which needs transformers (`arguments.checked`).

    Args:
        path: A YAML file.
        overrides: `key=value` each, with dots in the key (`training.max_steps=10`, `data.0.name=x`) and YAML as value.

    Raises:
        RecipeError: for a file that cannot be read, and for what `recipe_of` refuses.
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
