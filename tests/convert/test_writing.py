"""The output appears when it is complete, and what is there stays as it is after any error."""

from __future__ import annotations

import errno
import os
import pathlib
import subprocess
import sys
import types

import pytest
import torch
from safetensors import safe_open
from samples import CKPT, save_language_model

from mega_transformers.convert import ConversionError, conversion, convert_checkpoint, writing

SAMPLE = CKPT / "lm_prenorm_tied_chunk4.pt"


def names(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_folder_that_is_there(tmp_path):
    output = tmp_path / "model"
    convert_checkpoint(SAMPLE, output, verify=False)
    before = (output / "model.safetensors").read_bytes()
    other = save_language_model(tmp_path / "other.pt")
    with pytest.raises(ConversionError, match=r"exists already.*--force"):
        convert_checkpoint(other, output)
    assert (output / "model.safetensors").read_bytes() == before
    convert_checkpoint(other, output, force=True)
    assert (output / "model.safetensors").read_bytes() != before
    assert names(tmp_path) == ["model", "other.pt"]


def test_what_force_does_not_replace(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    (tmp_path / "link").symlink_to(folder)
    source = tmp_path / "sources"
    source.mkdir()
    (source / "a.pt").write_bytes(SAMPLE.read_bytes())
    (source / "config.json").write_text("{}")
    for output, message in (
        (file, "is a file"),
        (folder, r"does not hold a model \(it has no config\.json\)"),
        (tmp_path / "link", "is a link"),
        (source, "holds the source"),
        (tmp_path / "none" / "model", "there is no folder"),
    ):
        with pytest.raises(ConversionError, match=message):
            convert_checkpoint(source / "a.pt", output, force=True)
    assert file.read_text() == (folder / "thesis.tex").read_text() == "mine"
    assert names(tmp_path) == ["file", "folder", "link", "sources"]
    # an empty folder holds nothing to lose
    (folder / "thesis.tex").unlink()
    convert_checkpoint(SAMPLE, folder, force=True, verify=False)
    assert (folder / "config.json").is_file()


def test_error_after_the_weights_leaves_nothing(tmp_path, monkeypatch):
    def deviate(*_) -> None:
        raise ConversionError("the converted model deviates")

    monkeypatch.setattr(conversion, "_refuse_deviations", deviate)
    with pytest.raises(ConversionError, match="deviates"):
        convert_checkpoint(SAMPLE, tmp_path / "model")
    assert names(tmp_path) == []


def test_interrupt_leaves_nothing_and_keeps_what_was_there(tmp_path, monkeypatch):
    output = tmp_path / "model"
    convert_checkpoint(SAMPLE, output, verify=False)
    before = names(output)

    def interrupted(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion, "_refuse_deviations", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(SAMPLE, output, force=True)
    assert names(tmp_path) == ["model"] and names(output) == before


def test_disk_that_is_full_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1 << 20))
    with pytest.raises(
        ConversionError, match=r"no space left for the model: it takes 0\.02 GB, and 0\.00 GB are free"
    ):
        convert_checkpoint(SAMPLE, tmp_path / "model")
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_disk_that_fills_up(number, tmp_path, monkeypatch):
    def full(_) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(writing.os, "fsync", full)
    with pytest.raises(ConversionError, match="has no space left"):
        convert_checkpoint(SAMPLE, tmp_path / "model")
    assert names(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process")
def test_file_that_cannot_grow(tmp_path):
    """A real limit of the system, met in the middle of the weights."""
    path = save_language_model(tmp_path / "a.pt", words=4000)
    code = f"""
import resource, signal
from mega_transformers.convert import ConversionError, convert_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    convert_checkpoint({str(path)!r}, {str(tmp_path / "model")!r})
except ConversionError as error:
    print("refused:", error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "refused:" in result.stdout and "has no space left" in result.stdout, result.stderr
    assert names(tmp_path) == ["a.pt"]


def test_place_that_cannot_be_written_to(tmp_path, monkeypatch):
    def refused(*_, **__) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "mkdir", refused)
    with pytest.raises(ConversionError, match="model cannot be written: Permission denied"):
        convert_checkpoint(SAMPLE, tmp_path / "model")


@pytest.mark.parametrize(
    ("failure", "raised"),
    [(OSError(errno.EIO, "Input/output error"), ConversionError), (KeyboardInterrupt(), KeyboardInterrupt)],
    ids=["error", "interrupt"],
)
def test_move_that_fails_restores_what_was_there(tmp_path, monkeypatch, failure, raised):
    output = tmp_path / "model"
    convert_checkpoint(SAMPLE, output, verify=False)
    rename = pathlib.Path.rename

    def failing(self, target):
        if self.name.endswith(".partial"):
            raise failure
        return rename(self, target)

    monkeypatch.setattr(pathlib.Path, "rename", failing)
    with pytest.raises(raised):
        convert_checkpoint(SAMPLE, output, force=True, verify=False)
    assert names(tmp_path) == ["model"] and (output / "config.json").is_file()


def test_weights_are_plain_safetensors(tmp_path):
    convert_checkpoint(SAMPLE, tmp_path / "model", verify=False)
    path = tmp_path / "model" / "model.safetensors"
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        bias = file.get_tensor("mega.layers.0.mega_layer.rel_pos_bias.rel_pos_bias")
        assert not file.get_tensor("lm_head.bias").any()
    # a chunk of 4 has 7 offsets; those of all 32 positions are there, and not used
    assert bias.shape == (63,) and bias[:7].all() and not bias[7:].any()
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0


def test_progress_is_told(tmp_path):
    told: dict[str, list[int]] = {}

    def progress(stage: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        told.setdefault(stage, []).append(done)

    convert_checkpoint(SAMPLE, tmp_path / "model", progress=progress)
    assert list(told) == [
        "Comparing checksums",
        "Writing weights",
        "Evaluating the source in float64",
        "Evaluating the converted model",
    ]
    assert all(done == sorted(done) for done in told.values())
    assert len(told["Writing weights"]) > 10


def test_source_stays_as_it_is(tmp_path):
    before = SAMPLE.read_bytes()
    convert_checkpoint(SAMPLE, tmp_path / "model")
    assert SAMPLE.read_bytes() == before
    assert torch.get_default_dtype() == torch.float32
