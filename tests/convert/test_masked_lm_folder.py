"""The folder of a pretrained masked language model, with settings of a class that nobody has."""

from __future__ import annotations

import argparse
import pathlib
import pickle
import sys
import types

import pytest
import torch
from safetensors.torch import load_file
from samples import SIZES, layer_state, random
from transformers import AutoModelForMaskedLM, AutoTokenizer

from mega_transformers.convert import ConversionError, convert_checkpoint

WORDS = 40
ARGS = {
    **{f"encoder_{name}": value for name, value in SIZES.items() if name != "layers"},
    "encoder_chunk_size": 6,
    "max_source_positions": 24,
    "normalization_type": "scalenorm",
    "normalize_before": True,
    "rel_pos_bias": "rotary",
    "activation_fn": "silu",
    "attention_activation_fn": "softmax",
    "bidirectional": True,
    "truncation_length": None,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "hidden_dropout": 0.1,
    "activation_dropout": 0.1,
    "feature_dropout": False,
}


class Arguments:
    """As if of a module that is not installed where the file is read."""


def save_folder(folder: pathlib.Path, protocol: int = 2, words: int = WORDS, **changes) -> pathlib.Path:
    args = {**ARGS, **changes}
    torch.manual_seed(0)
    state = {"embedding_layer.weight": random(words, args["encoder_embed_dim"])}
    for index in range(2):
        state |= layer_state(f"encoders.{index}.", args, "encoder", causal=False)
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / "encoder_weights.pt")
    head = {"weight": random(words, args["encoder_embed_dim"]), "bias": random(words)}
    torch.save(head, folder / "mlm_head_weights.pt")
    write_settings(folder, args, protocol, words=words)
    return folder


def write_settings(folder: pathlib.Path, args: dict, protocol: int = 2, words: int = WORDS, depth: int = 2) -> None:
    module = types.ModuleType("mega_pretraining_that_is_nowhere")
    kind = type("MegaArguments", (Arguments,), {"__module__": module.__name__})
    module.MegaArguments = kind
    sys.modules[module.__name__] = module
    try:
        settings = kind()
        vars(settings).update(args)
        content = {"mega_args": settings, "depth": depth, "vocab_size": words}
        (folder / "model_args.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    finally:
        del sys.modules[module.__name__]


@pytest.fixture
def folder(tmp_path):
    return save_folder(tmp_path / "pretrained")


VARIANTS = {
    "chunks": {},
    "post-norm, whole rows": {"normalize_before": False, "encoder_chunk_size": -1, "rel_pos_bias": "simple"},
    "laplace": {"attention_activation_fn": "laplace", "normalization_type": "layernorm"},
}


@pytest.mark.parametrize(
    "name, protocol",
    [*(("chunks", protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)), *((name, 2) for name in VARIANTS)],
)
def test_conversion(name, protocol, tmp_path):
    folder = save_folder(tmp_path / "pretrained", protocol, **VARIANTS[name])
    report = convert_checkpoint(folder, tmp_path / "model")
    assert report.architecture == "MegaForMaskedLM"
    assert all(each.relative < 2e-5 for each in report.deviations)
    model, loading = AutoModelForMaskedLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(loading.values())
    # the wrapper around the layers had neither of the encoder's extras, whatever the norms' place
    assert not model.config.final_norm and not model.config.scale_embeddings
    assert not model.config.tie_word_embeddings and not model.config.is_decoder
    assert "mega_pretraining_that_is_nowhere" not in sys.modules


@pytest.mark.parametrize("kind", [dict, argparse.Namespace, types.SimpleNamespace])
def test_settings_of_a_known_class(kind, folder, tmp_path):
    content = {"mega_args": kind(**ARGS), "depth": 2, "vocab_size": WORDS}
    (folder / "model_args.pkl").write_bytes(pickle.dumps(content))
    convert_checkpoint(folder, tmp_path / "model")


def test_head_that_is_the_embeddings(folder, tmp_path):
    table = torch.load(folder / "encoder_weights.pt", weights_only=True)["embedding_layer.weight"]
    torch.save({"weight": table, "bias": torch.zeros(WORDS)}, folder / "mlm_head_weights.pt")
    report = convert_checkpoint(folder, tmp_path / "model")
    assert ("mlm_head.weight", "the same as embedding_layer.weight") in report.dropped
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert "mlm_head.weight" not in stored


def test_tokenizer_of_the_folder(tiny_tokenizer_folder, tmp_path):
    words = len(AutoTokenizer.from_pretrained(tiny_tokenizer_folder, tokenizer_type="roberta"))
    folder = save_folder(tmp_path / "pretrained", words=words)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((tiny_tokenizer_folder / name).read_bytes())
    convert_checkpoint(folder, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert len(tokenizer) == words and tokenizer.mask_token == "<mask>"
    ids = tokenizer("The <mask> of the ship").input_ids
    assert ids[0] == 0 and ids[-1] == 2 and tokenizer.mask_token_id in ids
    smaller = save_folder(tmp_path / "smaller")
    with pytest.raises(ConversionError, match=f"has {words} tokens, but the model only {WORDS}"):
        convert_checkpoint(smaller, tmp_path / "other", tokenizer=tiny_tokenizer_folder)


@pytest.mark.parametrize("name", ["model_args.pkl", "encoder_weights.pt", "mlm_head_weights.pt"])
def test_missing_file(name, folder, tmp_path):
    (folder / name).unlink()
    with pytest.raises(ConversionError, match=f"but not {name}"):
        convert_checkpoint(folder, tmp_path / "model")


def test_settings_that_do_not_fit(folder, tmp_path):
    def refused(message: str) -> None:
        with pytest.raises(ConversionError, match=message):
            convert_checkpoint(folder, tmp_path / "model")

    write_settings(folder, ARGS, depth=3)
    refused("depth=3, but the checkpoint holds 2 layers")
    write_settings(folder, ARGS, words=WORDS + 1)
    refused(r"embedding_layer\.weight has the shape \(40, 10\), but the settings make it \(41, 10\)")
    write_settings(folder, {**ARGS, "bidirectional": False})
    refused("bidirectional=False")
    write_settings(folder, {name: value for name, value in ARGS.items() if name != "encoder_z_dim"})
    refused(r"mega_args\.encoder_z_dim is missing")
    for content, message in (
        ([1, 2], "must hold a dict"),
        ({"depth": 2}, "mega_args is missing"),
        ({"mega_args": 3, "depth": 2, "vocab_size": 3}, "mega_args must be an object with attributes, but is int"),
        ({"mega_args": {}, "depth": "2", "vocab_size": 3}, "depth='2' must be a whole number"),
    ):
        (folder / "model_args.pkl").write_bytes(pickle.dumps(content))
        refused(message)
