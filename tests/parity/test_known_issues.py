"""Defects of transformers 4.40.2 that this package must not have: the encoder's rows of docs/parity.md."""

from __future__ import annotations

import inspect

import pytest
import torch
from parity_cases import CHUNKED, SMALL
from torch.testing import assert_close

from mega_transformers import (
    MegaConfig,
    MegaForMaskedLM,
    MegaForSequenceClassification,
    MegaForTokenClassification,
    MegaModel,
)

CHUNK = CHUNKED["chunk_size"]


def make(**fields) -> MegaModel:
    torch.manual_seed(0)
    model = MegaModel(MegaConfig(**{**SMALL, **fields})).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def ids(length: int, rows: int = 2) -> torch.Tensor:
    return torch.randint(3, SMALL["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(1))


def hidden(model: MegaModel, input_ids: torch.Tensor, **kwargs) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids, **kwargs).last_hidden_state


@pytest.mark.parametrize("bias", ["rotary", "simple"])
@pytest.mark.parametrize("activation", ["softmax", "laplace", "relu2"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [1, CHUNK - 3, CHUNK + 1, 3 * CHUNK - 5])
def test_any_length_with_chunks(length, causal, activation, bias):
    """The same as with padding up to a multiple of the chunk, which 4.40.2 can compute."""
    fields = {"bidirectional": not causal, "is_decoder": causal, "relative_positional_bias": bias}
    model = make(**CHUNKED, **fields, attention_activation=activation)
    input_ids = ids(length)
    whole = -(-length // CHUNK) * CHUNK
    padded = torch.nn.functional.pad(input_ids, (0, whole - length), value=1)
    mask = (torch.arange(whole) < length).long().expand(2, -1)
    assert_close(hidden(model, input_ids), hidden(model, padded, attention_mask=mask)[:, :length], rtol=0, atol=1e-5)


def test_simple_bias_with_an_unused_chunk_size_says_its_limit():
    model = make(chunk_size=CHUNK, relative_positional_bias="simple")
    hidden(model, ids(CHUNK))
    with pytest.raises(ValueError, match=f"{CHUNK + 1} tokens.*chunk_size={CHUNK}"):
        hidden(model, ids(CHUNK + 1))


@pytest.mark.parametrize("norm", ["layernorm", "scalenorm", "rmsnorm", "batchnorm", "syncbatchnorm"])
def test_norms_without_parameters(norm):
    model = make(normalization_type=norm, norm_affine=False)
    assert not [name for name, _ in model.named_parameters() if ".norm." in name]
    assert hidden(model, ids(7)).isfinite().all()


@pytest.mark.parametrize("activation", ["softmax", "laplace", "relu2"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32])
def test_masks_of_any_type(activation, dtype):
    model = make(attention_activation=activation)
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[0, 5:] = 0
    expected = hidden(model, ids(9), attention_mask=mask)
    assert_close(hidden(model, ids(9), attention_mask=mask.to(dtype)), expected, rtol=0, atol=0)


def test_token_types_beyond_max_positions():
    model = make(add_token_type_embeddings=True, max_positions=8)
    given = hidden(model, ids(12), token_type_ids=torch.zeros(2, 12, dtype=torch.int64))
    assert_close(hidden(model, ids(12)), given, rtol=0, atol=1e-6)


def test_odd_width_with_rotary_bias():
    assert hidden(make(hidden_size=15), ids(7)).isfinite().all()


def test_a_second_backward_in_evaluation_mode():
    model = make()
    gradients = []
    for _ in range(2):
        model.zero_grad()
        model(ids(7)).last_hidden_state.square().sum().backward()
        gradients.append([p.grad.clone() for name, p in model.named_parameters() if not name.startswith("pooler")])
    for first, second in zip(*gradients, strict=True):
        assert_close(first, second, rtol=0, atol=0)


def test_ema_parameters_get_gradients_after_a_forward_without():
    model = make()
    hidden(model, ids(7))
    model(ids(7)).last_hidden_state.sum().backward()
    for name, parameter in model.layers[0].mega_layer.ema_gate.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_weights_loaded_after_a_forward_are_used():
    model, other = make(), make(initializer_range=0.5)
    for parameter in other.parameters():
        parameter.data += 0.3
    before = hidden(model, ids(7))
    model.load_state_dict(other.state_dict())
    after = hidden(model, ids(7))
    assert (after - before).abs().max() > 0.01
    assert_close(after, hidden(other, ids(7)), rtol=0, atol=0)


def test_rmsnorm_normalises():
    norm = make(normalization_type="rmsnorm", norm_affine=False).layers[0].mega_layer.norm
    x = 7 * torch.randn(2, 5, SMALL["hidden_size"])
    assert_close(norm(x).square().mean(-1), torch.ones(2, 5), rtol=0, atol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("activation", ["softmax", "laplace", "relu2"])
def test_left_padding(activation, causal):
    """4.40.2 gave NaN for causal softmax."""
    model = make(bidirectional=not causal, is_decoder=causal, attention_activation=activation)
    input_ids = ids(9, rows=1)
    padded = torch.nn.functional.pad(input_ids, (4, 0), value=1)
    mask = (torch.arange(13) >= 4).long().unsqueeze(0)
    with torch.no_grad():
        alone, outputs = model(input_ids), model(padded, attention_mask=mask)
    assert outputs.last_hidden_state.isfinite().all()
    assert_close(outputs.last_hidden_state[:, 4:], alone.last_hidden_state, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"use_chunking": True}, "chunk_size=-1"),
        ({"truncation": 0}, "truncation=0"),
        ({"shared_representation_size": 7}, "shared_representation_size=7"),
        ({"is_decoder": True}, "bidirectional=False"),
    ],
)
def test_configurations_that_crashed_are_refused(fields, message):
    with pytest.raises(Exception, match=message):
        MegaConfig(**{**SMALL, **fields})


def test_masked_language_model_is_no_decoder():
    with pytest.raises(ValueError, match="is_decoder=True"):
        MegaForMaskedLM(MegaConfig(**SMALL, is_decoder=True, bidirectional=False))


def test_feature_dropout_drops_features_and_no_chunks():
    """A dropped feature of the values is 0 at all positions; the others are scaled, in every chunk."""
    model = make(**CHUNKED, use_feature_dropout=True, hidden_dropout_prob=0.5).train()
    dropout = model.layers[0].mega_layer.hidden_dropout
    torch.manual_seed(0)
    dropped = dropout(torch.ones(3, 3 * CHUNK, SMALL["intermediate_size"]))
    assert_close(dropped, dropped[:, :1].expand_as(dropped), rtol=0, atol=0)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert all(0 < int((row[0] == 0).sum()) < row.shape[-1] for row in dropped)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_long_memory(dtype):
    """4.40.2 built the kernel in the dtype of the parameters, which is off by a third at lag 900."""
    model = make(normalize_before_mega=False)
    ema_gate = model.layers[0].mega_layer.ema_gate
    with torch.no_grad():
        ema_gate.decay_factor.fill_(-8.0)  # decays of about 0.9998
        x = torch.zeros(1, 2000, SMALL["hidden_size"])
        x[:, :8] = 1.0
        expected = ema_gate(x)
        actual = ema_gate(x.to(dtype))
    assert actual.dtype == dtype
    scale = expected.abs().max()
    assert_close(actual.float() / scale, expected / scale, rtol=0, atol=torch.finfo(dtype).eps)


def test_order_of_positional_arguments():
    """The classifiers' is that of 4.40.2, and the masked model's is theirs."""
    for model_class in (MegaForMaskedLM, MegaForSequenceClassification, MegaForTokenClassification):
        names = list(inspect.signature(model_class.forward).parameters)
        assert names[1:6] == ["input_ids", "attention_mask", "token_type_ids", "inputs_embeds", "labels"]
