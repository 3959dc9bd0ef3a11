"""Loading of old and of damaged checkpoints; needs nothing but this package."""

from __future__ import annotations

import json
import logging
import pathlib
import shutil

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from parity_cases import AUTO, SMALL, VARIANTS
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM

from mega_transformers import MegaConfig, MegaForMaskedLM

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "hf"
EARLY = ["ema_beta_range", "ema_delta_alpha_range", "ema_gamma_omega_range"]


@pytest.fixture
def checkpoint(tmp_path):
    """Copies a golden folder to where it may be changed."""

    def copy(name: str) -> pathlib.Path:
        return pathlib.Path(shutil.copytree(GOLDEN / name, tmp_path / name))

    return copy


@pytest.fixture
def model() -> MegaForMaskedLM:
    torch.manual_seed(0)
    return MegaForMaskedLM(MegaConfig(**SMALL)).eval()


@pytest.fixture
def input_ids() -> torch.Tensor:
    return torch.arange(11).view(1, -1) + 3


def edit_config(folder: pathlib.Path, drop: list[str] = (), **fields) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in drop}))


def logits(model: MegaForMaskedLM, input_ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids).logits


def keys_on_disk(folder: pathlib.Path) -> set[str]:
    keys = set()
    for path in folder.glob("model*.safetensors"):
        keys |= load_file(path).keys()
    for path in folder.glob("*.bin"):
        keys |= torch.load(path, weights_only=True).keys()
    return {key for key in keys if not key.endswith("_float_tensor")}


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.glob("m*")))
def test_saved_names_are_those_of_4_40_2(name, tmp_path):
    folder = GOLDEN / name
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    kwargs = {} if any("pooler" in key for key in keys_on_disk(folder)) else {"add_pooling_layer": False}
    loaded = AUTO[architecture].from_pretrained(folder, **(kwargs if architecture == "MegaModel" else {}))
    loaded.save_pretrained(tmp_path)
    assert keys_on_disk(tmp_path) == keys_on_disk(folder)
    saved = json.loads((tmp_path / "config.json").read_text())
    for key, value in json.loads((folder / "config.json").read_text()).items():
        if key not in ("transformers_version", "torch_dtype"):
            assert getattr(loaded.config, key) == value
            assert saved.get(key, getattr(MegaConfig(), key)) == value


def test_early_config_with_missing_and_extra_fields(checkpoint):
    folder = checkpoint("masked_lm_default_tied")
    case = load_file(folder / "io.safetensors")
    edit_config(folder, drop=[*EARLY, "num_attention_heads", "use_cache"], layer_norm_eps=1e-5)
    model, info = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        outputs = model.eval()(case["input.input_ids"], attention_mask=case["input.attention_mask"])
    torch.testing.assert_close(outputs.logits, case["output.logits"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_float_tensor_buffers_are_dropped_silently(suffix, model, input_ids, tmp_path, caplog):
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    stray = {f"mega.layers.{index}.mega_layer.rel_pos_bias._float_tensor": torch.tensor([3e38]) for index in range(2)}
    if suffix == "safetensors":
        save_file({**state, **stray}, path, metadata={"format": "pt"})
    else:
        path.unlink()
        torch.save({**state, **stray}, tmp_path / "pytorch_model.bin")
    with caplog.at_level(logging.INFO):
        loaded, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert "_float_tensor" not in caplog.text
    torch.testing.assert_close(logits(loaded, input_ids), logits(model, input_ids), rtol=0, atol=0)


def test_other_unexpected_keys_are_reported(model, tmp_path):
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({**load_file(path), "mega.layers.0.stray": torch.ones(1)}, path, metadata={"format": "pt"})
    _, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["unexpected_keys"]) == {"mega.layers.0.stray"}


@pytest.mark.parametrize("zipped", [True, False])
def test_bin(zipped, model, input_ids, tmp_path):
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded, input_ids), logits(model, input_ids), rtol=0, atol=0)


def test_bin_in_shards(model, input_ids, tmp_path):
    model.config.save_pretrained(tmp_path)
    state = model.state_dict()
    files = {key: f"pytorch_model-0000{index % 2 + 1}-of-00002.bin" for index, key in enumerate(state)}
    for file in set(files.values()):
        torch.save({key: tensor for key, tensor in state.items() if files[key] == file}, tmp_path / file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded, input_ids), logits(model, input_ids), rtol=0, atol=0)


class _Touch:
    """Creates a file when it is unpickled by something that runs what it reads."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_bin_runs_no_code(model, tmp_path):
    model.config.save_pretrained(tmp_path)
    torch.save({**model.state_dict(), "x": _Touch(tmp_path / "touched")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("name", [*VARIANTS, "rmsnorm"])
def test_round_trip(name, input_ids, tmp_path):
    torch.manual_seed(0)
    fields = VARIANTS.get(name, {"normalization_type": "rmsnorm", "legacy_unnormalized_rmsnorm": True})
    model = MegaForMaskedLM(MegaConfig(**SMALL, **fields)).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    for key, value in {**SMALL, **fields}.items():
        assert getattr(loaded.config, key) == value
    tied = loaded.mlm_head.weight is loaded.mega.embedding_layer.word_embeddings.weight
    assert tied == model.config.tie_word_embeddings
    torch.testing.assert_close(logits(loaded, input_ids), logits(model, input_ids), rtol=0, atol=0)


def test_round_trip_in_shards(model, input_ids, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded, input_ids), logits(model, input_ids), rtol=0, atol=0)


def cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: pathlib.Path) -> None:
    path.write_bytes(b"")


def garble(path: pathlib.Path) -> None:
    path.write_bytes(b"this is no checkpoint " * 50)


@pytest.mark.parametrize("damage", [cut, empty, garble])
@pytest.mark.parametrize(
    "name, file",
    [
        ("masked_lm_default_tied", "model.safetensors"),
        ("masked_lm_sharded_types", "model-00002-of-00002.safetensors"),
        ("masked_lm_sharded_types", "model.safetensors.index.json"),
        ("model_inputs_embeds_bin", "pytorch_model.bin"),
        ("masked_lm_default_tied", "config.json"),
    ],
)
def test_damaged_file_is_named(damage, name, file, checkpoint):
    folder = checkpoint(name)
    damage(folder / file)
    auto = AutoModel if name.startswith("model") else AutoModelForMaskedLM
    with pytest.raises((OSError, ValueError)) as error:
        auto.from_pretrained(folder)
    assert str(folder) in str(error.value)


def test_missing_shard_is_named(checkpoint):
    folder = checkpoint("masked_lm_sharded_types")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(OSError, match=r"model-00002-of-00002\.safetensors"):
        AutoModelForMaskedLM.from_pretrained(folder)


def test_missing_weights_are_named(checkpoint):
    folder = checkpoint("masked_lm_default_tied")
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors.*masked_lm_default_tied"):
        AutoModelForMaskedLM.from_pretrained(folder)


@pytest.mark.parametrize(
    "field, value, parameter",
    [
        ("vocab_size", 40, "word_embeddings.weight"),
        ("hidden_size", 16, "h_proj.bias"),
        ("ema_projection_size", 4, "kernel_projection_matrix"),
        ("nffn_hidden_size", 10, "fc1.weight"),
    ],
)
def test_shapes_that_mismatch(field, value, parameter, checkpoint, caplog):
    folder = checkpoint("masked_lm_default_tied")
    edit_config(folder, **{field: value})
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForMaskedLM.from_pretrained(folder)
    assert parameter in caplog.text  # the report that the error points to
    assert "MISMATCH" in caplog.text


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"normalization_type": "groupnorm"}, "normalization_type='groupnorm'"),
        ({"use_chunking": True}, "chunk_size=-1"),
        ({"shared_representation_size": 7}, "shared_representation_size=7"),
    ],
)
def test_config_that_cannot_work(fields, message, checkpoint):
    folder = checkpoint("masked_lm_default_tied")
    edit_config(folder, **fields)
    with pytest.raises((ValueError, StrictDataclassClassValidationError), match=message):
        AutoModelForMaskedLM.from_pretrained(folder)
