"""Reads files of unknown origin: never runs their code, and detects damage where the format allows it.

- A `.pt` or `.bin` file is a zip archive of a pickle and of tensors. Its checksums are compared first, which
`torch.load` does not do; then `torch.load` reads it with `weights_only=True`, which allows only tensors, plain data
and `ALLOWED`.
- `model_args.pkl` is a bare pickle. Its classes become inert bags of attributes; nothing is imported.
- safetensors and JSON hold data only; neither has checksums.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from .errors import ConversionError

Progress = Callable[[str, int, int], None]
"""Called with the name of the stage, how much is done, and the total."""

BLOCK = 1 << 20
MAX_SETTINGS = 1 << 24
"""The most bytes of a file of settings."""


class Inert:
    """A placeholder for an object that no conversion needs: accepts any arguments and does nothing."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# fairseq's `extra_state` holds numpy numbers
ALLOWED: list[Any] = [
    argparse.Namespace,
    (Inert, "numpy.dtype"),
    (Inert, "numpy.core.multiarray.scalar"),
    (Inert, "numpy._core.multiarray.scalar"),
]


def read_torch(path: Path, progress: Progress) -> Any:
    """The contents of a file of `torch.save`; tensors stay in the file until they are used, where its format allows
    it.

    Raises:
        ConversionError: for a file that is damaged, in another format, or asks for anything but data.
    """
    zipped = _starts_with(path, b"PK\x03\x04")
    if zipped:
        check_archive(path, progress)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(ALLOWED):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", mmap=zipped, weights_only=True)
    except Exception as error:  # any error means a fault in the file
        # PyTorch's message also advises to load the file unsafely
        reason = error.__context__ if isinstance(error.__context__, pickle.UnpicklingError) else error
        wanted = re.search(r"GLOBAL ([\w.]+)", str(reason))
        if wanted is not None:
            name = wanted.group(1)
            raise _refusal(path, name if "." in name else f"builtins.{name}") from error
        raise _damaged(path, "PyTorch file", reason) from error


def check_archive(path: Path, progress: Progress) -> None:
    """Compares the checksums of all entries of a zip archive of `torch.save`.

    Raises:
        ConversionError: names the damaged entry.
    """
    size, done = path.stat().st_size, 0
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = {entry.filename for entry in entries}
            if len(names) < len(entries):
                raise zipfile.BadZipFile("two entries have the same name")
            for entry in entries:
                if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                    raise zipfile.BadZipFile(f"{entry.filename} is compressed, which PyTorch never does")
                with archive.open(entry) as file:
                    while block := file.read(BLOCK):
                        done += len(block)
                        progress("Comparing checksums", done, size)
    except Exception as error:
        raise _damaged(path, "PyTorch file", error) from error
    progress("Comparing checksums", size, size)


class Bag:
    """An object of a class that was not imported: only its attributes."""


class _BagType(type):
    """The stand-in for classes in a pickle: an object is built from its state, never by a call with arguments."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:
            raise _RefusedError(f"{cls.__module__}.{cls.__qualname__}")
        return super().__call__()


class _RefusedError(Exception):
    """A pickle asks to run code."""


class _BagUnpickler(pickle.Unpickler):
    """Reads plain data, and objects as bags of attributes."""

    def find_class(self, module: str, name: str) -> Any:
        plain = PLAIN.get((module.replace("__builtin__", "builtins").replace("copy_reg", "copyreg"), name))
        if plain is not None:
            return plain
        if module.partition(".")[0] in RUNS:
            raise _RefusedError(f"{module}.{name}")
        return _BagType(name, (Bag,), {"__module__": module})

    def persistent_load(self, key: Any) -> Any:
        raise _RefusedError("a persistent object")


def _reconstruct(kind: Any, base: Any, state: Any) -> Any:
    """`copyreg._reconstructor` for bags."""
    if not isinstance(kind, _BagType) or base is not object or state is not None:
        raise _RefusedError(f"{getattr(kind, '__module__', '?')}.{getattr(kind, '__qualname__', kind)}")
    return kind()


# the functions that pickles of plain objects need, in any protocol
PLAIN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): dict,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "object"): object,
    ("copyreg", "_reconstructor"): _reconstruct,
}
# modules whose mere name in a pickle means an attack
RUNS = ("builtins", "__builtin__", "os", "posix", "nt", "sys", "subprocess", "shutil", "importlib", "runpy", "socket")


def read_settings(path: Path) -> Any:
    """The contents of a pickle of settings: plain data, with bags in place of objects.

    Raises:
        ConversionError: for a file that is damaged, in another format, or asks to run code.
    """
    if path.stat().st_size > MAX_SETTINGS:
        raise ConversionError(f"{path} has {path.stat().st_size:,} bytes, too many for a pickle of settings")
    try:
        with path.open("rb") as file:
            return _BagUnpickler(file, encoding="latin1").load()
    except _RefusedError as error:
        raise _refusal(path, str(error)) from error
    except Exception as error:
        raise _damaged(path, "pickle of settings", error) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ConversionError: for any other contents.
    """
    if path.stat().st_size > MAX_SETTINGS:
        raise ConversionError(f"{path} has {path.stat().st_size:,} bytes, too many for settings")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise _damaged(path, "JSON file", error) from error
    if not isinstance(value, dict):
        raise ConversionError(f"{path} must hold a JSON object, but holds {type(value).__name__}")
    return value


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file; they stay in the file until they are used.

    Raises:
        ConversionError: for a file that is damaged or in another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise _damaged(path, "safetensors file", error) from error


def read_state(value: Any, where: str) -> dict[str, Tensor]:
    """A state dict whose values are plain tensors, with the prefixes of wrappers removed from its names.

    Raises:
        ConversionError: for any other contents.
    """
    if not isinstance(value, dict) or not value:
        raise ConversionError(f"{where} must be a dict of tensors, but is {_described(value)}")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ConversionError(f"{where} must be a dict of tensors, but holds {name!r}: {_described(tensor)}")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
            raise ConversionError(f"{where}: {name} is not a plain tensor of numbers")
    for wrapper in ("module.", "_orig_mod."):
        if all(name.startswith(wrapper) for name in value):
            value = {name.removeprefix(wrapper): tensor for name, tensor in value.items()}
    return {name: tensor.detach() for name, tensor in value.items()}


def _starts_with(path: Path, start: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(start)) == start


def _described(value: Any) -> str:
    return "an empty dict" if isinstance(value, dict) and not value else type(value).__name__


def _refusal(path: Path, wanted: str) -> ConversionError:
    return ConversionError(
        f"{path} asks for {wanted}, which is neither a tensor nor plain data. None of its code was run; do not load "
        "this file elsewhere unless you trust its author"
    )


def _damaged(path: Path, kind: str, error: BaseException) -> ConversionError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ConversionError(f"{path} is damaged or not a {kind}: {reason[:200]}")
