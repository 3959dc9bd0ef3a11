"""TRL's trainers train Mega; Trainer and pipelines are in `test_integration`, PEFT in `tests/ecosystem`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CAUSAL, tiny_config
from transformers import PreTrainedTokenizerBase

from mega_transformers import MegaForCausalLM, MegaForSequenceClassification

trl = pytest.importorskip("trl")

WORDS = ["the whale swam", "a ship gave an order", "it is a truth", "nobody had seen the captain"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    from mega_transformers.training.tokenizer import train_tokenizer

    return train_tokenizer(WORDS * 4, vocab_size=300, max_length=64)


def causal(**fields: Any) -> MegaForCausalLM:
    torch.manual_seed(0)
    return MegaForCausalLM(tiny_config(**CAUSAL, pad_token_id=1, **fields))


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
