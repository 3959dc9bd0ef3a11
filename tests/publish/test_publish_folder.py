"""Folders for the hub: whatever the source's form, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from folders import inputs_of, make, outputs_of, save
from huggingface_hub import ModelCard, ModelCardData
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

import mega_transformers
from mega_transformers.publish import ConversionError, PublishError, publication, publish_folder


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def source(tiny_checkpoint, tmp_path) -> Path:
    """A folder with a tokenizer, and with what a training leaves behind."""
    folder = tmp_path / "source"
    shutil.copytree(tiny_checkpoint, folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n\n![losses](loss.png)\n")
    (folder / "results.json").write_text(json.dumps({"scores": {"test": {"model": {"accuracy": 0.5}}}}))
    for name in ("loss.png", "optimizer.pt", "scheduler.pt", "training_args.bin", "args.pkl", ".env", "LICENSE"):
        (folder / name).write_text(name)
    (folder / "runs").mkdir()
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "model.safetensors").write_text("old")
    return folder


def test_publish(source, tmp_path):
    before = snapshot(source)
    report = publish_folder(source, tmp_path / "output", base_model="me/base", language="en")
    assert snapshot(source) == before
    there = snapshot(tmp_path / "output")
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    kept = {"README.md", "results.json", "loss.png", "LICENSE"}
    assert there.keys() == {"config.json", "model.safetensors", *tokenizer, *kept} == report.files.keys()
    assert {name: size for name, (size, _) in report.files.items()} == {name: len(x) for name, x in there.items()}
    assert report.left_out == [
        ".env",
        "args.pkl",
        "checkpoint-5/",
        "optimizer.pt",
        "runs/",
        "scheduler.pt",
        "training_args.bin",
    ]
    assert there["model.safetensors"] == before["model.safetensors"]
    assert {"library_name", "model-index", "mask_token", "base_model"} <= set(report.added)
    assert report.architecture == "MegaForMaskedLM" and report.url is None and report.notes == []
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "output")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "output")) == model.config.vocab_size
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name or "previous" in path.name] == []


@pytest.mark.parametrize("form", ["bin", "shards", "half", "float16 alone", "no pooler", "seq2seq"])
def test_forms_of_weights(form, tmp_path):
    """The same numbers, in one safetensors file, as precisely as they were stored."""
    source, output = tmp_path / "source", tmp_path / "output"
    if form == "no pooler":
        config = make("MegaModel").config
        model = mega_transformers.MegaModel(config, add_pooling_layer=False)
    else:
        model = make("MegaForConditionalGeneration" if form == "seq2seq" else "MegaForMaskedLM")
    if form == "bin":
        save(model, source)
        torch.save(model.state_dict(), source / "pytorch_model.bin")
        (source / "model.safetensors").unlink()
    elif form == "float16 alone":
        save(model.half(), source)
    else:
        save(model, source, **({"max_shard_size": "2KB"} if form == "shards" else {}))
    if form == "shards":
        assert len(list(source.glob("model-*"))) > 1
    if form == "half":
        halved = {
            name: tensor if "ema_gate" in name else tensor.half()
            for name, tensor in load_file(source / "model.safetensors").items()
        }
        save_file(halved, source / "model.safetensors", metadata={"format": "pt"})
    report = publish_folder(source, output)
    assert report.left_out == []
    weights = load_file(output / "model.safetensors")
    if form in ("half", "float16 alone"):
        assert {tensor.dtype for name, tensor in weights.items() if "ema_gate" not in name} == {torch.float16}
    if form == "half":
        assert (source / "model.safetensors").read_bytes() == (output / "model.safetensors").read_bytes()
    again = type(model).from_pretrained(output, dtype=torch.float32).eval()
    first = type(model).from_pretrained(source, dtype=torch.float32).eval()
    expected, actual = (outputs_of(each, inputs_of(each)) for each in (first, again))
    for name in expected.keys() - {"pooler_output"}:
        assert torch.equal(expected[name], actual[name])
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, output))
    assert before == after


def test_code_is_taken_out_again(tmp_path):
    source = save(make("MegaForMaskedLM"), tmp_path / "source")
    publish_folder(source, tmp_path / "first", with_code=True)
    assert "auto_map" in json.loads((tmp_path / "first" / "config.json").read_text())
    report = publish_folder(tmp_path / "first", tmp_path / "second")
    assert "auto_map" not in json.loads((tmp_path / "second" / "config.json").read_text())
    assert not list((tmp_path / "second").glob("*.py")) and "modeling_mega.py" in report.left_out


def damage(folder: Path, kind: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    fields = json.loads(config.read_text())
    if kind == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "no weights":
        weights.unlink()
    elif kind == "nan":
        tensors = load_file(weights)
        tensors["mlm_head.bias"][3] = float("nan")
        save_file(tensors, weights, metadata={"format": "pt"})
    elif kind in ("missing", "extra"):
        tensors = load_file(weights)
        if kind == "missing":
            del tensors["mlm_head.bias"]
        else:
            tensors["mlm_head.other"] = torch.zeros(1)
        save_file(tensors, weights, metadata={"format": "pt"})
    elif kind == "shape":
        config.write_text(json.dumps({**fields, "nffn_hidden_size": 50}))
    elif kind == "field":
        config.write_text(json.dumps({**fields, "chunk_size": 0, "use_chunking": True}))
    elif kind == "class":
        config.write_text(json.dumps({**fields, "architectures": ["BertModel"]}))
    elif kind == "type":
        config.write_text(json.dumps({**fields, "model_type": "bert"}))
    elif kind == "json":
        config.write_text("{")
    elif kind == "no config":
        config.unlink()
    elif kind == "tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    elif kind == "vocabulary":
        # a model with fewer words than its tokenizer
        save(make("MegaForMaskedLM"), folder)
    elif kind == "rmsnorm":
        config.write_text(
            json.dumps(
                {**fields, "normalization_type": "rmsnorm", "transformers_version": "4.40.2", "norm_affine": False}
            )
        )
        tensors = {name: tensor for name, tensor in load_file(weights).items() if "norm" not in name}
        save_file(tensors, weights, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cut", "model.safetensors is damaged"),
        ("no weights", "holds config.json, but no weights"),
        ("nan", "mlm_head.bias holds inf or nan"),
        ("missing", "missing_keys: mlm_head.bias"),
        ("extra", "unexpected_keys: mlm_head.other"),
        ("shape", "the model cannot be loaded: .*mismatch"),
        ("field", "chunk_size=0 must be at least 1"),
        ("class", r"architectures=\['BertModel'\] must name one of"),
        ("type", "model_type='bert' is not a Mega model"),
        ("json", "config.json is damaged"),
        ("no config", "holds no config.json"),
        ("tokenizer", "the tokenizer cannot be loaded"),
        ("vocabulary", "tokens, but the model only 31"),
        ("rmsnorm", "set legacy_unnormalized_rmsnorm"),
    ],
)
def test_damaged_folders_are_refused(kind, message, source, tmp_path):
    damage(source, kind)
    with pytest.raises(ConversionError, match=message):
        publish_folder(source, tmp_path / "output")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_places_and_arguments(source, tmp_path):
    output = tmp_path / "output"
    for arguments, message in (
        ({"output": source}, "exists already"),
        ({"output": source, "force": True}, "holds the source"),
        ({"output": source / "hub"}, "is in the source folder"),
        ({"output": tmp_path / "none" / "output"}, "there is no folder"),
        ({"source": tmp_path / "none"}, "there is no folder"),
        ({"license": "MIT license"}, "'MIT license' is not a licence id"),
        ({"language": "English"}, "'English' is not a language code"),
        ({"base_model": "../x"}, "'../x' is not the id of a model"),
        ({"private": True}, "--private needs --push"),
        ({"license": "apache-2.0"}, "README.md says license: 'mit'"),
    ):
        with pytest.raises(ConversionError, match=message):
            publish_folder(**{"source": source, "output": output, **arguments})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_replacing(source, tmp_path):
    output = tmp_path / "output"
    publish_folder(source, output)
    (output / "stale.txt").write_text("old")
    with pytest.raises(ConversionError, match="replace this one with --force"):
        publish_folder(source, output)
    publish_folder(source, output, force=True)
    assert not (output / "stale.txt").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_nothing_half_written(error, source, tmp_path, monkeypatch):
    """Neither Ctrl-C nor a full disk leaves anything, or changes what is there."""
    output = tmp_path / "output"
    publish_folder(source, output)
    before = snapshot(tmp_path)

    def fail(*_):
        raise error

    monkeypatch.setattr(publication.shutil, "copyfile", fail)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else ConversionError):
        publish_folder(source, output, force=True)
    assert snapshot(tmp_path) == before


LIMITED = """
import resource, sys
from mega_transformers.publish import ConversionError, publish_folder
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
try:
    publish_folder(sys.argv[1], sys.argv[2])
except ConversionError as error:
    sys.exit(f"told: {error}")
"""


def test_full_disk(source, tmp_path):
    """A real limit to what can be written, too little for the weights, which a library writes."""
    limit = (source / "model.safetensors").stat().st_size // 2
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, str(source), str(tmp_path / "output"), str(limit)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert result.returncode == 1 and "told: " in result.stderr, result.stderr[-2000:]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_what_it_was_trained_from(source, tmp_path):
    """transformers 4 wrote that into config.json; a path tells nobody anything."""
    config = source / "config.json"
    for known, told in (("mnaylor/mega-base-wikitext", "mnaylor/mega-base-wikitext"), (str(tmp_path), None)):
        config.write_text(json.dumps({**json.loads(config.read_text()), "_name_or_path": known}))
        publish_folder(source, tmp_path / "output", force=True)
        front = publication.hub_card.front_matter((tmp_path / "output" / "README.md").read_text())
        assert front.get("base_model") == told
        assert str(tmp_path) not in (tmp_path / "output" / "config.json").read_text()


def test_the_page_of_a_masked_language_model_can_fill_its_examples(tiny_checkpoint, tmp_path):
    """The hub takes the task and the examples from the card, and the mask token from the tokenizer's settings."""
    publish_folder(tiny_checkpoint, tmp_path / "output", license="mit", language="en")
    data = ModelCard.load(tmp_path / "output" / "README.md").data
    assert isinstance(data, ModelCardData)
    assert (data.library_name, data.pipeline_tag, data.license, data.language) == (
        "transformers",
        "fill-mask",
        "mit",
        "en",
    )
    assert ModelCardData(**data.to_dict()).to_dict() == data.to_dict()
    mask = json.loads((tmp_path / "output" / "tokenizer_config.json").read_text())["mask_token"]
    assert data.mask_token == mask
    fill = pipeline("fill-mask", model=str(tmp_path / "output"))
    for example in data.widget:
        assert len(fill(example["text"], top_k=2)) == 2


def test_notes(tmp_path):
    source = save(make("MegaForMaskedLM"), tmp_path / "source")
    report = publish_folder(source, tmp_path / "output")
    assert all(any(word in note for note in report.notes) for word in ("--license", "--language", "no tokenizer"))
    assert len(report.notes) == 3
    (source / "README.md").write_text("---\npipeline_tag: feature-extraction\n---\n")
    report = publish_folder(source, tmp_path / "output", license="mit", language="en", force=True)
    assert "the card says pipeline_tag: feature-extraction, but the model is made for fill-mask" in report.notes[0]
    assert issubclass(PublishError, ConversionError)
