"""Loads a model by name: a bundled model, a folder, or an id of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..assets import BUNDLED_MODELS, bundled_model, model_path
from .device import Placement
from .runtime import UserError, spinner


def bundled_names(incomplete: str) -> list[str]:
    """The bundled models whose name begins with `incomplete`, for shell completion."""
    return [name for name in BUNDLED_MODELS if name.startswith(incomplete)]


ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="A bundled model, a folder, or an id of the Hugging Face hub. Example: --model runs/mlm-smoke/model",
        autocompletion=bundled_names,
    ),
]


@dataclass(frozen=True)
class Kind:
    """A kind of model that a command can use.

    Args:
        auto_class: The Auto class of transformers that loads it.
        name: Its name in messages: "masked language model".
        ability: What it can do, for messages: "fill masks".
        table: transformers' table of the names of its classes.
        commands: The commands that use it, for messages.
        unused: Prefixes of weights that a checkpoint may lack.
    """

    auto_class: str
    name: str
    ability: str
    table: str
    commands: str
    unused: tuple[str, ...] = ()


MASKED = Kind(
    "AutoModelForMaskedLM",
    "masked language model",
    "fill masks",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "mega fill-mask or mega evaluate",
)
CAUSAL = Kind(
    "AutoModelForCausalLM",
    "causal language model",
    "continue texts",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "mega generate or mega perplexity",
)
PAIRS = Kind(
    "AutoModelForSeq2SeqLM",
    "sequence-to-sequence model",
    "turn texts into others",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "mega text2text or mega evaluate",
)


CLASSIFIER = Kind(
    "AutoModelForSequenceClassification",
    "text classifier",
    "classify texts",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "mega classify",
)
TAGGER = Kind(
    "AutoModelForTokenClassification",
    "classifier of words",
    "tag words",
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "mega classify",
)
HEADS = (PAIRS, MASKED, CAUSAL, CLASSIFIER, TAGGER)
# the trunk of any checkpoint; the pooler is not used
ENCODER = Kind("AutoModel", "model", "give vectors", "MODEL_MAPPING_NAMES", "mega embed", unused=("pooler.",))


@dataclass(frozen=True)
class Location:
    """A model's name, its folder (None for the hub), and whether the hub did not answer."""

    name: str
    folder: Path | None
    cached_only: bool

    @property
    def arguments(self) -> dict[str, Any]:
        """For `from_pretrained`."""
        return {
            "pretrained_model_name_or_path": self.folder or self.name,
            "local_files_only": self.cached_only,
        }


def locate(name: str, option: str = "--model") -> Location:
    """Finds a model; asks the hub once for a name that is neither bundled nor a folder.

    Args:
        name: The model.
        option: The option or argument that names it, for messages.

    Raises:
        UserError: if there is no such model.
    """
    folder = _local_folder(name, option)
    return Location(name, folder, folder is None and not _hub_answers(name, option))


def kind_of(place: Location, *kinds: Kind) -> Kind:
    """The first of `kinds` that fits a model; refuses models that fit none, or were saved with another head.

    A model whose files do not name its kind counts as the first one: loading it then reports any fault.

    Args:
        place: Where the model is.
        kinds: The kinds that a command can use.

    Raises:
        UserError: for a model with another head (the message names the command for it), or of a type without such a
        head.
    """
    import transformers
    from transformers.models.auto import modeling_auto

    import mega_transformers

    try:
        config = transformers.AutoConfig.from_pretrained(**place.arguments)
    except Exception:  # loading the model reports the fault
        return kinds[0]
    for architecture in config.architectures or []:
        own = [kind for kind in HEADS if architecture in getattr(modeling_auto, kind.table).values()]
        for kind in kinds:
            if kind in own:
                return kind
        if own:
            raise UserError(
                f"the model {place.name} is a {own[0].name} ({architecture}) and cannot {_or_else(kinds)}; use it "
                f"with {own[0].commands}"
            )
        if architecture in mega_transformers.__all__ and "For" in architecture:
            raise UserError(
                f"the model {place.name} is a {architecture} and cannot {_or_else(kinds)}; no command uses such a "
                f"model; load it in Python: {architecture}.from_pretrained"
            )
    for kind in kinds:
        if type(config) in getattr(transformers, kind.auto_class)._model_mapping:
            return kind
    raise UserError(
        f"the model {place.name} cannot {_or_else(kinds)}: models of type {config.model_type} have no "
        f"{' or '.join(kind.name for kind in kinds)}"
    )


def _or_else(kinds: tuple[Kind, ...]) -> str:
    return " or ".join(kind.ability for kind in kinds)


@contextmanager
def loading(place: Location) -> Iterator[None]:
    """Shows a spinner while a model's files load, and turns errors into a `UserError`.

    Raises:
        UserError: if the files are missing or damaged.
    """
    try:
        with spinner(f"Loading {place.name}"):
            yield
    except Exception as error:  # any error means a fault in the model's files
        if place.cached_only:
            raise UserError(
                f"cannot load the model {place.name}: there is no such folder, the model hub does not answer (or "
                "HF_HUB_OFFLINE is set), and the cache of earlier downloads lacks some of its files"
            ) from error
        reason = " ".join(str(error).split())
        prefix = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
        raise UserError(f"cannot load the model {place.name}: {prefix}{reason}") from error


def load(place: Location, kind: Kind, placement: Placement) -> tuple[Any, Any]:
    """The model in evaluation mode on its device, and the tokenizer. Call `load_libraries` first.

    Raises:
        UserError: if the files are missing or damaged, do not belong together, or hold another kind of model.
    """
    import transformers

    name = place.name
    with loading(place):
        tokenizer = transformers.AutoTokenizer.from_pretrained(**place.arguments)
        model, loaded = getattr(transformers, kind.auto_class).from_pretrained(
            **place.arguments, dtype=placement.dtype, output_loading_info=True
        )
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise UserError(
            f"the model {name} has no tokenizer: its folder needs tokenizer.json, or vocab.json and merges.txt"
        )
    missing = sorted(key for key in loaded["missing_keys"] if not key.startswith(kind.unused))
    if missing:
        raise UserError(
            f"the model {name} cannot {kind.ability}: its checkpoint lacks {len(missing)} weights of a {kind.name}, "
            f"such as {missing[0]}"
        )
    if getattr(model.config, "input_type", "tokens") != "tokens":
        raise UserError(f"the model {name} reads {model.config.input_type}, not text")
    # an adaptive input has a table for each cluster
    size = getattr(model.get_input_embeddings(), "num_embeddings", model.config.vocab_size)
    if len(tokenizer) > size:
        raise UserError(
            f"the model {name} and its tokenizer do not belong together: {len(tokenizer)} tokens, but embeddings for "
            f"{size}"
        )
    return model.to(placement.device).eval(), tokenizer


def _local_folder(name: str, option: str) -> Path | None:
    """The folder `name`, or that of the bundled model; None if `name` can only be a hub id."""
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{option} {name}: the folder holds no config.json, so it is not a model")
        return path
    if name in BUNDLED_MODELS:
        try:
            return bundled_model(name)
        except ValueError as error:
            raise UserError(f"{option} {name}: {error}; a folder or hub id of a model works too") from None
    if path.exists():
        raise UserError(
            f"{option} {name}: expected a folder with config.json, weights and tokenizer, but this is a file"
        )
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name.strip():
        raise UserError(f"{option} {name!r}: there is no such folder")
    try:
        model_path(name)
    except ValueError as error:
        raise UserError(f"{option} {error}") from None
    return None


def _hub_answers(name: str, option: str) -> bool:
    """Whether the model hub can be reached. Asks once; loading would retry for a minute.

    Raises:
        UserError: if the hub has no such model.
    """
    from huggingface_hub import model_info
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        with spinner("Asking the model hub"):
            model_info(name, timeout=10)
    except (HFValidationError, RepositoryNotFoundError):
        raise UserError(
            f"{option} {name}: there is no such folder, and no such model on the model hub that you may read"
        ) from None
    except Exception:  # no connection, a time-out or offline mode; the exception depends on the HTTP client
        return False
    return True
