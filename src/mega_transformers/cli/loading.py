"""Models by the name a user gives: a bundled one, a folder, or an id of the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..assets import BUNDLED_MODELS, bundled_model
from .device import Placement
from .runtime import UserError, spinner


@dataclass(frozen=True)
class Kind:
    """What a command needs a model for.

    Args:
        auto_class: The Auto class of transformers that loads it.
        name: What it is, for messages: "masked language model".
        ability: What it can do: "fill masks".
    """

    auto_class: str
    name: str
    ability: str


@dataclass(frozen=True)
class Location:
    """Where a model is: the name that was given, its folder or None for the hub, and whether the hub is silent."""

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


def locate(name: str, kind: Kind) -> Location:
    """Finds a model; asks the hub once for what is neither bundled nor a folder.

    Raises:
        UserError: if there is no such model.
    """
    folder = _local_folder(name, kind)
    return Location(name, folder, folder is None and not _hub_answers(name))


def check_kind(place: Location, kind: Kind, remedy: str | None = None) -> None:
    """Refuses models that transformers would load as another kind than they are, or not at all.

    Args:
        place: Where the model is.
        kind: What is needed: a causal language model.
        remedy: What else to do with a masked language model, for a kind that transformers would make of one.

    Raises:
        UserError: for a masked language model, and for one of a type that has no such kind.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(**place.arguments)
    except Exception:  # loading the model tells what is wrong
        return
    for architecture in config.architectures or []:
        if remedy is not None and architecture.endswith("ForMaskedLM"):
            raise UserError(
                f"the model {place.name} is a masked language model ({architecture}), which sees the words it is to "
                f"predict; give a {kind.name}, or {remedy}"
            )
    if type(config) not in getattr(transformers, kind.auto_class)._model_mapping:
        raise UserError(
            f"the model {place.name} cannot {kind.ability}: models of the type {config.model_type} have no {kind.name}"
        )


def load(place: Location, kind: Kind, placement: Placement) -> tuple[Any, Any]:
    """Model, ready to predict on its device, and tokenizer. `load_libraries` comes before.

    Raises:
        UserError: if the files are missing or damaged, do not belong together, or are of another kind of model.
    """
    import transformers

    name = place.name
    try:
        with spinner(f"Loading {name}"):
            tokenizer = transformers.AutoTokenizer.from_pretrained(**place.arguments)
            model, loading = getattr(transformers, kind.auto_class).from_pretrained(
                **place.arguments, dtype=placement.dtype, output_loading_info=True
            )
    except Exception as error:  # whatever it is, the fault is in the model's files
        if place.cached_only:
            raise UserError(
                f"cannot load the model {name}: there is no such folder, the model hub does not answer (or "
                "HF_HUB_OFFLINE is set), and its files are not complete in the cache of earlier downloads"
            ) from error
        reason = " ".join(str(error).split())
        prefix = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
        raise UserError(f"cannot load the model {name}: {prefix}{reason}") from error
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise UserError(
            f"the model {name} has a tokenizer without vocabulary: tokenizer.json, or vocab.json and merges.txt, are "
            "missing in its folder"
        )
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise UserError(
            f"the model {name} cannot {kind.ability}: its checkpoint lacks {len(missing)} weights of a {kind.name}, "
            f"such as {missing[0]}"
        )
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise UserError(
            f"the model {name} and its tokenizer do not belong together: {len(tokenizer)} tokens, but embeddings for "
            f"{model.get_input_embeddings().num_embeddings}"
        )
    return model.to(placement.device).eval(), tokenizer


def _local_folder(name: str, kind: Kind) -> Path | None:
    """The folder that `name` says, or of the bundled model; None for what can only be a hub id."""
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"--model {name}: the folder holds no config.json, so it is no model")
        return path
    if name in BUNDLED_MODELS:
        try:
            return bundled_model(name)
        except ValueError as error:
            raise UserError(f"{error}; --model takes any folder or hub id of a {kind.name}") from None
    if path.exists():
        raise UserError(f"--model {name}: expected a folder with config.json, weights and tokenizer, got a file")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name.strip():
        raise UserError(f"--model {name!r}: there is no such folder")
    return None


def _hub_answers(name: str) -> bool:
    """Whether the model hub can be reached. Asks once, where loading would try again for a minute.

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
            f"--model {name}: there is no such folder, and the model hub has no such model, or none you may read"
        ) from None
    except Exception:  # no connection, a time-out or offline mode, in the words of whichever HTTP client
        return False
    return True
