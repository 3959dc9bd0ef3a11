"""Readers for data of the Long Range Arena: its public files and folders, MNIST and speech.

Rows have `label`, and `text`, `text` and `text_pair`, or `values`: pixels (uint8, row by row) or sound (float32 in
[-1, 1]). `GENERATORS` make rows without files.
"""

from __future__ import annotations

import functools
import gzip
import math
import pickle
import wave
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import RecipeError
from .lra_generators import GENERATORS, LISTOPS_VOCABULARY, Row, listops_tokenizer

Reader = Callable[[Path], Iterator[Row]]
READERS: dict[str, Reader] = {}
CIFAR_ROW = 1 + 3 * 1024
# empty in the release
EMPTY_IMAGE = ("pathfinder32", "curv_baseline", "imgs", "0", "sample_172.png")


def _reader(read: Reader) -> Reader:
    """Makes `read_name` one of the `READERS`: a file that cannot be opened or is empty raises a RecipeError."""

    @functools.wraps(read)
    def checked(path: Path) -> Iterator[Row]:
        empty = True
        try:
            for row in read(Path(path)):
                empty = False
                yield row
        except (OSError, EOFError, zlib.error) as error:
            raise RecipeError(f"cannot read {path}: {error}") from None
        _check(not empty, path, "it holds no rows")

    READERS[read.__name__.removeprefix("read_")] = checked
    return checked


def _check(right: bool, where: str | Path, wanted: str, found: Any = None) -> None:
    """Refuses an invalid file or line."""
    if not right:
        raise RecipeError(f"{where}: {wanted}" + ("" if found is None else f"; got {str(found)[:80]!r}"))


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a text, each after its name for errors; only a line feed ends a line, since texts hold other
    separators.
    """
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            try:
                yield where, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise RecipeError(f"{where}: it is not valid UTF-8 ({error.reason})") from None


def _files(path: Path, pattern: str) -> list[Path]:
    """A file, or all files below a folder, sorted."""
    return sorted([*path.glob(pattern), *path.glob(f"*/{pattern}")]) if path.is_dir() else [path]


@_reader
def read_listops(path: Path) -> Iterator[Row]:
    """`basic_{train,val,test}.tsv`. Parentheses, which only group, are removed as in the arena's own pipeline."""
    lines = _lines(path)
    for where, line in islice(lines, 1):
        _check(line == "Source\tTarget", where, "it must name the columns Source and Target", line)
    for where, line in lines:
        source, _, target = line.partition("\t")
        words = source.replace("(", "").replace(")", "").split()
        right = bool(words) and {*words} <= {*LISTOPS_VOCABULARY} and target in [*"0123456789"]
        _check(right, where, "it must be an expression of ListOps and a digit", line)
        yield {"text": " ".join(words), "label": int(target)}


@_reader
def read_imdb(path: Path) -> Iterator[Row]:
    """`aclImdb/train` or `aclImdb/test`, or one of its texts; reviews without a label are left out."""
    for file in _files(path, "*.txt"):
        if file.parent.name in ("neg", "pos"):
            yield {"text": "\n".join(line for _, line in _lines(file)), "label": file.parent.name}
        else:
            _check(path.is_dir(), file, "it must lie in a folder neg or pos, which is its label")


@_reader
def read_aan(path: Path) -> Iterator[Row]:
    """`new_aan_pairs.{train,eval,test}.tsv`: label, two ids and two texts, without column names and quotes."""
    for where, line in _lines(path):
        fields = line.split("\t")
        _check(len(fields) == 5, where, f"it must have 5 columns, separated by tabs; got {len(fields)}")
        _check(fields[0] in ("0", "0.0", "1", "1.0"), where, "the label must be 0.0 or 1.0", fields[0])
        yield {"text": fields[3], "text_pair": fields[4], "label": int(fields[0][0])}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles only plain values and arrays, since a pickle can run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            # the function has moved between releases of NumPy; an array refers to the current one
            return np.zeros(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not an array")


@_reader
def read_cifar10(path: Path) -> Iterator[Row]:
    """`data_batch_1.bin` (binary version) or `data_batch_1` (Python version), and so on, converted to grey."""
    with path.open("rb") as file:
        try:
            if path.suffix == ".bin":
                rows = np.frombuffer(file.read(), np.uint8).reshape(-1, CIFAR_ROW)
                labels, pixels = rows[:, 0], rows[:, 1:]
            else:
                batch = _ArrayUnpickler(file, encoding="bytes").load()
                labels, pixels = np.asarray(batch[b"labels"]), batch[b"data"]
            colours = pixels.reshape(len(labels), 3, 1024)
            if pixels.dtype != np.uint8 or labels.dtype.kind not in "iu":
                raise ValueError("its arrays have unexpected types")
        except Exception as error:  # reading any other file may raise any error
            raise RecipeError(f"{path} is not a batch of CIFAR-10: {error}") from None
    for row, (label, channels) in enumerate(zip(labels, colours), start=1):
        _check(0 <= label <= 9, f"{path}, row {row}", "the label must be 0 to 9", label)
        yield {"values": grey(*channels), "label": int(label)}


def grey(red: np.ndarray, green: np.ndarray, blue: np.ndarray) -> np.ndarray:
    """Luma of ITU-R BT.601 in fixed point: equal to the authors' pixels, and within one level of TensorFlow's (the
    arena's).
    """
    red, green, blue = (colour.astype(np.uint32) for colour in (red, green, blue))
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).astype(np.uint8)


@_reader
def read_pathfinder(path: Path) -> Iterator[Row]:
    """A folder such as `pathfinder32/curv_contour_length_14`, or one of its text files `metadata/*.npy`."""
    folder, files = path.parent.parent, [path]
    if path.is_dir():
        folder, files = path, sorted((path / "metadata").glob("*.npy"), key=lambda file: (len(file.name), file.name))
    for file in files:
        for where, line in _lines(file):
            words = line.split()
            right = len(words) >= 4 and words[3] in ("0", "1")
            _check(right, where, "it must be folder, file, number and label", line)
            image = folder / words[0] / words[1]
            if image.absolute().parts[-len(EMPTY_IMAGE) :] != EMPTY_IMAGE:
                yield {"values": _pixels(image, where), "label": int(words[3])}


def _pixels(path: Path, where: str) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.array(image.convert("L")).reshape(-1)
    except Exception as error:  # Pillow raises errors of many kinds for damaged files
        raise RecipeError(f"{where}: cannot read the image {path}: {error}") from None


@_reader
def read_idx(path: Path) -> Iterator[Row]:
    """`train-images-idx3-ubyte` and such, `.gz` too, with `train-labels-idx1-ubyte` beside it."""
    _check("images" in path.name, path, "its name must contain images; the file of its labels has labels instead")
    plain = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1").removesuffix(".gz"))
    images, labels = _idx_array(path, 3), _idx_array(plain if plain.exists() else Path(f"{plain}.gz"), 1)
    _check(len(images) == len(labels), path, f"it has {len(images)} images, but {len(labels)} labels beside it")
    for image, label in zip(images, labels):
        yield {"values": image.reshape(-1), "label": int(label)}


def _idx_array(path: Path, dimensions: int) -> np.ndarray:
    with _opened(path) as file:
        data = file.read()
    start = 4 + 4 * dimensions
    shape = [int.from_bytes(data[at : at + 4], "big") for at in range(4, start, 4)]
    right = data[:4] == bytes([0, 0, 8, dimensions]) and len(data) == start + math.prod(shape)
    _check(right, path, f"it is not an idx file with {dimensions} dimensions of bytes, or it is cut off")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


@_reader
def read_wav(path: Path) -> Iterator[Row]:
    """A folder with one folder per class, the folder of one class, or one file; the folder of a file is its label.

    Folders whose names begin with `_`, such as Speech Commands' background noise, are left out.
    """
    for file in _files(path, "*.wav"):
        if not (path.is_dir() and file.parent.name.startswith("_")):
            yield {"values": wav_samples(str(file), str(file)), "label": file.parent.name}


def wav_samples(file: str | IO[bytes], where: str) -> np.ndarray:
    """The samples of a wav file, as float32 in [-1, 1].

    Raises:
        RecipeError: for a file that is not mono PCM sound; the message begins with `where`.
    """
    try:
        with wave.open(file) as sound:
            channels, size = sound.getnchannels(), sound.getsampwidth()
            data = sound.readframes(sound.getnframes())
    except (wave.Error, EOFError) as error:
        raise RecipeError(f"{where} is not PCM sound: {error}") from None
    right = channels == 1 and size in (1, 2, 4) and len(data) > 0 and len(data) % size == 0
    _check(right, where, "it must be mono sound of 8, 16 or 32 bits, not empty and not cut off")
    # samples of one byte are unsigned, others are signed
    samples = np.frombuffer(data, "u1" if size == 1 else f"<i{size}") / 2.0 ** (8 * size - 1)
    return (samples - (size == 1)).astype(np.float32)


__all__ = ["GENERATORS", "READERS", "Reader", "Row", "listops_tokenizer"]
