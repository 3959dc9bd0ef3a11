"""Folders of transformers 4.40.2 and of its revisions before: the same numbers under 4.40.2's names."""

from __future__ import annotations

import json
import pathlib
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from samples import FOLDERS, TRANSFORMERS, read_case

import mega_transformers
from mega_transformers.convert import convert_checkpoint
from mega_transformers.convert.transformers_folder import read_weights
from mega_transformers.convert.verification import deviation

TOLERANCE = 2e-5
ROTARY = "model_09_softmax_rotary_chunknone_batchnorm_post_pad"
OUTPUTS = ("logits", "last_hidden_state", "pooler_output", "start_logits", "end_logits", "encoder_last_hidden_state")


def assert_golden(name: str, folder: pathlib.Path) -> None:
    """The model in `folder` gives what 4.40.2 gave at real tokens, or should have given."""
    case = read_case(TRANSFORMERS / name / "io.safetensors")
    kind = case.meta["cls"]
    loader = getattr(mega_transformers, kind, None) or getattr(transformers, kind)
    pooling = {"add_pooling_layer": False} if not case.meta.get("add_pooling_layer", True) else {}
    model, loading = loader.from_pretrained(folder, output_loading_info=True, **pooling)
    assert not any(loading.values())
    inputs = {key: tensor for key, tensor in case.input.items() if not key.startswith("nopad")}
    with torch.no_grad():
        outputs = model.eval()(**inputs, **({"use_cache": False} if model.can_generate() else {}))
    mask = inputs.get("decoder_attention_mask" if "decoder_input_ids" in inputs else "attention_mask")
    compared = 0
    for key in OUTPUTS:
        expected = case.fixed.get(key, case.output.get(key))
        if expected is None or key not in outputs:
            continue
        by_token = mask is not None and expected.dim() > 1 and mask.shape == expected.shape[:2]
        selected = mask.bool() if by_token else torch.ones(expected.shape[:1], dtype=torch.bool)
        padded = inputs.get("attention_mask")
        chunked = getattr(model.config, "use_chunking", False)
        if chunked and padded is not None:  # 4.40.2 counted chunks from padding on the left
            right = padded.flatten(0, -2)[:, 0] == 1
            selected = selected & (right if selected.dim() == 1 else right.unsqueeze(1))
        assert deviation(outputs[key], expected.double(), selected) < TOLERANCE, key
        compared += 1
    assert compared


@pytest.mark.parametrize("name", FOLDERS)
def test_golden(name, tmp_path):
    report = convert_checkpoint(TRANSFORMERS / name, tmp_path / "model")
    assert all(each.relative < TOLERANCE for each in report.deviations)
    assert_golden(name, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["architectures"] == [report.architecture]
    before = set(read_weights(TRANSFORMERS / name, lambda *_: None))
    before = {key for key in before if not key.endswith("_float_tensor")}
    # the wrapper's encoder has a pooler that nothing reads
    assert {key for key in load_file(tmp_path / "model" / "model.safetensors") if "pooler" not in key} == {
        key for key in before if "pooler" not in key
    }
    card = (tmp_path / "model" / "README.md").read_text()
    assert "transformers: 4.40.2" in card
    assert ("rmsnorm" in name) == any("legacy_unnormalized_rmsnorm" in note for note in report.notes)


AUTHORS = {
    "ema_gate.damping_factor": "ema_gate.delta",
    "ema_gate.decay_factor": "ema_gate.alpha",
    "ema_gate.ema_expansion_matrix": "ema_gate.beta",
    "ema_gate.kernel_projection_matrix": "ema_gate.gamma",
    "ema_gate.residual_weight": "ema_gate.omega",
    "mega_layer.qk_weight": "mega_layer.gamma",
    "mega_layer.qk_bias": "mega_layer.beta",
    "rel_pos_bias.b_param": "rel_pos_bias.beta",
}
REVISIONS = {
    "encoders": {"layers.": "encoders."},
    "move": {"ema_gate.": "move."},
    "encoders and move": {"layers.": "encoders.", "ema_gate.": "move."},
    "names of the authors": {**AUTHORS, "ema_gate.": "move.", "layers.": "encoders."},
    "plain embeddings": {"embedding_layer.word_embeddings.": "embedding_layer."},
    "names of the authors in ema_gate": AUTHORS,
}


def revision(name: str, changes: dict[str, str], folder: pathlib.Path) -> pathlib.Path:
    """A golden folder with other names of weights, in one file, with a buffer that 4.40.2 kept."""
    shutil.copytree(TRANSFORMERS / name, folder)
    weights = {}
    for key, tensor in read_weights(folder, lambda *_: None).items():
        for old, new in changes.items():
            key = key.replace(old, new)
        weights[key] = tensor.clone()
    for path in (*folder.glob("*.safetensors*"), *folder.glob("*.bin")):
        path.unlink()
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", ["masked_lm_default_tied", "causal_lm_cross_laplace_rotary", ROTARY])
@pytest.mark.parametrize("kind", REVISIONS)
def test_earlier_revisions(kind, name, tmp_path):
    folder = revision(name, REVISIONS[kind], tmp_path / "old")
    convert_checkpoint(folder, tmp_path / "model")
    assert_golden(name, tmp_path / "model")


@pytest.mark.parametrize("name", [name for name in FOLDERS if name not in ("encoder_decoder_model",)])
def test_class_that_is_not_named(name, tmp_path):
    folder = revision(name, {}, tmp_path / "old")
    config = json.loads((folder / "config.json").read_text())
    named = config.pop("architectures")
    (folder / "config.json").write_text(json.dumps(config))
    report = convert_checkpoint(folder, tmp_path / "model", verify=False)
    assert [report.architecture] == named


def test_head_that_is_not_tied(tmp_path):
    """The configuration's default says tied; a file with other weights was saved by a model that was not."""
    folder = revision("masked_lm_default_tied", {}, tmp_path / "old")
    weights = load_file(folder / "model.safetensors")
    weights["mlm_head.weight"] = torch.randn_like(weights["mega.embedding_layer.word_embeddings.weight"])
    save_file(weights, folder / "model.safetensors")
    report = convert_checkpoint(folder, tmp_path / "model")
    assert any("does not tie them" in note for note in report.notes)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert torch.equal(stored["mlm_head.weight"], weights["mlm_head.weight"])


def test_generation_config_and_tokenizer_go_along(tiny_causal_checkpoint, tmp_path):
    folder = tmp_path / "old"
    shutil.copytree(tiny_causal_checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_version": "4.38.0"}))
    (folder / "generation_config.json").write_text(json.dumps({"max_new_tokens": 17, "temperature": 0.7}))
    convert_checkpoint(folder, tmp_path / "model")
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "model")
    assert generation.max_new_tokens == 17 and generation.temperature == 0.7
    before, after = (transformers.AutoTokenizer.from_pretrained(path) for path in (folder, tmp_path / "model"))
    assert before("The ship").input_ids == after("The ship").input_ids
