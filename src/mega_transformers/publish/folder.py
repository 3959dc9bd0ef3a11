"""Reads a model's folder completely, and refuses it if anything in it is damaged or missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

import mega_transformers

from ..convert.conversion import TARGET
from ..convert.reading import read_json
from ..convert.transformers_folder import CONFIG, GENERATION, read_weights
from ..convert.writing import WEIGHTS, check_output
from .errors import PublishError

MODEL_TYPES = ("mega", "mega_seq2seq", "encoder-decoder")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
HALF = (torch.float16, torch.bfloat16)

Stage = Callable[[str], None]
"""Called with the name of each stage."""


@dataclass
class Folder:
    """The contents of a folder.

    Args:
        path: The folder.
        raw: Its config.json.
        model: The model, in float32 and ready to predict.
        dtypes: The stored dtype of its weights, by name.
        tokenizers: Tokenizers by the folder within it, "" for the model's own.
    """

    path: Path
    raw: dict[str, Any]
    model: Any
    dtypes: dict[str, torch.dtype]
    tokenizers: dict[str, Any]

    @property
    def architecture(self) -> str:
        """Name of the model's class."""
        return type(self.model).__name__

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, or None."""
        return self.tokenizers.get("")


def model_classes() -> dict[str, type[Any]]:
    """The classes that `architectures` of config.json can name."""
    ours = (getattr(mega_transformers, name) for name in mega_transformers.__all__)
    models = [each for each in ours if isinstance(each, type) and issubclass(each, transformers.PreTrainedModel)]
    models.remove(mega_transformers.MegaPreTrainedModel)
    return {each.__name__: each for each in (*models, transformers.EncoderDecoderModel)}


def open_folder(path: Path, stage: Stage = lambda _: None) -> Folder:
    """Reads a folder, with every file of weights and tokenizers in it.

    Args:
        path: A folder with config.json.
        stage: Called with the name of each stage.

    Raises:
        ConversionError: for a folder that is damaged or not a Mega model of this package; the message names the file.
    """
    if not path.is_dir():
        raise PublishError(f"there is no folder {path}")
    if not (path / CONFIG).is_file():
        raise PublishError(f"{path} holds no {CONFIG}: it is not a model, or it needs `mega convert` first")
    raw = read_json(path / CONFIG)
    model_class = _class_of(path, raw)
    dtypes = {name: tensor.dtype for name, tensor in _checked_weights(path, stage).items()}
    stage("Loading the model")
    arguments = {}
    if model_class is mega_transformers.MegaModel:
        arguments["add_pooling_layer"] = "pooler.dense.weight" in dtypes
    try:
        config = model_class.config_class.from_pretrained(path)
    except Exception as error:  # any error means a fault in the file
        raise _damaged(path / CONFIG, "the configuration", error) from error
    try:
        model, loading = model_class.from_pretrained(
            path, config=config, dtype=torch.float32, output_loading_info=True, **arguments
        )
    except Exception as error:  # any error means a fault in the folder
        raise _damaged(path, "the model", error) from error
    amiss = [f"{kind}: {', '.join(sorted(map(str, names))[:3])}" for kind, names in loading.items() if names]
    if amiss:
        raise PublishError(f"{path} does not hold the weights of a {model_class.__name__} ({'; '.join(amiss)})")
    tokenizers = {
        where: _tokenizer(path / where, model)
        for where in ("", TARGET)
        if any((path / where / name).is_file() for name in TOKENIZER_FILES)
    }
    return Folder(path, raw, model.eval(), dtypes, tokenizers)


def check_places(source: Path, output: Path, force: bool) -> None:
    """Refuses to replace anything but a model, and to write into the source.

    Raises:
        ConversionError: for such an output.
    """
    if source.resolve() in output.resolve().parents:
        raise PublishError(f"{output} is in the source folder {source}; name a folder outside of it")
    check_output(output, source, force)


def stored_weights(folder: Folder) -> dict[str, Tensor]:
    """The model's tensors in their stored precision, without tied and computed ones."""
    tied = folder.model.all_tied_weights_keys
    tensors = folder.model.state_dict().items()
    return {name: _as_stored(tensor, folder.dtypes.get(name)) for name, tensor in tensors if name not in tied}


def _as_stored(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A tensor in half precision if it was stored so."""
    return tensor.to(dtype) if dtype in HALF and tensor.is_floating_point() else tensor


def listed(output: Path, known: dict[str, str]) -> dict[str, tuple[int, str]]:
    """Every file of a written folder -> its bytes and its contents, from `known` or by its name."""
    known = {CONFIG: "configuration", GENERATION: "generation settings", WEIGHTS: "weights", **known}
    paths = sorted(path for path in output.rglob("*") if path.is_file())
    names = {path.relative_to(output).as_posix(): path.stat().st_size for path in paths}
    return {name: (size, known.get(name, "tokenizer")) for name, size in names.items()}


def write_weights(tensors: dict[str, Tensor], folder: Path) -> int:
    """Writes model.safetensors; returns its bytes.

    Raises:
        PublishError: if that fails, usually for lack of disk space.
    """
    path = folder / WEIGHTS
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    except Exception as error:  # safetensors raises its own error for a full disk, not an OSError
        size = sum(tensor.nbytes for tensor in tensors.values())
        raise PublishError(f"{folder.parent}: {size:,} bytes of weights cannot be written: {error}") from error
    return path.stat().st_size


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Saves a tokenizer.

    Raises:
        PublishError: if that fails, usually for lack of disk space.
    """
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # the tokenizers library raises its own error for a full disk, not an OSError
        raise PublishError(f"{folder}: the tokenizer cannot be written: {error}") from error


def _class_of(path: Path, raw: dict[str, Any]) -> type[Any]:
    """The class that config.json names."""
    kind, known = raw.get("model_type"), model_classes()
    sides = [raw.get(side) for side in ("encoder", "decoder")] if kind == "encoder-decoder" else []
    foreign = any(not isinstance(side, dict) or side.get("model_type") != "mega" for side in sides)
    if kind not in MODEL_TYPES or foreign:
        raise PublishError(
            f"{path / CONFIG}: model_type={kind!r} is not a Mega model; the known types are {', '.join(MODEL_TYPES)}"
        )
    named = raw.get("architectures")
    if not isinstance(named, list) or len(named) != 1 or named[0] not in known:
        raise PublishError(f"{path / CONFIG}: architectures={named} must name one of {', '.join(sorted(known))}")
    return known[named[0]]


def _checked_weights(path: Path, stage: Stage) -> dict[str, Tensor]:
    """All weights of a folder.

    Raises:
        ConversionError: for files that are damaged or missing, and for numbers that are not finite.
    """

    def progress(what: str, done: int, total: int) -> None:
        stage(f"{what} ({100 * done // max(total, 1)}%)")

    stage("Reading the weights")
    tensors = read_weights(path, progress)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()) and "_float_tensor" not in name:
            raise PublishError(f"{path}: {name} holds inf or nan, so the file is damaged")
    return tensors


def _tokenizer(path: Path, model: Any) -> Any:
    """The tokenizer of a folder.

    Raises:
        ConversionError: if it is damaged or belongs to another model.
    """
    config = model.config if model.config.model_type == "mega" else mega_transformers.MegaConfig()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, config=config)
    except Exception as error:  # any error means a fault in the tokenizer's files
        raise _damaged(path, "the tokenizer", error) from error
    sides = [getattr(model.config, side, model.config) for side in ("encoder", "decoder")]
    size = max(side.vocab_size for side in sides)
    if len(tokenizer) > size:
        raise PublishError(f"{path}: the tokenizer has {len(tokenizer)} tokens, but the model only {size}")
    return tokenizer


def _damaged(path: Path, what: str, error: Exception) -> PublishError:
    return PublishError(f"{path}: {what} cannot be loaded: {' '.join(str(error).split()) or type(error).__name__}")
