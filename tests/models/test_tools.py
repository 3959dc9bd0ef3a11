"""What tools hand to `forward` is accepted: PEFT and TRL here, Trainer and pipelines in `test_integration`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CAUSAL, SIZES, tiny_config
from transformers import AutoModelForSeq2SeqLM, PreTrainedTokenizerBase

from mega_transformers import (
    MegaForCausalLM,
    MegaForConditionalGeneration,
    MegaForSequenceClassification,
    MegaSeq2SeqConfig,
)
from mega_transformers.models.mega.compat_mega import CACHE_NAME

peft = pytest.importorskip("peft")
trl = pytest.importorskip("trl")

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 1, 1, 1]])
MASK = (IDS != 1).long()
# PEFT 0.21 looks for `past_key_values` only, so with transformers 5.24 it puts the virtual tokens before every step
PEFT_LOSES_CACHES = CACHE_NAME == "cache" and '"cache"' not in inspect.getsource(peft.peft_model)
TARGETS = ["v_proj", "mx_proj", "h_proj"]
WORDS = ["the whale swam", "a ship gave an order", "it is a truth", "nobody had seen the captain"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    from mega_transformers.training.tokenizer import train_tokenizer

    return train_tokenizer(WORDS * 4, vocab_size=300, max_length=64)


def causal(**fields: Any) -> MegaForCausalLM:
    torch.manual_seed(0)
    return MegaForCausalLM(tiny_config(**CAUSAL, pad_token_id=1, **fields))


def changed_parameters(model: torch.nn.Module, loss: torch.Tensor) -> list[str]:
    loss.backward()
    return [name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]


# -- PEFT


@pytest.mark.parametrize("kind", ["LoraConfig", "IA3Config", "PromptTuningConfig", "PromptEncoderConfig"])
def test_peft_trains_and_generates_with_a_causal_model(kind: str) -> None:
    options: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    if kind in ("LoraConfig", "IA3Config"):
        options["target_modules"] = TARGETS
        if kind == "IA3Config":
            options["feedforward_modules"] = []
    else:
        options |= {"num_virtual_tokens": 3, "token_dim": SIZES["hidden_size"]}
        options |= {"num_layers": SIZES["num_hidden_layers"], "num_attention_heads": 1}
    model = peft.get_peft_model(causal(), getattr(peft, kind)(**options))
    loss = model(input_ids=IDS, attention_mask=MASK, labels=IDS.masked_fill(MASK == 0, -100)).loss
    trained = changed_parameters(model, loss)
    assert trained
    assert all(any(part in name for part in ("lora", "ia3", "prompt")) for name in trained)
    model.eval()
    prompt, mask = IDS.flip(1), MASK.flip(1)
    options = {"input_ids": prompt, "attention_mask": mask, "max_new_tokens": 4, "do_sample": False}
    whole = model.generate(**options, use_cache=False)
    if kind.startswith("Prompt") and PEFT_LOSES_CACHES:
        with pytest.raises(ValueError, match="attention_mask has shape"):
            model.generate(**options)
    else:
        assert model.generate(**options).tolist() == whole.tolist()


@pytest.mark.parametrize("kind", ["LoraConfig", "PromptTuningConfig"])
def test_peft_trains_a_classifier(kind: str) -> None:
    options: dict[str, Any] = {"target_modules": TARGETS}
    if kind == "PromptTuningConfig":
        options = {"num_virtual_tokens": 3, "token_dim": SIZES["hidden_size"]}
        options |= {"num_layers": SIZES["num_hidden_layers"], "num_attention_heads": 1}
    model = peft.get_peft_model(
        MegaForSequenceClassification(tiny_config(num_labels=3)), getattr(peft, kind)(task_type="SEQ_CLS", **options)
    )
    outputs = model(input_ids=IDS, attention_mask=MASK, labels=torch.tensor([0, 2]))
    assert outputs.logits.shape == (2, 3)
    assert changed_parameters(model, outputs.loss)


def test_peft_trains_and_generates_with_a_text_to_text_model() -> None:
    side = tiny_config().to_dict()
    config = MegaSeq2SeqConfig(encoder=side, decoder=side, pad_token_id=1, decoder_start_token_id=2)
    model = peft.get_peft_model(
        MegaForConditionalGeneration(config),
        peft.LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=TARGETS),
    )
    assert changed_parameters(model, model(input_ids=IDS, attention_mask=MASK, labels=IDS).loss)
    made = model.eval().generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=4, num_beams=2)
    assert made.shape[0] == 2


def test_peft_adapters_are_saved_and_loaded(tmp_path: Path) -> None:
    model = peft.get_peft_model(causal(), peft.LoraConfig(task_type="CAUSAL_LM", target_modules=TARGETS))
    for name, parameter in model.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(causal(), tmp_path)
    torch.testing.assert_close(loaded(input_ids=IDS).logits, model.eval()(input_ids=IDS).logits)


# -- TRL


def arguments(kind: str, folder: Path, **more: Any) -> Any:
    return getattr(trl, kind)(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=2,
        report_to="none",
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        gradient_checkpointing=False,
        **more,
    )


def dataset(rows: list[dict[str, Any]]) -> Any:
    import datasets

    return datasets.Dataset.from_list(rows)


@pytest.mark.parametrize("options", [{}, {"packing": True, "packing_strategy": "wrapped"}], ids=["plain", "packed"])
def test_trl_fine_tunes(options: dict[str, Any], tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    trainer = trl.SFTTrainer(
        model=causal(vocab_size=300),
        args=arguments("SFTConfig", tmp_path, max_length=16, **options),
        train_dataset=dataset([{"text": text} for text in WORDS * 4]),
        processing_class=tokenizer,
    )
    assert trainer.train().training_loss > 0


def test_trl_learns_preferences(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [
        {"prompt": "the", "chosen": " whale", "rejected": " ship"},
        {"prompt": "a", "chosen": " b", "rejected": "c"},
    ]
    trainer = trl.DPOTrainer(
        model=causal(vocab_size=300),
        ref_model=causal(vocab_size=300),
        args=arguments("DPOConfig", tmp_path, max_length=32),
        train_dataset=dataset(rows * 4),
        processing_class=tokenizer,
    )
    assert trainer.train().training_loss > 0


def test_trl_loads_a_model_by_its_path(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Fine-tuning, and preferences against the loaded model itself."""
    folder = tmp_path / "model"
    causal(vocab_size=300).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    texts = dataset([{"text": text} for text in WORDS * 4])
    tuned = trl.SFTTrainer(str(folder), args=arguments("SFTConfig", tmp_path, max_length=16), train_dataset=texts)
    assert type(tuned.model) is MegaForCausalLM and tuned.train().training_loss > 0
    rows = dataset([{"prompt": "the", "chosen": " whale", "rejected": " ship"}] * 4)
    preferring = trl.DPOTrainer(str(folder), args=arguments("DPOConfig", tmp_path, max_length=32), train_dataset=rows)
    assert type(preferring.model) is MegaForCausalLM and preferring.train().training_loss > 0


def test_trl_learns_rewards(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [{"chosen": "the whale", "rejected": "the ship"}, {"chosen": "a truth", "rejected": "an order"}]
    trainer = trl.RewardTrainer(
        model=MegaForSequenceClassification(tiny_config(num_labels=1, vocab_size=300, pad_token_id=1)),
        args=arguments("RewardConfig", tmp_path, max_length=32),
        train_dataset=dataset(rows * 4),
        processing_class=tokenizer,
    )
    assert trainer.train().training_loss > 0


def test_an_auto_class_makes_a_model_that_peft_takes(tmp_path: Path) -> None:
    side = tiny_config().to_dict()
    MegaForConditionalGeneration(MegaSeq2SeqConfig(encoder=side, decoder=side)).save_pretrained(tmp_path)
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=TARGETS))
    assert adapted.get_nb_trainable_parameters()[0] > 0
