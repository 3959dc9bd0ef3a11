"""Files with flipped, lost, repeated and foreign bytes: an error in words, or the right weights.

`MEGA_CORRUPTIONS=200` damages every sample that often; by default a few times.
"""

from __future__ import annotations

import os
import pathlib
import random
import shutil
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from safetensors.torch import load_file
from samples import CKPT, TRANSFORMERS
from test_masked_lm_folder import save_folder
from transformers.utils import logging

from mega_transformers.convert import ConversionError, convert_checkpoint

COUNT = int(os.environ.get("MEGA_CORRUPTIONS", "8"))
SECONDS = 30
SAMPLES = [
    *sorted(path.name for path in CKPT.glob("*.pt")),
    "pretrained",
    "masked_lm_sharded_types",
    "model_inputs_embeds_bin",
    "causal_lm_cross_softmax_simple",
    "encoder_decoder_model",
]
CHECKED = (".pt", ".bin")
"""Formats with checksums."""


def damage(data: bytes, dice: random.Random) -> bytes:
    """`data` with one kind of damage somewhere."""
    size, kind = len(data), dice.choice(["flip", "flip", "cut", "repeat", "exchange", "insert", "zero"])
    place = dice.randrange(size)
    start, end = sorted(dice.randrange(size) for _ in range(2))
    length = dice.randrange(1, 64)
    changed = bytearray(data)
    if kind == "flip":
        for _ in range(dice.choice([1, 1, 1, 3, 10])):
            changed[dice.randrange(size)] ^= 1 << dice.randrange(8)
    elif kind == "cut":
        del changed[place:]
    elif kind == "repeat":
        changed[place:place] = data[start:end]
    elif kind == "exchange":
        changed[place : place + end - start] = data[start:end]
    elif kind == "insert":
        changed[place:place] = dice.randbytes(length)
    else:
        changed[place : place + length] = bytes(length)
    return bytes(changed)


@contextmanager
def limited_time() -> Iterator[None]:
    def late(*_) -> None:
        raise TimeoutError(f"a conversion took more than {SECONDS} seconds")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def contents(folder: pathlib.Path) -> dict:
    return {name: tensor.tolist() for name, tensor in load_file(folder / "model.safetensors").items()}


@pytest.fixture
def sample(tmp_path):
    """Copies a sample, and tells which of its files may be damaged."""

    def copy(name: str) -> tuple[pathlib.Path, list[pathlib.Path]]:
        path = tmp_path / name
        if name == "pretrained":
            save_folder(path)
        elif name.endswith(".pt"):
            shutil.copy(CKPT / name, path)
            return path, [path]
        else:
            shutil.copytree(TRANSFORMERS / name, path)
            (path / "io.safetensors").unlink()
        return path, sorted(path.iterdir())

    return copy


@pytest.mark.parametrize("name", SAMPLES)
def test_damage(name, sample, tmp_path):
    logging.set_verbosity_error()
    source, files = sample(name)
    output = tmp_path / "model"
    convert_checkpoint(source, output)
    right = contents(output)
    shutil.rmtree(output)
    there = sorted(path.name for path in tmp_path.iterdir())
    dice, refused = random.Random(name), 0
    for number in range(COUNT):
        file = dice.choice(files)
        data = file.read_bytes()
        file.write_bytes(damage(data, dice))
        try:
            with limited_time(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                convert_checkpoint(source, output)
        except ConversionError as error:
            message = str(error)
            assert message and "\n" not in message and len(message) < 600, message
            refused += 1
        else:
            if file.suffix in CHECKED:
                assert contents(output) == right, f"damage {number} to {file.name} gave other weights"
            shutil.rmtree(output)
        assert sorted(path.name for path in tmp_path.iterdir()) == there, f"damage {number} left something"
        file.write_bytes(data)
    assert refused
