"""What is recorded while a model reads: gates by their formula, attention as returned, and a model left as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import CAUSAL, SIZES, tiny_config
from transformers import AutoTokenizer

from mega_transformers import (
    MegaForConditionalGeneration,
    MegaForMaskedLM,
    MegaForSequenceClassification,
    MegaModel,
    MegaSeq2SeqConfig,
    MegaSeq2SeqModel,
)
from mega_transformers.errors import RecipeError
from mega_transformers.interpret import reading
from mega_transformers.interpret.reading import Passage, attention_of, prepare_passage, read, why_unreadable

LENGTH = 11


def passage(**inputs: torch.Tensor) -> Passage:
    named = {name if name != "only" else "": ids for name, ids in inputs.items()}
    return Passage("numbers", named, {}, {name: [str(id) for id in ids[0].tolist()] for name, ids in named.items()})


def ids(length: int = LENGTH) -> torch.Tensor:
    return torch.randint(3, 31, (1, length), generator=torch.Generator().manual_seed(1))


def model_of(model_class: type = MegaModel, **fields):
    torch.manual_seed(0)
    return model_class(tiny_config(initializer_range=0.5, **fields)).eval()


def seq2seq(model_class: type = MegaForConditionalGeneration, **decoder):
    torch.manual_seed(0)
    config = MegaSeq2SeqConfig(encoder={**SIZES, "initializer_range": 0.5}, decoder={**SIZES, **decoder})
    return model_class(config).eval()


@pytest.mark.parametrize("chunks", [{}, {"use_chunking": True, "chunk_size": 4}], ids=["whole", "chunks"])
def test_gates_are_those_of_the_formula(chunks: dict) -> None:
    """Recomputed from the hidden states before a block, by the equations of the paper's section 3.3."""
    model = model_of(**chunks)
    given = ids()
    layers = read(model, passage(only=given)).sides[""]
    with torch.no_grad():
        states = model(given, output_hidden_states=True).hidden_states
        for layer, block, before in zip(layers, model.layers, states, strict=False):
            own = block.mega_layer
            averaged = own.ema_gate(own.norm(before))
            d, z, h = SIZES["hidden_size"], SIZES["shared_representation_size"], SIZES["intermediate_size"]
            weight, bias = own.mx_proj.weight, own.mx_proj.bias
            update = torch.sigmoid(averaged @ weight[:d].T + bias[:d])
            reset = F.silu(averaged @ weight[d + z : d + z + h].T + bias[d + z : d + z + h])
            for spread, gate in ((layer.update, update), (layer.reset, reset)):
                assert spread.mean == pytest.approx(gate.mean().item(), rel=1e-4)
                assert spread.low == pytest.approx(gate.quantile(0.1).item(), rel=1e-4)
                assert spread.high == pytest.approx(gate.quantile(0.9).item(), rel=1e-4)


def test_gates_of_cross_attention() -> None:
    model = seq2seq()
    source, target = ids(), ids(7)
    found = read(model, passage(encoder=source, decoder=target)).sides
    with torch.no_grad():
        outputs = model.model(source, decoder_input_ids=target, output_attentions=True)
        block = model.model.decoder.layers[0]
        states = model.model.decoder.embedding_layer(target, None, None)
        states, _ = block.mega_layer(states)
        d = SIZES["hidden_size"]
        projected = block.cross_attn.q_proj(block.cross_attn.norm(states))
    first = found["decoder"][0]
    assert first.cross_update.mean == pytest.approx(projected[..., :d].sigmoid().mean().item(), rel=1e-4)
    assert first.cross_reset.mean == pytest.approx(F.silu(projected[..., d : 2 * d]).mean().item(), rel=1e-4)
    for layer, weights in zip(found["decoder"], outputs.cross_attentions, strict=True):
        np.testing.assert_allclose(layer.cross_attention.shares, weights[0, 0], rtol=1e-4, atol=1e-6)
    for layer, weights in zip(found["encoder"], outputs.encoder_attentions, strict=True):
        np.testing.assert_allclose(layer.attention.shares, weights[0, 0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("activation", ["softmax", "laplace", "relu2"])
@pytest.mark.parametrize("fields", [{}, CAUSAL], ids=["both directions", "causal"])
@pytest.mark.parametrize("length", [8, LENGTH])
def test_attention_in_chunks_is_one_matrix(activation: str, fields: dict, length: int) -> None:
    model = model_of(use_chunking=True, chunk_size=4, attention_activation=activation, **fields)
    given = ids(length)
    layers = read(model, passage(only=given)).sides[""]
    with torch.no_grad():
        weights = model(given, output_attentions=True).attentions
    for layer, chunked in zip(layers, weights, strict=True):
        shares = layer.attention.shares
        assert shares.shape == (length, length)
        sums = shares.sum(1)
        assert ((abs(sums - 1) < 1e-5) | ((sums == 0) & (activation == "relu2"))).all()
        for query in range(length):
            chunk, place = divmod(query, 4)
            row = chunked[0, chunk, place, : min(4, length - 4 * chunk)]
            total = row.sum()
            expected = row / total if total > 0 else row
            np.testing.assert_allclose(shares[query, 4 * chunk : 4 * chunk + 4], expected, rtol=1e-4, atol=1e-6)
            assert not shares[query, : 4 * chunk].any() and not shares[query, 4 * chunk + 4 :].any()


def test_measures_of_attention() -> None:
    weights = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 2.0, 2.0, 0.0], [4.0, 0.0, 0.0, 4.0]])
    visible = torch.ones(4, 4, dtype=torch.bool).tril().unsqueeze(0)
    found = attention_of(weights, visible)
    assert found.shares.tolist() == [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0], [0.5, 0, 0, 0.5]]
    assert found.effective == pytest.approx((1 + 2 + 2 + 2) / 4)
    assert found.distance == pytest.approx((0 + 0.5 + 0.5 + 1.5) / 4)
    assert found.even_distance == pytest.approx((0 + 0.5 + 1 + 1.5) / 4)
    assert found.within.tolist() == pytest.approx([2.5 / 4, 3.5 / 4, 3.5 / 4, 1])
    nothing = attention_of(torch.zeros(3, 3), torch.ones(1, 1, 1, dtype=torch.bool))
    assert (nothing.effective, nothing.distance) == (0, 0)
    assert np.isfinite(nothing.within).all()


def test_the_model_stays_as_it_was() -> None:
    model = seq2seq()
    model.train()
    model.model.encoder.eval()
    # transformers leaves hooks of its own behind
    model.model(ids(), decoder_input_ids=ids(5), output_attentions=True)
    hooks = [dict(module._forward_hooks) for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    read(model, passage(encoder=ids(), decoder=ids(5)))
    assert [module.training for module in model.modules()] == modes
    assert [module._forward_hooks for module in model.modules()] == hooks
    assert torch.equal(torch.get_rng_state(), random)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_hooks_go_when_the_model_fails() -> None:
    model = model_of().train()
    with pytest.raises(ValueError, match="input_ids"):
        read(model, passage(only=torch.tensor([[99]])))
    assert not any(block.mega_layer.mx_proj._forward_hooks for block in model.layers)
    assert model.training


def test_dropout_has_no_effect() -> None:
    given = passage(only=ids())
    model = model_of(dropout_prob=0.5, hidden_dropout_prob=0.5)
    expected = read(model, given).sides[""][1]
    model.train()
    assert read(model, given).sides[""][1].update == expected.update


def test_texts_and_their_limits(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    model = MegaForMaskedLM.from_pretrained(tiny_checkpoint)
    found = prepare_passage(model, tokenizer, "The ship gave a speech.")
    assert found.inputs[""].tolist() == [tokenizer("The ship gave a speech.")["input_ids"]]
    assert "".join(found.tokens[""][1:-1]) == found.texts[""] == "The ship gave a speech."
    assert prepare_passage(model, tokenizer).inputs[""].shape == (1, reading.SAMPLE_TOKENS)
    with pytest.raises(RecipeError, match="a report shows at most 512"):
        prepare_passage(model, tokenizer, "The ship gave a speech. " * 200)
    monkeypatch.setattr(reading, "SAMPLE_TOKENS", 20)
    assert prepare_passage(model, tokenizer).inputs[""].shape == (1, 20)
    narrow = model_of(MegaForMaskedLM, vocab_size=len(tokenizer), relative_positional_bias="simple", max_positions=10)
    assert prepare_passage(narrow, tokenizer).inputs[""].shape == (1, 10)
    with pytest.raises(RecipeError, match="but the model takes at most 10"):
        prepare_passage(narrow, tokenizer, "The ship gave a speech to nobody.")


def test_what_a_decoder_reads(tiny_checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    sides = {name: {**SIZES, "vocab_size": len(tokenizer), "max_positions": 16} for name in ("encoder", "decoder")}
    config = MegaSeq2SeqConfig(**sides, decoder_start_token_id=0)
    model = MegaForConditionalGeneration(config).eval()
    model.generation_config.max_new_tokens = 6
    given = tokenizer("The ship", return_tensors="pt")["input_ids"]
    written = prepare_passage(model, tokenizer, "The ship")
    assert written.inputs["encoder"].tolist() == given.tolist()
    assert written.inputs["decoder"].tolist() == model.generate(given, do_sample=False).tolist()
    assert written.inputs["decoder"].shape[1] <= 7
    bare = prepare_passage(MegaSeq2SeqModel(config).eval(), tokenizer, "The ship")
    assert bare.inputs["decoder"][0].tolist() == [0, *bare.inputs["encoder"][0].tolist()]


def test_models_that_read_no_text(tiny_checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    assert "no tokenizer" in str(why_unreadable(model_of(), None))
    assert "not part of the model" in str(why_unreadable(model_of(**CAUSAL, add_cross_attention=True), tokenizer))
    assert why_unreadable(seq2seq(), tokenizer) is None
    values = model_of(MegaForSequenceClassification, input_type="values")
    assert why_unreadable(values, None) is None
    found = prepare_passage(values, None)
    assert found.inputs[""].is_floating_point()
    assert len(read(values, found).sides[""]) == 2
    with pytest.raises(RecipeError, match="real numbers, not text"):
        prepare_passage(values, tokenizer, "The ship")
