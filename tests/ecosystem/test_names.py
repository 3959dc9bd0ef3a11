"""Tools that go by the name of a class or a model type find Mega's."""

import subprocess
import sys

import pytest
import torch
from tiny import CAUSAL, tiny_config
from transformers import (
    AutoModelForPreTraining,
    AutoModelForTextEncoding,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
    Wav2Vec2FeatureExtractor,
    pipeline,
    set_seed,
)

from mega_transformers import (
    MegaForAudioClassification,
    MegaForCausalLM,
    MegaForMaskedLM,
    MegaForMultipleChoice,
    MegaForSequenceClassification,
    MegaForSequencePairClassification,
    MegaModel,
)

WORDS = 16


def cycles(rows):
    """Rows of a text in which every word has one that always follows it."""
    start = torch.arange(rows).unsqueeze(1)
    ids = 3 + (start + torch.arange(24)) % WORDS
    return [{"input_ids": row, "labels": row} for row in ids]


def next_word_accuracy(model):
    ids = torch.stack([row["input_ids"] for row in cycles(8)])
    with torch.no_grad():
        predicted = model.eval()(input_ids=ids).logits[:, :-1].argmax(-1)
    return (predicted == ids[:, 1:]).double().mean().item()


def train(model, folder, label_smoothing):
    arguments = TrainingArguments(
        folder, max_steps=200, per_device_train_batch_size=16, learning_rate=1e-2, report_to=[],
        label_smoothing_factor=label_smoothing, use_cpu=True, save_strategy="no", logging_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=cycles(WORDS)).train()
    return next_word_accuracy(model)


def mega():
    set_seed(0)
    return MegaForCausalLM(tiny_config(**CAUSAL, hidden_size=32, initializer_range=0.1))


def test_label_smoothing_trains_next_words_as_with_gpt2(tmp_path):
    set_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=31, n_embd=32, n_layer=2, n_head=2, n_positions=64))
    assert train(gpt2, tmp_path / "gpt2", 0.1) > 0.95
    assert train(mega(), tmp_path / "mega", 0.1) > 0.95


def test_label_smoothing_with_an_adapter(tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(mega(), peft.LoraConfig(target_modules="all-linear", r=16))
    assert train(model, tmp_path, 0.1) > 0.95


def test_auto_classes_for_pretraining_and_encoding():
    assert type(AutoModelForPreTraining.from_config(tiny_config())) is MegaForMaskedLM
    assert type(AutoModelForTextEncoding.from_config(tiny_config())) is MegaModel


def test_the_namespace_of_transformers_has_the_classes():
    code = """
import mega_transformers, sys, transformers
transformers.AutoConfig  # as whoever looks for the class of a configuration has used
assert "mega_transformers.models.mega.modeling_mega" not in sys.modules
assert transformers.MegaForCausalLM is mega_transformers.MegaForCausalLM
assert transformers.MegaForConditionalGeneration is mega_transformers.MegaForConditionalGeneration
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("cls", [MegaForSequenceClassification, MegaForSequencePairClassification])
@pytest.mark.parametrize("side", ["left", "right"])
def test_classes_over_a_causal_model_read_the_last_real_token(cls, side):
    torch.manual_seed(0)
    model = cls(tiny_config(**CAUSAL, num_labels=2, initializer_range=0.3)).eval()
    ids = torch.randint(3, 31, (2, 9))
    pair = {"pair_input_ids": ids[:, :4]} if cls is MegaForSequencePairClassification else {}
    padding = torch.full((2, 3), model.config.pad_token_id)
    parts = [ids, padding] if side == "right" else [padding, ids]
    padded = torch.cat(parts, dim=1)
    mask = (padded != model.config.pad_token_id).long()
    with torch.no_grad():
        alone = model(input_ids=ids, **pair).logits
        torch.testing.assert_close(model(input_ids=padded, attention_mask=mask, **pair).logits, alone)
        if side == "right":  # as GPT-2, which goes by the ids
            torch.testing.assert_close(model(input_ids=padded, **pair).logits, alone)
        other = ids.clone()
        other[:, 5] = 3 + (other[:, 5] - 2) % 28
        assert not torch.allclose(model(input_ids=other, **pair).logits, alone), "the last words have no effect"


def test_choices_over_a_causal_model_differ():
    torch.manual_seed(0)
    model = MegaForMultipleChoice(tiny_config(**CAUSAL, initializer_range=0.3)).eval()
    ids = torch.randint(3, 31, (1, 3, 9))
    ids[:, :, 0] = 5
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    assert logits.std() > 1e-4


def test_sound_through_a_feature_extractor(tmp_path):
    model = MegaForAudioClassification(tiny_config(input_type="values", num_labels=3))
    model.save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor(feature_size=1, sampling_rate=8000, do_normalize=True).save_pretrained(tmp_path)
    classify = pipeline("audio-classification", model=str(tmp_path))
    sound = torch.randn(400).numpy()
    assert {row["label"] for row in classify(sound)} == set(model.config.id2label.values())
