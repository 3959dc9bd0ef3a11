"""PEFT's adapters on Mega: defaults, training, saving, merging, generation, quantised bases."""

import inspect
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, BitsAndBytesConfig, TorchAoConfig

from mega_transformers import (
    MegaForCausalLM,
    MegaForConditionalGeneration,
    MegaForMaskedLM,
    MegaForSequenceClassification,
    MegaSeq2SeqConfig,
    registration,
)
from mega_transformers.models.mega.compat_mega import CACHE_NAME
from tests.tiny import CAUSAL, SIZES, tiny_config

peft = pytest.importorskip("peft")

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 1, 1, 1]])
MASK = (IDS != 1).long()
LABELS = IDS.masked_fill(MASK == 0, -100)
# PEFT 0.21 looks for `past_key_values` only, so with transformers 5.24 it puts the virtual tokens before every step
PEFT_LOSES_CACHES = CACHE_NAME == "cache" and '"cache"' not in inspect.getsource(peft.peft_model)
TABLE = "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING"
# weights large enough for every part of a model to matter
SPREAD = {"pad_token_id": 1, "initializer_range": 0.5}
VIRTUAL = {
    "num_virtual_tokens": 3,
    "token_dim": SIZES["hidden_size"],
    "num_layers": SIZES["num_hidden_layers"],
    "num_attention_heads": 1,
}


def causal(**fields):
    torch.manual_seed(0)
    return MegaForCausalLM(tiny_config(**CAUSAL, **SPREAD, **fields))


def masked():
    torch.manual_seed(0)
    return MegaForMaskedLM(tiny_config(**SPREAD))


def classifier():
    torch.manual_seed(0)
    return MegaForSequenceClassification(tiny_config(num_labels=3, **SPREAD))


def text_to_text():
    torch.manual_seed(0)
    side = {**SIZES, **SPREAD}
    return MegaForConditionalGeneration(
        MegaSeq2SeqConfig(encoder=side, decoder=side, pad_token_id=1, decoder_start_token_id=2)
    )


MODELS = {"CAUSAL_LM": causal, "SEQ_CLS": classifier, "SEQ_2_SEQ_LM": text_to_text, "FEATURE_EXTRACTION": masked}


def train(model, task="CAUSAL_LM", steps=12, rate=0.02):
    """Trains what an adapter lets be trained, on one batch; the loss must fall, and nothing else change."""
    model.eval()  # no dropout: losses can be compared
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    assert trained
    optimizer = torch.optim.Adam(trained.values(), lr=rate)
    losses = []
    for _ in range(steps):
        labels = torch.tensor([0, 2]) if task == "SEQ_CLS" else LABELS
        loss = model(input_ids=IDS, attention_mask=MASK, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0], losses
    for name, p in model.named_parameters():
        if name in frozen and type(p.data) is torch.Tensor:
            assert torch.equal(p, frozen[name])
    return list(trained)


def logits_of(model):
    given = {"decoder_input_ids": IDS} if "Conditional" in type(base_of(model)).__name__ else {}
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=MASK, **given).logits


def base_of(model):
    return model.get_base_model() if isinstance(model, peft.PeftModel) else model


def check_generation(model):
    """With a cache as without, for rows padded on the left."""
    options = {"input_ids": IDS.flip(1), "attention_mask": MASK.flip(1), "max_new_tokens": 5, "do_sample": False}
    assert model.generate(**options).tolist() == model.generate(**options, use_cache=False).tolist()


def adapted(model):
    return {name.rpartition(".")[2] for name, module in model.named_modules() if hasattr(module, "lora_A")}


def test_defaults_are_known_when_peft_is_imported_later():
    code = f"import mega_transformers; from peft.utils import constants; print(constants.{TABLE}['mega'])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "mx_proj" in printed


def test_defaults_are_known_when_peft_was_imported_before(monkeypatch):
    table = getattr(peft.utils.constants, TABLE)
    monkeypatch.delitem(table, "mega")
    registration.register()
    assert "mx_proj" in table["mega"]


def test_the_package_alone_imports_no_peft():
    code = "import sys, mega_transformers; print('peft' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["False"]


@pytest.mark.parametrize("targets", [None, "all-linear"])
@pytest.mark.parametrize("task", MODELS)
def test_lora(task, targets, tmp_path):
    base = MODELS[task]()
    before = logits_of(base.eval())
    model = peft.get_peft_model(base, peft.LoraConfig(task_type=task, target_modules=targets))
    attention = {"v_proj", "mx_proj", "h_proj"} | ({"q_proj", "k_proj"} if task == "SEQ_2_SEQ_LM" else set())
    others = {"fc1", "fc2"} | ({"dense"} if task in ("CAUSAL_LM", "FEATURE_EXTRACTION") else set())
    assert adapted(model) == attention | (others if targets else set()), "heads are not adapted"
    torch.testing.assert_close(logits_of(model.eval()), before)
    train(model, task)
    after = logits_of(model)
    assert not torch.allclose(after, before, atol=1e-2)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(MODELS[task](), tmp_path).eval()
    torch.testing.assert_close(logits_of(loaded), after)
    if task in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
        check_generation(model)
    merged = model.merge_and_unload()
    assert type(merged) is type(base)
    torch.testing.assert_close(logits_of(merged), after, rtol=1e-4, atol=1e-4)


KINDS = {
    "IA3Config": {},
    "AdaLoraConfig": {"total_step": 50, "init_lora_weights": False},
    "VeraConfig": {"r": 4},
    "LoHaConfig": {"init_weights": False},
    "LoKrConfig": {"init_weights": False},
    "OFTConfig": {"oft_block_size": 4},
    "HRAConfig": {},
    "LoraConfig": {"use_dora": True},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:Unsupported layer type")
def test_other_adapters_know_what_to_adapt(kind, tmp_path):
    model = peft.get_peft_model(causal(), getattr(peft, kind)(task_type="CAUSAL_LM", **KINDS[kind]))
    names = train(model)
    assert all("embed" not in name and "lm_head" not in name for name in names)
    after = logits_of(model)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(causal(), tmp_path).eval()
    torch.testing.assert_close(logits_of(loaded), after)
    check_generation(model)
    torch.testing.assert_close(logits_of(model.merge_and_unload()), after, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["layernorm", "scalenorm", "rmsnorm", "batchnorm"])
@pytest.mark.filterwarnings("ignore:Unsupported layer type")
def test_norms(norm):
    base = causal(normalization_type=norm, normalize_embeddings=True)
    model = peft.get_peft_model(base, peft.LNTuningConfig(task_type="CAUSAL_LM"))
    names = train(model)
    of_norm = {name.removesuffix(".weight") for name in names if ".norm.norm." in name}
    assert len({name.partition(".ln_tuning_layers")[0] for name in of_norm}) == 5, "two a block, and the embeddings'"
    check_generation(model)
    after = logits_of(model)
    if norm == "scalenorm":  # PEFT 0.21 asks every norm for a `weight`
        with pytest.raises(AttributeError, match="weight"):
            model.merge_and_unload()
    else:
        torch.testing.assert_close(logits_of(model.merge_and_unload()), after)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "parameter", ["damping_factor", "decay_factor", "ema_expansion_matrix", "kernel_projection_matrix"]
)
def test_ema_parameters(parameter, dtype, tmp_path):
    causal().save_pretrained(tmp_path / "base")
    base = MegaForCausalLM.from_pretrained(tmp_path / "base", dtype=dtype)
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=[], target_parameters=[parameter])
    model = peft.get_peft_model(base, config)
    names = train(model)
    assert all(".ema_gate.lora_" in name for name in names)
    after = logits_of(model)
    model.save_pretrained(tmp_path / "adapter")
    loaded = MegaForCausalLM.from_pretrained(tmp_path / "base", dtype=dtype)
    loaded = peft.PeftModel.from_pretrained(loaded, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits_of(loaded), after)
    if dtype == torch.float32:  # in bfloat16 words are too close
        check_generation(model)
    merged = model.merge_and_unload()
    assert all(p.dtype == torch.float32 for name, p in merged.named_parameters() if "ema_gate" in name)
    torch.testing.assert_close(logits_of(merged), after)


@pytest.mark.parametrize("name, parameters", [("ema_gate", 5), ("norm.norm", 2)])
def test_modules_trained_whole_beside_lora(name, parameters, tmp_path):
    """EMAs and norms are small: to train them whole costs fewer numbers than to adapt them."""
    model = peft.get_peft_model(causal(), peft.LoraConfig(task_type="CAUSAL_LM", modules_to_save=[name]))
    names = train(model)
    assert sum(f"{name}.modules_to_save" in each for each in names) == parameters * SIZES["num_hidden_layers"]
    after = logits_of(model)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(logits_of(peft.PeftModel.from_pretrained(causal(), tmp_path).eval()), after)
    check_generation(model)
    torch.testing.assert_close(logits_of(model.merge_and_unload()), after, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PromptEncoderConfig"])
def test_prompts(kind):
    model = peft.get_peft_model(causal(), getattr(peft, kind)(task_type="CAUSAL_LM", **VIRTUAL))
    assert all("prompt" in name for name in train(model))
    if not PEFT_LOSES_CACHES:
        check_generation(model)
        return
    options = {"input_ids": IDS.flip(1), "attention_mask": MASK.flip(1), "max_new_tokens": 4}
    assert model.generate(**options, use_cache=False).shape == (2, 11)
    with pytest.raises(ValueError, match="attention_mask has shape"):
        model.generate(**options)


def test_prompts_of_a_classifier():
    model = peft.get_peft_model(classifier(), peft.PromptTuningConfig(task_type="SEQ_CLS", **VIRTUAL))
    train(model, "SEQ_CLS")
    assert logits_of(model).shape == (2, 3)


@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_2_SEQ_LM"])
def test_prefix_tuning_says_what_to_use(task):
    model = peft.get_peft_model(MODELS[task](), peft.PrefixTuningConfig(task_type=task, **VIRTUAL))
    with pytest.raises(ValueError, match=r"prefix tuning: .* use LoRA or prompt tuning"):
        model(input_ids=IDS, attention_mask=MASK, labels=LABELS)


def test_beam_search_of_an_adapted_text_to_text_model(tmp_path):
    text_to_text().save_pretrained(tmp_path)
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_2_SEQ_LM", init_lora_weights=False)).eval()
    made = model.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=4, num_beams=2)
    assert made.shape[0] == 2


def torchao_int8():
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def bitsandbytes_int8():
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(load_in_8bit=True)


@pytest.mark.parametrize("quantised", [torchao_int8, bitsandbytes_int8])
def test_lora_on_a_quantised_base(quantised, tmp_path):
    causal(hidden_size=32, intermediate_size=64, nffn_hidden_size=64).save_pretrained(tmp_path / "base")

    def load():
        config = quantised()
        return MegaForCausalLM.from_pretrained(tmp_path / "base", quantization_config=config, dtype=torch.float32)

    model = peft.prepare_model_for_kbit_training(load(), use_gradient_checkpointing=False)
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM"))
    train(model)
    after = logits_of(model)
    model.save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(load(), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits_of(loaded), after, rtol=1e-3, atol=1e-3)
    check_generation(model)
