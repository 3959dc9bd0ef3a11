"""The authors' classifiers of texts, pairs, pixels and speech: their numbers after conversion, and their variants."""

from __future__ import annotations

import json

import pytest
import torch
from samples import CLASSIFIERS, read_sample, save_checkpoint, save_sample
from transformers import AutoModelForAudioClassification, AutoModelForSequenceClassification, AutoTokenizer

from mega_transformers import MegaForSequencePairClassification
from mega_transformers.convert import ConversionError, convert_checkpoint
from mega_transformers.convert.verification import deviation

TOLERANCE = 2e-5
CLASSES = {
    "speech_commands_raw": AutoModelForAudioClassification,
    "lra_retrieval": MegaForSequencePairClassification,
}
TAGS = {
    "speech_commands_raw": "audio-classification",
    "lra_image_batchnorm": "image-classification",
    "lra_retrieval": "text-classification",
    "lra_text_mp_layernorm": "text-classification",
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_golden(name, tmp_path):
    case = save_sample(name, tmp_path / "checkpoint.pt")
    report = convert_checkpoint(tmp_path / "checkpoint.pt", tmp_path / "model")
    assert all(each.relative < TOLERANCE for each in report.deviations)
    kind = CLASSES.get(name, AutoModelForSequenceClassification)
    model, loading = kind.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(loading.values())
    ids = case.input["src_tokens"]
    if ids.is_floating_point():
        inputs = {"input_values": ids}
    else:
        inputs = {"input_ids": ids, "attention_mask": (ids != 1).long()}
    if "src_tokens1" in case.input:
        second = case.input["src_tokens1"]
        inputs |= {"pair_input_ids": second, "pair_attention_mask": (second != 1).long()}
    with torch.no_grad():
        logits = model(**inputs).logits
    assert deviation(logits, case.output["logits"].double(), None) < TOLERANCE
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"pipeline_tag: {TAGS[name]}" in card
    assert not (tmp_path / "model" / "generation_config.json").exists()


def save_variant(path, name: str, drop: tuple[str, ...] = (), **changes) -> dict:
    case = read_sample(name)
    args = {key: value for key, value in {**case.meta["args"], **changes}.items() if key not in drop}
    save_checkpoint(path, args, case.param)
    return args


def test_what_a_file_leaves_out(tmp_path):
    """Arguments that are their defaults, of the model of its own task."""
    drop = ("encoder_normalize_before", "attention_activation_fn", "norm_type", "classifier_layers", "sen_rep_type")
    save_variant(tmp_path / "a.pt", "speech_commands_raw", drop)
    convert_checkpoint(tmp_path / "a.pt", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["attention_activation"] == "laplace" and config["normalization_type"] == "batchnorm"
    assert config["id2label"]["0"] == "yes" and config["id2label"]["9"] == "go"


def test_pixels_are_explained(tmp_path):
    save_variant(tmp_path / "a.pt", "lra_image_batchnorm", pixel_normalization=[0.48, 0.24])
    report = convert_checkpoint(tmp_path / "a.pt", tmp_path / "model")
    assert any("(pixel / 255 - 0.48) / 0.24" in note for note in report.notes)


def test_first_token(tmp_path):
    """A classifier that reads a token put before every text; the dictionary grows by it."""
    words = read_sample("lra_text_mp_layernorm").param["encoder.encoder.embed_tokens.embed.weight"].shape[0]
    dictionary = tmp_path / "dict.txt"
    dictionary.write_text("".join(f"w{index} 9\n" for index in range(words - 5)))
    for pooling, first in (("cls", [words - 1]), ("mp", [])):
        save_variant(tmp_path / "a.pt", "lra_text_mp_layernorm", sen_rep_type=pooling)
        convert_checkpoint(tmp_path / "a.pt", tmp_path / pooling, dictionaries=[dictionary])
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / pooling)
        assert tokenizer("w0 w2 nothing").input_ids == [*first, 4, 6, 3, 2]
        assert len(tokenizer) == words
        config = json.loads((tmp_path / pooling / "config.json").read_text())
        assert config["classifier_pooling"] == {"cls": "cls", "mp": "mean"}[pooling]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sen_rep_type": "max"}, r"args\.sen_rep_type='max' is unknown"),
        ({"classifier_layers": 2}, r"lacks: classifier\.blocks\.1"),
        ({"classifier_layers": 0}, r"classifier_layers=0"),
        ({"classifier_out_dim": 9}, "has the shape"),
        ({"use_p": True}, "use_p=True"),
        ({"encoder_normalize_before": True}, r"lacks: mega\.final_norm"),
    ],
)
def test_arguments_that_do_not_fit(changes, message, tmp_path):
    save_variant(tmp_path / "a.pt", "lra_retrieval", **changes)
    with pytest.raises(ConversionError, match=message):
        convert_checkpoint(tmp_path / "a.pt", tmp_path / "model")


def test_dictionary_for_pixels(tmp_path):
    (tmp_path / "dict.txt").write_text("a 1\n")
    save_variant(tmp_path / "a.pt", "lra_image_batchnorm")
    with pytest.raises(ConversionError, match="does not read text"):
        convert_checkpoint(tmp_path / "a.pt", tmp_path / "model", dictionaries=[tmp_path / "dict.txt"])
