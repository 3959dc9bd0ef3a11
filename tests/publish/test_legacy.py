"""Exports for transformers 4.40.2, as far as this package can tell; `test_legacy_4_40.py` asks 4.40.2 itself."""

from __future__ import annotations

import json
import re

import pytest
import torch
from folders import inputs_of, make, outputs_of, save
from legacy_cases import CASES, CAUSAL_LM, MASKED, PAIR, SIMPLE
from safetensors.torch import load_file, save_file
from tiny import CAUSAL

import mega_transformers
from mega_transformers.publish import ConversionError, PublishError, export_legacy, legacy
from mega_transformers.publish.folder import model_classes
from mega_transformers.publish.legacy_features import FIELDS

VALUES = {"input_type": "values"}
ADAPTIVE = {"adaptive_cutoffs": [9], "adaptive_softmax": True, "tie_word_embeddings": False}
CROSS = {"add_cross_attention": True}


@pytest.mark.parametrize(
    ("architecture", "fields", "parts"),
    [
        (MASKED, {"final_norm": True, "activation": "hardswish"}, ["final_norm=True", "activation='hardswish'"]),
        (
            MASKED,
            {"normalize_embeddings": True, "add_token_type_embeddings": True},
            ["normalize_embeddings=True with"],
        ),
        (
            MASKED,
            {"normalization_type": "rmsnorm", "normalize_before_ffn": False},
            ["normalization_type='rmsnorm' with legacy_unnormalized_rmsnorm=None", "normalize_before_ffn=False"],
        ),
        (MASKED, {"hidden_size": 7}, ["hidden_size=7 with relative_positional_bias='rotary'"]),
        (CAUSAL_LM, ADAPTIVE, ["adaptive_softmax=True"]),
        (CAUSAL_LM, {**CROSS, "cross_attention_hidden_size": 6}, ["cross_attention_hidden_size=6 with hidden_size=8"]),
        ("MegaForSequenceClassification", {"classifier_pooling": "mean"}, ["classifier_pooling='mean'"]),
        ("MegaForSequenceClassification", {"classifier_head": "blocks"}, ["classifier_head='blocks'"]),
        ("MegaForSequenceClassification", VALUES, ["input_type='values'"]),
        ("MegaForAudioClassification", VALUES, ["MegaForAudioClassification: a model of values"]),
        ("MegaForSequencePairClassification", {}, ["MegaForSequencePairClassification"]),
        ("MegaSeq2SeqModel", {}, ["MegaSeq2SeqModel"]),
        (PAIR, {"final_norm": True}, ["encoder.final_norm=True", "decoder.final_norm=True"]),
        (
            PAIR,
            {"share_embeddings": False, "tie_word_embeddings": False, "encoder": {"hidden_size": 10}},
            ["decoder.cross_attention_hidden_size=10 with hidden_size=8"],
        ),
        (
            PAIR,
            {"decoder": {**SIMPLE, "use_chunking": True, "chunk_size": 8}},
            ["decoder.cross_attention_max_positions=32 with chunk_size=8"],
        ),
    ],
)
def test_what_4_40_lacks_is_named(architecture, fields, parts, tmp_path):
    source = save(make(architecture, **fields), tmp_path / "source")
    with pytest.raises(PublishError, match=re.escape("transformers 4.40.2 lacks ")) as told:
        export_legacy(source, tmp_path / "output")
    for part in parts:
        assert part in str(told.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize("name", CASES)
def test_exports_load_here_too(name, tmp_path):
    """Nothing is left of our own fields, and what remains gives the same numbers without them."""
    model = CASES[name]()
    report = export_legacy(save(model, tmp_path / "source"), tmp_path / "output")
    written = json.loads((tmp_path / "output" / "config.json").read_text())
    for side in (written.get("encoder", written), written.get("decoder", written)):
        ours = mega_transformers.MegaConfig().to_dict().keys() - set(FIELDS)
        assert not ours & side.keys() - {"model_type", "architectures", "transformers_version", "vocab_size"}
    assert written["transformers_version"] == "4.40.2" and written["torch_dtype"] == "float32"
    assert report.deviation <= 2e-5
    if written.get("normalization_type") == "rmsnorm":
        return  # here it would normalise
    again = model_classes()[report.architecture].from_pretrained(tmp_path / "output").eval()
    inputs = inputs_of(model)
    expected, actual = outputs_of(model, inputs), outputs_of(again, inputs)
    for key, tensor in expected.items():
        assert float((actual[key] - tensor).abs().max() / (1 + tensor.abs().max())) <= 2e-5


def test_what_was_changed_is_told(tmp_path):
    def changes(number: int, *arguments, **fields) -> str:
        source = save(make(*arguments, **fields), tmp_path / f"source{number}")
        return " ".join(export_legacy(source, tmp_path / f"output{number}").changes)

    assert changes(1, MASKED) == ""
    tied = changes(2, MASKED, scale_embeddings=True)
    assert "scale_embeddings=True" in tied and "tie_word_embeddings=True" in tied
    assert "tie_word_embeddings" not in changes(3, MASKED, scale_embeddings=True, tie_word_embeddings=False)
    assert "scalenorm" in changes(4, MASKED, normalization_type="rmsnorm")
    pair = changes(5, PAIR, decoder={**SIMPLE, "cross_attention_max_positions": 21})
    assert "serve 21 positions" in pair and "written separately" in pair


def test_notes_and_decoding(tmp_path):
    """A decoder that 4.40.2 decodes wrongly with a cache decodes without."""
    for number, (fields, off, note) in enumerate(
        [
            ({}, False, None),
            ({"attention_activation": "laplace"}, True, "attention_activation='laplace'"),
            ({"truncation": 4}, True, "truncation=4"),
            ({"use_chunking": True, "chunk_size": 4}, False, "multiples of chunk_size=4 only, and cannot generate"),
            ({"embedding_dropout_prob": 0.5}, False, "embedding_dropout_prob=0.5"),
        ]
    ):
        output = tmp_path / f"output{number}"
        report = export_legacy(save(make(CAUSAL_LM, **fields), tmp_path / f"source{number}"), output)
        config, generation = (
            json.loads((output / f"{name}.json").read_text()) for name in ("config", "generation_config")
        )
        assert config["use_cache"] is generation["use_cache"] is not off
        assert (report.notes == []) if note is None else any(note in each for each in report.notes)
    encoder = export_legacy(save(make(MASKED, use_chunking=True, chunk_size=4), tmp_path / "chunks"), tmp_path / "out")
    assert any("lengths below and multiples of chunk_size=4" in note for note in encoder.notes)
    assert not (tmp_path / "out" / "generation_config.json").exists()


def test_settings_of_generation(tmp_path):
    source = save(make(PAIR), tmp_path / "source")
    given = {"num_beams": 3, "max_length": 9, "dola_layers": "low", "top_h": 0.5, "eos_token_id": 5}
    (source / "generation_config.json").write_text(json.dumps(given))
    export_legacy(source, tmp_path / "output")
    assert json.loads((tmp_path / "output" / "generation_config.json").read_text()) == {
        "num_beams": 3,
        "max_length": 9,
        "eos_token_id": 5,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "decoder_start_token_id": 2,
        "use_cache": False,
        "transformers_version": "4.40.2",
    }


def test_half_precision_stays(tmp_path):
    """What is not computed anew is stored as it was."""
    source = save(make(MASKED, scale_embeddings=True), tmp_path / "source")
    stored = {
        name: tensor if "ema_gate" in name else tensor.half()
        for name, tensor in load_file(source / "model.safetensors").items()
    }
    save_file(stored, source / "model.safetensors", metadata={"format": "pt"})
    report = export_legacy(source, tmp_path / "output")
    written = load_file(tmp_path / "output" / "model.safetensors")
    words = "mega.embedding_layer.word_embeddings.weight"
    assert written[words].dtype == torch.float32 and torch.equal(written["mlm_head.weight"], stored[words])
    assert all(torch.equal(written[name], tensor) for name, tensor in stored.items() if name != words)
    assert any("half precision" in note for note in report.notes)


def test_a_wrong_export_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(legacy, "adapt", lambda trunk: None)
    source = save(make(MASKED, scale_embeddings=True), tmp_path / "source")
    with pytest.raises(PublishError, match="deviates by"):
        export_legacy(source, tmp_path / "output")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_tokenizer(tiny_checkpoint, tiny_causal_checkpoint, tmp_path):
    for source, name in ((tiny_checkpoint, "RobertaTokenizer"), (tiny_causal_checkpoint, "PreTrainedTokenizerFast")):
        export_legacy(source, tmp_path / name)
        files = {path.name for path in (tmp_path / name).iterdir()} - {"generation_config.json"}
        assert files == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
        assert json.loads((tmp_path / name / "tokenizer_config.json").read_text())["tokenizer_class"] == name
        merges = json.loads((tmp_path / name / "tokenizer.json").read_text())["model"]["merges"]
        assert merges and all(isinstance(merge, str) and merge.count(" ") == 1 for merge in merges)


def test_places(tmp_path):
    source = save(make(MASKED), tmp_path / "source")
    with pytest.raises(ConversionError, match="is in the folder"):
        export_legacy(source, source / "old")
    (tmp_path / "output").mkdir()
    with pytest.raises(ConversionError, match="--force"):
        export_legacy(source, tmp_path / "output")
    export_legacy(source, tmp_path / "output", force=True)


def test_a_decoder_alone(tmp_path):
    """A causal model over an encoder's states, which keeps its class."""
    model = make(CAUSAL_LM, **CROSS, normalization_type="rmsnorm", cross_attention_max_positions=12, **SIMPLE)
    report = export_legacy(save(model, tmp_path / "source"), tmp_path / "output")
    assert report.architecture == CAUSAL_LM and report.deviation <= 2e-5
    assert any("padded on the left" in note for note in report.notes)
    assert CAUSAL.items() <= json.loads((tmp_path / "output" / "config.json").read_text()).items()
