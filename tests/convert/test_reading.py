"""Files that would run something, that are damaged, or that are something else."""

from __future__ import annotations

import json
import os
import pathlib
import pickle
import shutil
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from samples import CKPT, TRANSFORMERS, language_model_args, language_model_state, save_checkpoint, save_language_model
from test_masked_lm_folder import save_folder

from mega_transformers.convert import ConversionError, convert_checkpoint
from mega_transformers.convert.reading import Bag, read_settings, read_state, read_torch

SAMPLE = CKPT / "lm_prenorm_tied_chunk4.pt"


class _Run:
    """Calls something with something when it is unpickled by what runs what it reads."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def quiet(*_) -> None:
    """No progress."""


def attacks(touched: pathlib.Path) -> dict[str, object]:
    return {
        "posix.system": _Run(os.system, f"touch {touched}"),
        "builtins.exec": _Run(exec, f"open({str(touched)!r}, 'w')"),
        "builtins.eval": _Run(eval, f"open({str(touched)!r}, 'w')"),
        "shutil.copy": _Run(shutil.copy, str(SAMPLE), str(touched)),
        "pathlib": _Run(pathlib.Path.touch, touched),
    }


NAMES = list(attacks(pathlib.Path("x")))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_checkpoint_that_would_run_something(name, zipped, tmp_path):
    touched = tmp_path / "touched"
    args = language_model_args()
    content = {"args": None, "cfg": {"model": args}, "model": language_model_state(args)}
    content["extra_state"] = {"best": attacks(touched)[name]}
    path = tmp_path / "a.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ConversionError) as error:
        convert_checkpoint(path, tmp_path / "model")
    # a method is asked for by getattr, or as part of its class
    assert any(wanted in str(error.value) for wanted in ([name] if name != "pathlib" else ["getattr", "pathlib"]))
    assert "None of its code was run" in str(error.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.pt"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", NAMES)
def test_settings_that_would_run_something(name, protocol, tmp_path):
    touched = tmp_path / "touched"
    folder = save_folder(tmp_path / "pretrained")
    content = {"mega_args": attacks(touched)[name], "depth": 2, "vocab_size": 40}
    (folder / "model_args.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(ConversionError, match="None of its code was run") as error:
        convert_checkpoint(folder, tmp_path / "model")
    if name != "pathlib":  # a method is asked for by getattr, or as part of its class
        module, _, function = name.partition(".")
        assert function in str(error.value) and (protocol < 3 or module in str(error.value))
    assert not touched.exists() and not (tmp_path / "model").exists()


def test_settings_are_inert(tmp_path):
    """Classes are not imported, methods of theirs not called; what they hold is there."""
    path = tmp_path / "a.pkl"
    # an object of `this`, a module of Python's that prints when it is imported, with a state
    path.write_bytes(b"\x80\x02cthis\nzen\n)\x81}U\x01aK\x05sb.")
    value = read_settings(path)
    assert isinstance(value, Bag) and vars(value) == {"a": 5}
    assert type(value).__module__ == "this"
    import sys

    assert "this" not in sys.modules


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02cthis\nzen\nK\x05\x85R.",  # called with an argument
        b"\x80\x02ccopyreg\n_reconstructor\ncthis\nzen\ncbuiltins\nset\nN\x87R.",  # of another base
        b"\x80\x02U\x01aQ.",  # a persistent object
        b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93.",  # named, not called
    ],
)
def test_settings_beyond_plain_objects(content, tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(content)
    with pytest.raises(ConversionError, match="None of its code was run"):
        read_settings(path)


@pytest.mark.parametrize("content", [b"", b"\x80", b"no pickle", b"\x80\x04\x8e" + b"\xff" * 8, b"(" * 100, b"0."])
def test_damaged_settings(content, tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(content)
    with pytest.raises(ConversionError, match=r"a\.pkl is damaged or not a pickle of settings"):
        read_settings(path)


def test_numbers_of_numpy_are_no_obstacle(tmp_path):
    """fairseq keeps losses as numpy's numbers, which `torch.load(weights_only=True)` refuses."""
    import numpy

    best = {"best": numpy.float64(4.5), "val_loss": numpy.float32(1), "steps": numpy.int64(3)}
    args = language_model_args()
    for zipped in (True, False):
        path = save_checkpoint(tmp_path / "a.pt", args, language_model_state(args), extra_state=best)
        if not zipped:
            torch.save(torch.load(path, weights_only=False), path, _use_new_zipfile_serialization=False)
        convert_checkpoint(path, tmp_path / f"model{zipped}", verify=False)


def test_checksums_are_compared(tmp_path):
    """`torch.load` would give other weights without a word."""
    path = tmp_path / "a.pt"
    data = bytearray(SAMPLE.read_bytes())
    with zipfile.ZipFile(SAMPLE) as archive:
        entry = next(entry for entry in archive.infolist() if entry.filename.endswith("data/0"))
    name_length, extra_length = struct.unpack("<HH", data[entry.header_offset + 26 : entry.header_offset + 30])
    data[entry.header_offset + 30 + name_length + extra_length + 5] ^= 1
    path.write_bytes(data)
    with torch.serialization.safe_globals([__import__("argparse").Namespace]):
        assert torch.load(path, weights_only=True)
    with pytest.raises(ConversionError, match=r"CRC-32 for file '.*data/0'"):
        convert_checkpoint(path, tmp_path / "model")


def test_archives_that_torch_does_not_write(tmp_path):
    for name, compression, twice in (("a.pt", zipfile.ZIP_DEFLATED, False), ("b.pt", zipfile.ZIP_STORED, True)):
        with zipfile.ZipFile(SAMPLE) as old, zipfile.ZipFile(tmp_path / name, "w", compression) as new:
            entries = old.namelist()
            for entry in entries:
                new.writestr(entry, old.read(entry))
            if twice:
                with pytest.warns(UserWarning, match="Duplicate name"):
                    new.writestr(entries[0], old.read(entries[0]))
    with pytest.raises(ConversionError, match="is compressed"):
        convert_checkpoint(tmp_path / "a.pt", tmp_path / "model")
    with pytest.raises(ConversionError, match="two entries have the same name"):
        convert_checkpoint(tmp_path / "b.pt", tmp_path / "model")


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"this is no checkpoint " * 50, b"\x80\x02}q\x00.", b"\x00" * 99]
)
def test_something_else(content, tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(ConversionError, match=r"a\.pt is damaged or not a PyTorch file"):
        convert_checkpoint(path, tmp_path / "model")


@pytest.mark.parametrize("zipped", [True, False])
def test_cut(zipped, tmp_path):
    path = save_language_model(tmp_path / "a.pt")
    if not zipped:
        torch.save(torch.load(path, weights_only=False), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(ConversionError, match=r"a\.pt is damaged"):
        convert_checkpoint(path, tmp_path / "model")


def test_other_files_of_torch(tmp_path):
    path = tmp_path / "a.pt"

    def refused(content: object, message: str) -> None:
        torch.save(content, path)
        with pytest.raises(ConversionError, match=message):
            convert_checkpoint(path, tmp_path / "model")

    refused({"weight": torch.ones(2)}, "neither args nor cfg, only weight")
    refused(torch.ones(2), "holds Tensor, which is not a checkpoint of fairseq")
    refused({"args": {"arch": "x"}}, r"no weights \(model\)")
    refused({"args": 5, "model": {"a": torch.ones(1)}}, "args must be a Namespace or a dict, but is int")
    refused({"cfg": {"task": None}, "model": {"a": torch.ones(1)}}, "no section model")
    refused({"args": {"arch": "transformer"}, "model": {"a": torch.ones(1)}}, r"another model \(transformer\)")
    refused({"args": {}, "model": {"a": 1}}, "holds 'a': int")
    sparse = torch.eye(3).to_sparse()
    refused({"args": {}, "model": {"a": sparse}}, "a is not a plain tensor of numbers")


def test_script_module(tmp_path):
    path = tmp_path / "a.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    with pytest.raises(ConversionError, match=r"TorchScript|compressed"):
        convert_checkpoint(path, tmp_path / "model")


def test_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = save_language_model(tmp_path / "a.pt")

    def refused(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(pathlib.Path, "open", refused)
    with pytest.raises(ConversionError, match=r"a\.pt cannot be read: Permission denied"):
        convert_checkpoint(path, tmp_path / "model")


def test_nothing_and_no_source(tmp_path):
    with pytest.raises(ConversionError, match="there is no file or folder"):
        convert_checkpoint(tmp_path / "a.pt", tmp_path / "model")
    with pytest.raises(ConversionError, match="dtype='int8' is unknown"):
        convert_checkpoint(SAMPLE, tmp_path / "model", dtype="int8")


@pytest.fixture
def checkpoint(tmp_path):
    def copy(name: str) -> pathlib.Path:
        return pathlib.Path(shutil.copytree(TRANSFORMERS / name, tmp_path / name))

    return copy


def edit(path: pathlib.Path, **fields) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_folders_of_transformers_that_do_not_fit(checkpoint, tmp_path):
    def refused(message: str, **fields) -> None:
        edit(folder / "config.json", **fields)
        with pytest.raises(ConversionError, match=message):
            convert_checkpoint(folder, tmp_path / "model")
        (folder / "config.json").write_text(original)

    folder = checkpoint("masked_lm_default_tied")
    original = (folder / "config.json").read_text()
    refused("model_type='bert' is not a Mega model", model_type="bert")
    refused(r"architectures=\['MegaForSpeech'\]", architectures=["MegaForSpeech"])
    refused("num_hidden_layers=3000000, but the checkpoint holds 2", num_hidden_layers=3_000_000)
    refused("max_positions=1099511627776 is not a number", max_positions=1 << 40)
    refused("has the shape", hidden_size=13)
    refused(r"config\.json: .*chunk_size", use_chunking=True)
    refused("needs no conversion", transformers_version="5.4.0")
    refused("lacks: classifier", architectures=["MegaForSequenceClassification"])
    refused("the activation 'mish' has no plain form", activation="mish")


def test_damaged_folders_of_transformers(checkpoint, tmp_path):
    def refused(message: str) -> None:
        with pytest.raises(ConversionError, match=message):
            convert_checkpoint(folder, tmp_path / "model")

    folder = checkpoint("masked_lm_sharded_types")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    first = next(iter(content["weight_map"]))
    for file in ("../model.safetensors", "/etc/passwd", "none.safetensors"):
        edit(index, weight_map={**content["weight_map"], first: file})
        refused("which is not a file in")
    edit(index, weight_map={**content["weight_map"], "mega.stray": "model-00001-of-00002.safetensors"})
    refused(r"do not hold, such as mega\.stray")
    edit(index, weight_map=[1])
    refused("must name the file of every weight")
    index.unlink()
    refused("but no weights")
    (folder / "config.json").write_text("[1]")
    refused("must hold a JSON object, but holds list")
    (folder / "config.json").write_text("{")
    refused(r"config\.json is damaged")
    folder = checkpoint("model_inputs_embeds_bin")
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04" + b"x" * 100)
    refused(r"pytorch_model\.bin is damaged")


def test_tensors_only(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(ConversionError, match=r"a\.safetensors .*neither args nor cfg|a\.safetensors is damaged"):
        convert_checkpoint(tmp_path / "a.safetensors", tmp_path / "model")
    with pytest.raises(ConversionError, match="must be a dict of tensors, but is an empty dict"):
        read_state({}, "x")
    path = tmp_path / "b.pt"
    torch.save({"a": torch.ones(2)}, path)
    assert torch.equal(read_torch(path, quiet)["a"], torch.ones(2))
