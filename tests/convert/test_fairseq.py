"""Checkpoints of fairseq: the authors' numbers after conversion, and every variant of file and arguments."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib

import pytest
import torch
from safetensors.torch import load_file
from samples import (
    CKPT,
    LANGUAGE_MODELS,
    TRANSLATION,
    language_model_args,
    language_model_state,
    save_checkpoint,
    save_language_model,
    save_sample,
)
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig

from mega_transformers.convert import ConversionError, convert_checkpoint
from mega_transformers.convert.verification import deviation

TOLERANCE = 2e-5
SAMPLES = sorted(path.name for path in CKPT.glob("*.pt"))


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_golden_language_model(name, tmp_path):
    case = save_sample(name, tmp_path / "checkpoint.pt")
    convert_checkpoint(tmp_path / "checkpoint.pt", tmp_path / "model")
    model, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(loading.values())
    ids = case.input["ids"]
    with torch.no_grad():
        logits = model(ids, attention_mask=(ids != 1).long(), use_cache=False).logits
        unpadded = model(case.input["ids_nopad"], use_cache=False).logits
    if "logits" in case.output:
        assert deviation(logits, case.output["logits"].double(), ids != 1) < TOLERANCE
    else:
        expected = case.output["log_probs_full"].double()
        assert deviation(logits.log_softmax(-1), expected, ids != 1) < TOLERANCE
    assert torch.isfinite(unpadded).all()


@pytest.mark.parametrize("name", TRANSLATION)
def test_golden_encoder_decoder(name, tmp_path):
    case = save_sample(name, tmp_path / "checkpoint.pt")
    convert_checkpoint(tmp_path / "checkpoint.pt", tmp_path / "model")
    model, loading = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(loading.values())
    source, target = case.input["src"], case.input["prev_output"]
    with torch.no_grad():
        logits = model(
            source, (source != 1).long(), decoder_input_ids=target, decoder_attention_mask=(target != 1).long()
        ).logits
    # sources are padded on the left, where the authors count an encoder's chunks from the padding (docs/parity.md)
    rows = source[:, 0] != 1 if case.meta["args"]["encoder_chunk_size"] > 0 else torch.ones(len(source)).bool()
    assert rows.any()
    assert deviation(logits[rows], case.output["logits"][rows].double(), target[rows] != 1) < TOLERANCE


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_convert(name, tmp_path):
    report = convert_checkpoint(CKPT / name, tmp_path / "model")
    assert all(each.relative < TOLERANCE for each in report.deviations)
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"config.json", "model.safetensors", "README.md"} <= files
    assert not any("_float_tensor" in name for name in load_file(tmp_path / "model" / "model.safetensors"))


def convert(tmp_path: pathlib.Path, **changes):
    path = save_language_model(tmp_path / "checkpoint.pt", **changes)
    report = convert_checkpoint(path, tmp_path / "model")
    assert all(each.relative < TOLERANCE for each in report.deviations)
    return report, AutoModelForCausalLM.from_pretrained(tmp_path / "model")


VARIANTS = {
    "untied": {},
    "tied": {"share_decoder_input_output_embed": True},
    "narrow embeddings": {"decoder_input_dim": 6},
    "unscaled": {"no_scale_embedding": True},
    "norm of the embeddings": {"normalize_embedding": True},
    "pre-norm": {"normalize_before": True},
    "final norm without weights": {"normalize_before": True, "no_affine_final_norm": True},
    "scalenorm": {"normalization_type": "scalenorm", "normalize_before": True},
    "rmsnorm": {"normalization_type": "rmsnorm"},
    "batchnorm": {"normalization_type": "batchnorm", "normalize_before": True},
    "rotary": {"rel_pos_bias": "rotary"},
    "chunks": {"decoder_chunk_size": 5, "max_target_positions": 12},
    "chunks beyond the positions": {"decoder_chunk_size": 8, "max_target_positions": 4},
    "rotary chunks": {"decoder_chunk_size": 5, "rel_pos_bias": "rotary"},
    "truncation": {"truncation_length": 4},
    "no truncation": {"truncation_length": None},
    "laplace": {"attention_activation_fn": "laplace"},
    "relu2": {"attention_activation_fn": "relu2", "decoder_chunk_size": 4},
    "gelu": {"activation_fn": "gelu"},
    "gelu_accurate": {"activation_fn": "gelu_accurate"},
    "no feed-forward": {"decoder_ffn_embed_dim": 0},
    "no number of positions": {"max_target_positions": None, "rel_pos_bias": "rotary"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_language_model_variants(name, tmp_path):
    _, model = convert(tmp_path, **VARIANTS[name])
    args = language_model_args(**VARIANTS[name])
    assert model.config.tie_word_embeddings == args["share_decoder_input_output_embed"]
    assert model.config.final_norm == args["normalize_before"]
    assert model.config.scale_embeddings != args["no_scale_embedding"]
    assert model.config.truncation == args["truncation_length"]


def test_what_else_is_written(tmp_path):
    report, model = convert(tmp_path)
    assert report.architecture == "MegaForCausalLM" and report.dtype == "float32"
    generation = GenerationConfig.from_pretrained(tmp_path / "model")
    # fairseq begins what it writes with </s>
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (2, 2, 1)
    assert model.config.architectures == ["MegaForCausalLM"]
    dropped = dict(report.dropped)
    assert "decoder.version" in dropped
    assert any("lr" in why for name, why in dropped.items() if name.startswith("args"))
    assert ("decoder.layers.*.mega_layer.move.delta", "mega.layers.*.mega_layer.ema_gate.damping_factor", 2) in (
        report.mapped
    )
    card = (tmp_path / "model" / "README.md").read_text()
    assert "pipeline_tag: text-generation" in card and "checkpoint.pt" in card and "SHA-256" in card
    assert str(tmp_path) not in card
    assert "decoder.version" in card and "logits" in card


def test_beginning_of_sentence(tmp_path):
    _, model = convert(tmp_path, add_bos_token=True)
    assert model.config.bos_token_id == 0


def sections(args: dict) -> dict:
    """Arguments as later versions of fairseq store them."""
    task = {"_name": "language_modeling", "data": "data-bin", "max_target_positions": 7, "add_bos_token": False}
    return {"_name": None, "common": {"seed": 1}, "task": task, "model": argparse.Namespace(**args)}


@pytest.mark.parametrize("as_dict", [True, False])
def test_cfg(as_dict, tmp_path):
    args = language_model_args()
    config = sections(args)
    if as_dict:
        config["model"] = dict(args)
    content = {"args": None, "cfg": config, "model": language_model_state(args)}
    torch.save(content, tmp_path / "a.pt")
    report = convert_checkpoint(tmp_path / "a.pt", tmp_path / "model")
    assert report.deviations
    assert json.loads((tmp_path / "model" / "config.json").read_text())["max_positions"] == 48  # the model's, not 7


@pytest.mark.parametrize("zipped", [True, False])
def test_half_precision_and_wrapper(zipped, tmp_path):
    """Training in float16 under DistributedDataParallel, by a new or an old PyTorch."""
    args = language_model_args(rel_pos_bias="rotary")
    state = {f"module.{name}": tensor.half() for name, tensor in language_model_state(args).items()}
    content = {"args": argparse.Namespace(**args), "model": state, "extra_state": {}}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    report = convert_checkpoint(tmp_path / "a.pt", tmp_path / "model")
    assert report.dtype == "float16"
    stored = load_file(tmp_path / "model" / "model.safetensors")
    kinds = {name: tensor.dtype for name, tensor in stored.items()}
    assert all((kind == torch.float32) == ("ema_gate" in name) for name, kind in kinds.items())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtype(dtype, tmp_path):
    path = save_language_model(tmp_path / "a.pt")
    report = convert_checkpoint(path, tmp_path / "model", dtype=dtype)
    assert report.dtype == dtype
    # compared with weights that are rounded likewise
    assert all(each.relative < TOLERANCE for each in report.deviations)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["dtype"] == dtype


def test_number_that_does_not_fit(tmp_path):
    args = language_model_args()
    state = language_model_state(args)
    state["decoder.layers.1.nffn.fc1.bias"][3] = 1e6
    path = save_checkpoint(tmp_path / "a.pt", args, state)
    with pytest.raises(ConversionError, match=r"layers\.1\.nffn\.fc1\.bias does not fit float16"):
        convert_checkpoint(path, tmp_path / "model", dtype="float16")
    state["decoder.layers.1.nffn.fc1.bias"][3] = torch.nan
    path = save_checkpoint(tmp_path / "a.pt", args, state)
    with pytest.raises(ConversionError, match=r"layers\.1\.nffn\.fc1\.bias holds inf or nan"):
        convert_checkpoint(path, tmp_path / "model", verify=False)
    assert not (tmp_path / "model").exists()


def test_moving_average_of_the_weights(tmp_path):
    args = language_model_args()
    state, average = language_model_state(args), language_model_state(args, seed=1)
    path = save_checkpoint(tmp_path / "both.pt", args, state, extra_state={"ema": average})
    report = convert_checkpoint(path, tmp_path / "plain")
    assert any("--weights ema" in note for note in report.notes)
    convert_checkpoint(path, tmp_path / "averaged", averaged=True)
    alone = tmp_path / "alone.pt"
    torch.save({"args": argparse.Namespace(**args), "ema": average}, alone)
    convert_checkpoint(alone, tmp_path / "alone")
    name = "mega.embedding_layer.word_embeddings.weight"
    weights = {
        folder: load_file(tmp_path / folder / "model.safetensors")[name] for folder in ("plain", "averaged", "alone")
    }
    assert torch.equal(weights["plain"], state["decoder.embed_tokens.weight"])
    assert torch.equal(weights["averaged"], average["decoder.embed_tokens.weight"])
    assert torch.equal(weights["alone"], average["decoder.embed_tokens.weight"])
    with pytest.raises(ConversionError, match="no moving average"):
        convert_checkpoint(save_language_model(tmp_path / "without.pt"), tmp_path / "no", averaged=True)


@pytest.fixture
def parts(tmp_path):
    """A checkpoint in two files, of which both hold a part of the names and the first tensor."""
    args = language_model_args()
    state = language_model_state(args)
    folder = tmp_path / "parts"
    folder.mkdir()
    names = list(state)
    halves = (names[: len(names) // 2], [names[0], *names[len(names) // 2 :]])
    for index, half in enumerate(halves):
        path = folder / f"checkpoint_best-model_part-{index}.pt"
        save_checkpoint(path, args, {name: state[name].clone() for name in half})
    return folder


def test_several_parts(parts, tmp_path):
    for index, source in enumerate((parts, parts / "checkpoint_best-model_part-1.pt")):
        convert_checkpoint(source, tmp_path / f"model{index}")
    first, second = (load_file(tmp_path / f"model{index}" / "model.safetensors") for index in range(2))
    assert first.keys() == second.keys()
    assert "checkpoint_best-model_part-1.pt" in (tmp_path / "model0" / "README.md").read_text()


def test_parts_that_are_missing_or_differ(parts, tmp_path):
    first = parts / "checkpoint_best-model_part-0.pt"
    content = torch.load(first, weights_only=False)
    kept = first.rename(tmp_path / "elsewhere.pt")
    with pytest.raises(ConversionError, match=r"checkpoint_best-model_part-1\.pt is one of several parts"):
        convert_checkpoint(parts, tmp_path / "model")
    content["model"]["decoder.version"] += 1
    torch.save(content, first)
    kept.unlink()
    with pytest.raises(ConversionError, match=r"decoder\.version differs between"):
        convert_checkpoint(parts, tmp_path / "model")


def test_folder_of_checkpoints(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(ConversionError, match="holds no checkpoint"):
        convert_checkpoint(folder, tmp_path / "model")
    save_language_model(folder / "checkpoint_best.pt")
    convert_checkpoint(folder, tmp_path / "model")
    save_language_model(folder / "checkpoint_last.pt")
    with pytest.raises(ConversionError, match=r"several checkpoints.*checkpoint_best\.pt"):
        convert_checkpoint(folder, tmp_path / "other")


REFUSED = {
    "other number of layers": ({"decoder_layers": 3}, r"args\.decoder_layers=3, but the checkpoint holds 2 layers"),
    "other width": ({"decoder_hidden_dim": 15}, r"has the shape .*but the settings make it"),
    "huge width": ({"decoder_z_dim": 10**30}, r"args\.decoder_z_dim=1000"),
    "no width": ({"decoder_n_dim": "many"}, r"args\.decoder_n_dim='many' must be a whole number"),
    "unknown norm": ({"normalization_type": "groupnorm"}, r"args\.normalization_type='groupnorm' is unknown"),
    "unknown attention": ({"attention_activation_fn": None}, r"args\.attention_activation_fn=None is unknown"),
    "chunk of nothing": ({"decoder_chunk_size": 0}, r"args\.decoder_chunk_size=0"),
    "dropout of everything": ({"dropout": 1.0}, r"args\.dropout=1\.0"),
    "no average": ({"truncation_length": 0}, r"args\.truncation_length=0"),
    "no flag": ({"normalize_before": "no"}, r"args\.normalize_before='no' must be True or False"),
    "odd rotary": ({"rel_pos_bias": "rotary", "decoder_z_dim": 7}, r"shared_representation_size=7|shape"),
    "a norm that is not there": ({"normalize_before": True}, r"lacks: mega\.final_norm"),
    "positions without end": ({"max_target_positions": 1 << 39, "decoder_chunk_size": 4}, "number of positions"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_that_do_not_fit(name, tmp_path):
    changes, message = REFUSED[name]
    args = language_model_args()
    path = save_checkpoint(tmp_path / "a.pt", {**args, **changes}, language_model_state(args))
    with pytest.raises(ConversionError, match=message):
        convert_checkpoint(path, tmp_path / "model")
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


def test_missing_argument(tmp_path):
    args = language_model_args()
    state = language_model_state(args)
    del args["decoder_z_dim"]
    with pytest.raises(ConversionError, match=r"args\.decoder_z_dim is missing"):
        convert_checkpoint(save_checkpoint(tmp_path / "a.pt", args, state), tmp_path / "model")


def test_weights_that_do_not_fit(tmp_path):
    args = language_model_args(share_decoder_input_output_embed=True)
    state = language_model_state(args)
    path = tmp_path / "a.pt"

    def refused(changed: dict, message: str) -> None:
        save_checkpoint(path, args, changed)
        with pytest.raises(ConversionError, match=message):
            convert_checkpoint(path, tmp_path / "model")

    refused(
        {**state, "decoder.output_projection.weight": torch.randn(31, 10)},
        "should be one tensor, but their values differ",
    )
    refused({**state, "decoder.layers.0.stray": torch.ones(1)}, r"decoder\.layers\.0\.stray")
    refused({**state, "head.weight": torch.ones(1)}, "no Mega of this kind has: head.weight")
    missing = dict(state)
    del missing["decoder.layers.1.nffn.fc2.bias"]
    refused(missing, r"lacks: mega\.layers\.1\.nffn\.fc2\.bias")
    refused({name: tensor for name, tensor in state.items() if ".layers.0." not in name}, "layers are missing")
    refused({name.replace("mega_layer", "self_attn"): tensor for name, tensor in state.items()}, "holds another model")
    # an older fairseq wrote no second copy of tied embeddings
    del state["decoder.output_projection.weight"]
    convert_checkpoint(save_checkpoint(path, args, state), tmp_path / "model")


def test_a_wrong_map_is_noticed(tmp_path, monkeypatch):
    """Two tensors of one shape, exchanged: only the source's own arithmetic can tell."""
    from mega_transformers.convert import fairseq

    path = save_language_model(tmp_path / "a.pt")
    exchanged = dict(fairseq.LAYER)
    delta, alpha = "mega_layer.move.delta", "mega_layer.move.alpha"
    exchanged[delta], exchanged[alpha] = exchanged[alpha], exchanged[delta]
    wrong = dataclasses.replace(fairseq.LANGUAGE_MODEL, layer=exchanged)
    monkeypatch.setattr(fairseq, "LANGUAGE_MODEL", wrong)
    with pytest.raises(ConversionError, match="deviates from its source"):
        convert_checkpoint(path, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    report = convert_checkpoint(path, tmp_path / "model", verify=False)
    assert report.deviations == []
    assert "--no-verify" in (tmp_path / "model" / "README.md").read_text()
