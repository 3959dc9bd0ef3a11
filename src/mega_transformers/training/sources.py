"""Sources of rows in recipes, and what every part of a recipe has in common: keys are checked by pydantic."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ..errors import did_you_mean
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


def among(known: Collection[str]) -> AfterValidator:
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

    `train`, `validation`, `test` and `divide` name files below the data folder (globs and `.gz` work), splits of the
    data set, or what the reader takes: a generator the number of rows, a reader of a Python package its name.

    Args:
        name: Name for the model card.
        license: Licence of the rows, for the model card.
        attribution: Whom to credit, for the model card.
        dataset: Name of a data set on the hub.
        config: Configuration of that data set.
        streaming: Whether training rows are read during training instead of all at once before it.
        reader: Name of a reader, such as `cmudict`; None for files of text, tsv, csv, json, jsonl or parquet.
        options: Keyword arguments of the reader, such as the seed of a generator.
        train: Rows to train on.
        validation: Rows to evaluate on during training.
        test: Rows to evaluate the finished model on.
        divide: Rows to divide into the three roles, as `split` says.
        group: Column whose equal rows stay in one role; None for the first column of the task.
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
    """Running text, for `masked-lm` and `causal-lm`.

    Args:
        text_column: Column with the text, for rows that have columns.
        clean: Cleaners to apply to every file or row, in this order.
        documents: How a file or row is cut into documents.
    """

    text_column: str = "text"
    clean: Annotated[Strings, among(CLEANERS)] = []
    documents: Literal["whole", "lines", "paragraphs", "sections", "articles"] = "whole"

    columns = ("text",)

    @property
    def column_names(self) -> dict[str, Column]:
        """As `Source.column_names`."""
        return {"text": self.text_column} | ({} if self.group is None else {"group": self.group})


class PairSource(Source):
    """Pairs of a source text and a target text, for `text-to-text`.

    Args:
        source: Column with the text that the model reads.
        target: Column with the text that it learns to write.
    """

    source: Column = "source"
    target: Column = "target"
    columns = ("source", "target")


class LabelledSource(Source):
    """Inputs and their labels, for `sequence-classification`.

    Args:
        values: Column with numbers, images or sound, for `input: values` and `input: pixels`.
        text: Column with the text; `text` unless there are `values`.
        text_pair: Column with a second text, which the first one is compared with.
        label: Column with the label: a class (name or number), a number to predict, or a list of either, which csv
            and tsv files cannot hold.
    """

    values: Column | None = None
    text: Column | None = Field(default_factory=lambda given: "text" if given.get("values") is None else None)
    text_pair: Column | None = None
    label: Column = "label"

    columns = ("text", "text_pair", "values", "label")


class TaggedSource(Source):
    """Sentences as lists of words with a tag for each word, for `token-classification`.

    Args:
        tokens: Column with the list of words.
        tags: Column with the list of tags.
    """

    tokens: str = "tokens"
    tags: str = "tags"

    columns = ("tokens", "tags")


class SentenceSource(Source):
    """Texts with the same meaning, or pairs with a similarity, for `sentence-embedding`.

    Args:
        anchor: Column with a text.
        positive: Column with a text of the same meaning, or the other text of a pair with a `score`.
        negative: Column with a text of another meaning.
        score: Column with the similarity of the pair, from 0 to 1.
    """

    anchor: Column = "anchor"
    positive: Column = "positive"
    negative: Column | None = None
    score: Column | None = None

    columns = ("anchor", "positive", "negative", "score")
