"""Bad input is refused before any computation, naming the argument, its value and what would be right."""

import pytest
import torch
from tiny import CAUSAL, tiny_config

from mega_transformers import (
    MegaForMaskedLM,
    MegaForMultipleChoice,
    MegaForSequenceClassification,
    MegaForTokenClassification,
    MegaModel,
)


@pytest.fixture
def ids():
    return torch.arange(10).view(2, 5) + 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_chunking": True}, "chunk_size=-1 must be at least 1"),
        ({"use_chunking": True, "chunk_size": 0}, "chunk_size=0 must be at least 1"),
        ({"is_decoder": True}, "bidirectional=False"),
        ({"add_cross_attention": True}, "is_decoder=True"),
        ({"shared_representation_size": 5}, "shared_representation_size=5 must be even"),
        (
            {"normalization_type": "groupnorm"},
            "'groupnorm' is unknown; the known values are batchnorm, layernorm, rmsnorm",
        ),
        ({"attention_activation": "tanh"}, "'tanh' is unknown; the known values are laplace, relu2, softmax"),
        ({"relative_positional_bias": "alibi"}, "'alibi' is unknown; the known values are rotary, simple"),
        ({"activation": "sinus"}, "'sinus' is unknown; the known values are .*silu"),
        ({"classifier_pooling": "max"}, "'max' is unknown; the known values are cls, mean"),
        ({"truncation": 0}, "truncation=0 must be at least 1; None"),
        ({"dropout_prob": 1.5}, "dropout_prob=1.5"),
        ({"hidden_size": 0}, "hidden_size=0 must be at least 1"),
        ({"relative_positional_bias": "simple", "chunk_size": 64, "max_positions": 32}, "at most max_positions=32"),
    ],
)
def test_configurations_that_cannot_work(fields, message):
    # strict dataclasses wrap what a validator raises
    with pytest.raises(Exception, match=message):
        tiny_config(**fields)


def test_odd_width_works_with_simple_bias(ids):
    config = tiny_config(shared_representation_size=5, hidden_size=7, relative_positional_bias="simple")
    assert MegaModel(config)(ids).last_hidden_state.shape == (2, 5, 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": torch.full((2, 5), 31)}, r"input_ids holds 31, but ids must be in \[0, vocab_size=31\)"),
        ({"input_ids": torch.full((2, 5), -1)}, "input_ids holds -1"),
        ({"input_ids": torch.zeros(2, 5)}, "input_ids must be integers"),
        ({"input_ids": torch.zeros(5, dtype=torch.long)}, r"input_ids has shape \(5,\)"),
        ({"input_ids": torch.zeros(2, 0, dtype=torch.long)}, r"shape \(2, 0\)"),
        ({"input_ids": None}, "got neither"),
        ({"inputs_embeds": torch.zeros(2, 5, 8)}, "got both"),
        ({"input_ids": None, "inputs_embeds": torch.zeros(2, 5, 9)}, "hidden_size=8"),
        ({"attention_mask": torch.ones(2, 4)}, r"attention_mask has shape \(2, 4\).* \(2, 5\)"),
        ({"attention_mask": torch.ones(2, 1, 5, 5)}, "attention_mask has shape"),
        ({"attention_mask": torch.full((2, 5), 2)}, "attention_mask holds 2"),
        ({"attention_mask": torch.full((2, 5), -10000.0)}, "attention_mask holds -10000.0"),
        ({"attention_mask": torch.full((2, 5), float("nan"))}, "attention_mask holds nan"),
        ({"token_type_ids": torch.ones(2, 5, dtype=torch.long)}, "add_token_type_embeddings=False"),
        ({"token_type_ids": torch.ones(2, 4, dtype=torch.long)}, r"token_type_ids has shape \(2, 4\)"),
        ({"position_ids": torch.zeros(1, 4, dtype=torch.long)}, "position_ids"),
        ({"cu_seq_lens_q": torch.tensor([0, 5])}, "one packed row, but the batch has 2"),
    ],
)
def test_inputs(ids, change, message):
    with pytest.raises(ValueError, match=message):
        MegaModel(tiny_config())(**{"input_ids": ids, **change})


def test_token_types_out_of_range(ids):
    model = MegaModel(tiny_config(add_token_type_embeddings=True))
    with pytest.raises(ValueError, match=r"token_type_ids holds 2, but ids must be in \[0, type_vocab_size=2\)"):
        model(ids, token_type_ids=torch.full_like(ids, 2))


def test_zero_token_types_are_welcome_without_embeddings(ids):
    """Tokenizers give them unasked."""
    model = MegaModel(tiny_config()).eval()
    expected = model(ids).last_hidden_state
    assert torch.equal(model(ids, token_type_ids=torch.zeros_like(ids)).last_hidden_state, expected)


@pytest.mark.parametrize(
    ("fields", "length", "limit"),
    [({}, 13, "max_positions=12"), ({"chunk_size": 4}, 5, "chunk_size=4")],
)
def test_too_long_for_a_simple_bias(fields, length, limit):
    model = MegaModel(tiny_config(relative_positional_bias="simple", max_positions=12, **fields))
    model(torch.ones(1, length - 1, dtype=torch.long))
    with pytest.raises(ValueError, match=f"{length} tokens.*{limit}"):
        model(torch.ones(1, length, dtype=torch.long))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.int64, torch.float32, torch.float16])
def test_masks_of_any_dtype(ids, dtype):
    model = MegaModel(tiny_config()).eval()
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    expected = model(ids, attention_mask=mask).last_hidden_state
    assert torch.equal(model(ids, attention_mask=mask.to(dtype)).last_hidden_state, expected)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.full((2, 5), 31), r"labels holds 31, but must be in \[0, 31\), or -100"),
        (torch.full((2, 5), -1), "labels holds -1"),
        (torch.full((2, 4), 1), r"labels has shape \(2, 4\), but must be \(2, 5\)"),
        (torch.zeros(2, 5), "labels must be integers"),
    ],
)
def test_masked_lm_labels(ids, labels, message):
    with pytest.raises(ValueError, match=message):
        MegaForMaskedLM(tiny_config())(ids, labels=labels)


def test_classification_labels(ids):
    config = tiny_config(num_labels=3)
    with pytest.raises(ValueError, match=r"labels holds 3, but must be in \[0, 3\)"):
        MegaForSequenceClassification(config)(ids, labels=torch.tensor([3, 0]))
    with pytest.raises(ValueError, match="labels holds 4"):
        MegaForTokenClassification(config)(ids, labels=torch.full((2, 5), 4))
    choices = MegaForMultipleChoice(config)
    with pytest.raises(ValueError, match="labels holds 2"):
        choices(ids.unsqueeze(0), labels=torch.tensor([2]))
    with pytest.raises(ValueError, match="num_choices"):
        choices(ids)


def test_models_that_make_no_sense():
    decoder = tiny_config(**CAUSAL)
    with pytest.raises(ValueError, match="is_decoder=True"):
        MegaForMaskedLM(decoder)


def test_unknown_attention_implementation():
    with pytest.raises(ValueError, match="does not support Flash Attention"):
        MegaModel._from_config(tiny_config(), attn_implementation="flash_attention_2")
