"""Saving memory changes no number."""

import pytest
import torch
from tiny import tiny_config

from mega_transformers import MegaModel
from mega_transformers.layers import recompute


def make_model(**fields):
    torch.manual_seed(0)
    return MegaModel(tiny_config(**fields)).double().eval()


@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("activation", ["softmax", "laplace"])
@pytest.mark.parametrize("length", [24, 50])
@pytest.mark.parametrize("chunk_size", [None, 5])
def test_inference_in_pieces(monkeypatch, chunk_size, length, activation, padding):
    fields = {} if chunk_size is None else {"use_chunking": True, "chunk_size": chunk_size}
    model = make_model(attention_activation=activation, **fields)
    ids = torch.randint(0, 20, (2, length))
    mask = torch.ones_like(ids)
    if padding == "right":
        mask[0, length - 9 :] = 0
    elif padding == "left":
        mask[0, :9] = 0
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).last_hidden_state
        monkeypatch.setattr(recompute, "PIECE", 16)
        taken = []
        monkeypatch.setattr(
            model.layers[0].nffn, "_feed", lambda x, r, feed=model.layers[0].nffn._feed: taken.append(x) or feed(x, r)
        )
        got = model(ids, attention_mask=mask).last_hidden_state
    assert len(taken) > 1
    assert torch.allclose(got, expected, atol=1e-12)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputation_gives_the_same_gradients(monkeypatch, dropout):
    results = []
    for smallest in (0, 10**9):
        monkeypatch.setattr(recompute, "MIN_ELEMENTS", smallest)
        model = make_model(dropout_prob=dropout, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
        ids = torch.arange(20).view(2, 10)
        torch.manual_seed(1)
        output = model(ids).last_hidden_state
        output.square().sum().backward()
        results.append([output, *(p.grad for n, p in model.named_parameters() if "pooler" not in n)])
    for got, expected in zip(*results):
        assert torch.allclose(got, expected, atol=1e-12)


@pytest.mark.parametrize("wanted", [None, True, False])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_runs_three_times(monkeypatch, checkpointing, wanted):
    """What gradient checkpointing computes again is not recomputed within."""
    monkeypatch.setattr(recompute, "MIN_ELEMENTS", 0)
    model = make_model(recompute_activations=wanted).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    block, calls = model.layers[0], []
    block.nffn.fc2.register_forward_hook(lambda *_: calls.append("fc2"))
    block.mega_layer.h_proj.register_forward_hook(lambda *_: calls.append("h_proj"))
    model(torch.arange(20).view(2, 10)).last_hidden_state.sum().backward()
    # the feed-forward's product is its last operation: what is needed of it is there before
    expected = {"fc2": 1, "h_proj": 2 if wanted is not False else 1}
    if checkpointing:
        expected = {"fc2": 2, "h_proj": 2}
    assert {name: calls.count(name) for name in expected} == expected
