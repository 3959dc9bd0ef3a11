"""The Long Range Arena as data: readers of one file or folder of its public parts, MNIST and speech.

Rows have `label`, and `text`, `text` and `text_pair`, or `values`: pixels (uint8, row by row) or sound (float32 in
[-1, 1]). `GENERATORS` make rows without any files.
"""

from __future__ import annotations

import functools
import gzip
import math
import pickle
import wave
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import RecipeError
from .lra_generators import GENERATORS, LISTOPS_VOCABULARY, Row, listops_tokenizer

Reader = Callable[[Path], Iterator[Row]]

AAN_LABELS = {"0": 0, "0.0": 0, "1": 1, "1.0": 1}
CIFAR_ROW = 1 + 3 * 1024
# it has no bytes in the release
EMPTY_IMAGE = ("pathfinder32", "curv_baseline", "imgs", "0", "sample_172.png")


def _reader(read: Reader) -> Reader:
    """`read` with a RecipeError for what cannot be opened, and for what holds nothing."""

    @functools.wraps(read)
    def checked(path: Path) -> Iterator[Row]:
        empty = True
        try:
            for row in read(Path(path)):
                empty = False
                yield row
        except (OSError, EOFError, zlib.error) as error:
            raise RecipeError(f"cannot read {path}: {error}") from None
        if empty:
            raise RecipeError(f"{path} holds no rows")

    return checked


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a text with their numbers; only a line feed ends one, since texts may hold other such characters."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise RecipeError(f"{path}, line {number}: it is not UTF-8 ({error.reason})") from None


@_reader
def read_listops(path: Path) -> Iterator[Row]:
    """`basic_{train,val,test}.tsv`. Parentheses, which only group in pairs, go as in the arena's own pipeline."""
    for number, line in _lines(path):
        source, _, target = line.partition("\t")
        words = source.replace("(", "").replace(")", "").split()
        if number == 1:
            if (source, target) != ("Source", "Target"):
                raise RecipeError(f"{path}, line 1: it must name the columns Source and Target; got {line[:80]!r}")
            continue
        if not words or not set(words).issubset(LISTOPS_VOCABULARY) or target not in list("0123456789"):
            raise RecipeError(f"{path}, line {number}: it is no expression of ListOps and a digit; got {line[:80]!r}")
        yield {"text": " ".join(words), "label": int(target)}


@_reader
def read_imdb(path: Path) -> Iterator[Row]:
    """`aclImdb/train` or `aclImdb/test`, or one of its texts; reviews without a label are left out."""
    files = [path]
    if path.is_dir():
        files = [file for label in ("neg", "pos") for file in sorted((path / label).glob("*.txt"))]
    for file in files:
        if file.parent.name not in ("neg", "pos"):
            raise RecipeError(f"{file} must lie in a folder neg or pos, which is its label")
        yield {"text": "\n".join(line for _, line in _lines(file)), "label": file.parent.name}


@_reader
def read_aan(path: Path) -> Iterator[Row]:
    """`new_aan_pairs.{train,eval,test}.tsv`: label, two ids and two texts, without names of columns and quotes."""
    for number, line in _lines(path):
        fields = line.split("\t")
        if len(fields) != 5:
            raise RecipeError(f"{path}, line {number}: it must have 5 columns, separated by tabs; got {len(fields)}")
        if fields[0] not in AAN_LABELS:
            raise RecipeError(f"{path}, line {number}: the label must be 0.0 or 1.0; got {fields[0][:80]!r}")
        yield {"text": fields[3], "text_pair": fields[4], "label": AAN_LABELS[fields[0]]}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles plain values and arrays only: a pickle may otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            # the function has moved between releases of NumPy; an array knows where it is
            return np.zeros(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array")


@_reader
def read_cifar10(path: Path) -> Iterator[Row]:
    """`data_batch_1.bin` (the binary version), or `data_batch_1` (the Python version), and so on; in grey."""
    try:
        if path.suffix == ".bin":
            rows = np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, CIFAR_ROW)
            labels, pixels = rows[:, 0], rows[:, 1:]
        else:
            with path.open("rb") as file:
                batch = _ArrayUnpickler(file, encoding="bytes").load()
            labels, pixels = np.asarray(batch[b"labels"]), batch[b"data"]
        if pixels.shape != (len(labels), CIFAR_ROW - 1) or pixels.dtype != np.uint8 or labels.dtype.kind not in "iu":
            raise ValueError("its arrays have other shapes or types")
    except OSError:
        raise
    except Exception as error:  # what is no such pickle may raise anything
        raise RecipeError(f"{path} is no batch of CIFAR-10: {error}") from None
    for row, (label, colours) in enumerate(zip(labels, pixels), start=1):
        if not 0 <= label <= 9:
            raise RecipeError(f"{path}, row {row}: the label must be 0 to 9; got {label}")
        yield {"values": grey(*colours.reshape(3, -1)), "label": int(label)}


def grey(red: np.ndarray, green: np.ndarray, blue: np.ndarray) -> np.ndarray:
    """Luma of ITU-R BT.601 in fixed point: the authors' pixels, and TensorFlow's (the arena's) within one level."""
    red, green, blue = (colour.astype(np.uint32) for colour in (red, green, blue))
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).astype(np.uint8)


@_reader
def read_pathfinder(path: Path) -> Iterator[Row]:
    """A folder such as `pathfinder32/curv_contour_length_14`, or one of its files `metadata/*.npy`, which are text."""
    folder, files = path.parent.parent, [path]
    if path.is_dir():
        folder, files = path, sorted((path / "metadata").glob("*.npy"), key=lambda file: (len(file.name), file.name))
    for file in files:
        for number, line in _lines(file):
            words, where = line.split(), f"{file}, line {number}"
            if len(words) < 4 or words[3] not in ("0", "1"):
                raise RecipeError(f"{where}: it must be folder, file, number and label; got {line[:80]!r}")
            image = folder / words[0] / words[1]
            if image.absolute().parts[-len(EMPTY_IMAGE) :] != EMPTY_IMAGE:
                yield {"values": _pixels(image, where), "label": int(words[3])}


def _pixels(path: Path, where: str) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError:
        raise RecipeError("images are read with Pillow; install it: pip install pillow") from None
    try:
        with Image.open(path) as image:
            return np.array(image.convert("L")).reshape(-1)
    except Exception as error:  # Pillow raises errors of many kinds for damaged files
        raise RecipeError(f"{where}: cannot read the image {path}: {error}") from None


@_reader
def read_idx(path: Path) -> Iterator[Row]:
    """`train-images-idx3-ubyte` and such, `.gz` too, with `train-labels-idx1-ubyte` beside it."""
    if "images" not in path.name:
        raise RecipeError(f"{path} must have images in its name, in whose place its labels have labels")
    name = path.name.replace("images", "labels").replace("idx3", "idx1").removesuffix(".gz")
    plain, packed = path.with_name(name), path.with_name(f"{name}.gz")
    images, labels = _idx_array(path, 3), _idx_array(plain if plain.exists() else packed, 1)
    if len(images) != len(labels):
        raise RecipeError(f"{path} has {len(images)} images, but {len(labels)} labels beside it")
    for image, label in zip(images, labels):
        yield {"values": image.reshape(-1), "label": int(label)}


def _idx_array(path: Path, dimensions: int) -> np.ndarray:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    start = 4 + 4 * dimensions
    shape = [int.from_bytes(data[at : at + 4], "big") for at in range(4, start, 4)]
    if data[:4] != bytes([0, 0, 8, dimensions]) or len(data) != start + math.prod(shape):
        raise RecipeError(f"{path} is no idx file of {dimensions} dimensions of bytes, or it is cut off")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


@_reader
def read_wav(path: Path) -> Iterator[Row]:
    """A folder with a folder per class, that of one class, or one file: the folder that a file lies in is its label.

    Folders whose names begin with `_`, as that of Speech Commands' background noise, are left out.
    """
    files = [path]
    if path.is_dir():
        below = [*path.glob("*.wav"), *path.glob("*/*.wav")]
        files = sorted(file for file in below if not file.parent.name.startswith("_"))
    for file in files:
        yield {"values": wav_samples(str(file), str(file)), "label": file.parent.name}


def wav_samples(file: str | IO[bytes], where: str) -> np.ndarray:
    """The samples of a wav file, as float32 in [-1, 1].

    Raises:
        RecipeError: for what is no mono sound in PCM, beginning with `where`.
    """
    try:
        with wave.open(file) as sound:
            kind = sound.getnchannels(), sound.getsampwidth()
            data = sound.readframes(sound.getnframes())
    except (wave.Error, EOFError) as error:
        raise RecipeError(f"{where} is no sound in PCM: {error}") from None
    if kind not in ((1, 1), (1, 2), (1, 4)) or not data or len(data) % kind[1]:
        raise RecipeError(f"{where} must be a mono sound of 8, 16 or 32 bits, and not empty or cut off")
    # samples of one byte have no sign, others do
    samples, half = np.frombuffer(data, "u1" if kind[1] == 1 else f"<i{kind[1]}"), 2.0 ** (8 * kind[1] - 1)
    return (samples / half - (kind[1] == 1)).astype(np.float32)


READERS: dict[str, Reader] = {
    "listops": read_listops,
    "imdb": read_imdb,
    "aan": read_aan,
    "cifar10": read_cifar10,
    "pathfinder": read_pathfinder,
    "idx": read_idx,
    "wav": read_wav,
}

__all__ = ["GENERATORS", "READERS", "Reader", "Row", "listops_tokenizer"]
