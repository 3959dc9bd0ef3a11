"""Models of values (pixels, sound) and of pairs of sequences, and the heads of the authors' classifiers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import CAUSAL, tiny_config
from transformers import AutoModel, AutoModelForAudioClassification, AutoModelForSequenceClassification, pipeline
from transformers.models.wav2vec2 import Wav2Vec2FeatureExtractor

from mega_transformers import (
    MegaForAudioClassification,
    MegaForCausalLM,
    MegaForMaskedLM,
    MegaForSequenceClassification,
    MegaForSequencePairClassification,
    MegaForTokenClassification,
    MegaModel,
    MegaSeq2SeqConfig,
)

NO_DROPOUT = dict.fromkeys(
    ("dropout_prob", "hidden_dropout_prob", "attention_probs_dropout_prob", "nffn_activation_dropout_prob"), 0.0
)
RAW = {
    "input_type": "values",
    "attention_activation": "laplace",
    "normalization_type": "batchnorm",
    "final_norm": True,
    "use_chunking": True,
    "chunk_size": 4,
    "classifier_pooling": "mean",
    "classifier_head": "blocks",
    "classifier_hidden_sizes": [12, 6],
    "num_labels": 3,
    "initializer_range": 0.3,
    **NO_DROPOUT,
}
BLOCKS = {key: value for key, value in RAW.items() if key.startswith(("classifier", "num_", "init"))} | NO_DROPOUT


def make(model_class, **fields):
    torch.manual_seed(0)
    return model_class(tiny_config(**fields)).eval()


def values(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def some_ids(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, 31, shape, generator=torch.Generator().manual_seed(seed))


MASK = torch.tensor([[1] * 11, [0] * 4 + [1] * 7, [1] * 5 + [0] * 6])


# -- values


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("change", [{}, {"normalization_type": "layernorm", "attention_activation": "softmax"}])
def test_padding_changes_nothing(pooling, change):
    model = make(MegaForAudioClassification, **{**RAW, "classifier_pooling": pooling, **change}).double()
    x = values(3, 11).double()
    with torch.no_grad():
        logits = model(x, attention_mask=MASK).logits
        for i in range(3):
            alone = model(x[i, MASK[i].bool()][None]).logits[0]
            torch.testing.assert_close(logits[i], alone, rtol=0, atol=1e-9)
        other = model(torch.where(MASK.bool(), x, x + 7), attention_mask=MASK).logits
        torch.testing.assert_close(other, logits, rtol=0, atol=1e-9)
        hidden = model.mega(input_values=x, attention_mask=MASK).last_hidden_state
    weights = MASK[:, :, None].double()
    mean = (hidden * weights).sum(1) / weights.sum(1)
    pooled = mean if pooling == "mean" else hidden[[0, 1, 2], [0, 4, 0]]
    torch.testing.assert_close(model.classifier(pooled), logits)


def test_a_row_of_padding_alone_is_finite():
    model = make(MegaForAudioClassification, **RAW)
    mask = torch.zeros(2, 6, dtype=torch.long)
    mask[0] = 1
    assert model(values(2, 6), attention_mask=mask).logits.isfinite().all()


def test_sequence_and_audio_classification_are_one_model(tmp_path):
    model, x = make(MegaForAudioClassification, **RAW), values(2, 9)
    labels = torch.tensor([2, 0])
    outputs = model(x, labels=labels)
    torch.testing.assert_close(outputs.loss, F.cross_entropy(outputs.logits, labels))
    model.save_pretrained(tmp_path)
    for auto, name in (
        (AutoModelForAudioClassification, "MegaForAudioClassification"),
        (AutoModelForSequenceClassification, "MegaForSequenceClassification"),
    ):
        loaded, info = auto.from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded).__name__ == name and not any(info.values())
        assert loaded.main_input_name == "input_values"
        assert torch.equal(loaded(input_values=x).logits, outputs.logits)
    trunk = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False)
    assert torch.equal(trunk(input_values=x).last_hidden_state, model.mega(input_values=x).last_hidden_state)


def test_initial_embeddings_of_values():
    config = tiny_config(input_type="values", hidden_size=1500, num_hidden_layers=1)
    embeddings = MegaModel(config, add_pooling_layer=False).get_input_embeddings()
    assert embeddings.weight.std().item() == pytest.approx(1, rel=0.1)
    assert embeddings.bias.std().item() == pytest.approx(0.1, rel=0.1)
    assert abs(embeddings.bias.mean().item()) < 0.02


def test_embeddings_in_place_of_values():
    model, x = make(MegaForAudioClassification, **RAW), values(2, 9)
    embeddings = model.get_input_embeddings()
    by_hand = x[:, :, None] * embeddings.weight + embeddings.bias
    torch.testing.assert_close(model(inputs_embeds=by_hand).logits, model(x).logits)


def test_precision_of_model_and_input():
    x = values(2, 9)
    expected = make(MegaForAudioClassification, **RAW)(x).logits
    half = make(MegaForAudioClassification, **RAW).bfloat16()
    for given in (x, x.bfloat16(), x.double()):
        logits = half(given).logits
        assert logits.dtype == torch.bfloat16
        torch.testing.assert_close(logits.float(), expected, rtol=0.1, atol=0.1)
    torch.testing.assert_close(make(MegaForAudioClassification, **RAW)(x.double()).logits, expected)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = make(MegaForAudioClassification, **RAW)(x, labels=torch.tensor([0, 1]))
    torch.testing.assert_close(mixed.logits.float(), expected, rtol=0.1, atol=0.1)
    mixed.loss.backward()


def test_gradient_checkpointing_changes_nothing():
    results = []
    for checkpointing in (False, True):
        model = make(MegaForAudioClassification, **{**RAW, "normalization_type": "layernorm"}).double().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        loss = model(values(3, 11).double(), attention_mask=MASK, labels=torch.tensor([0, 1, 2])).loss
        loss.backward()
        results.append((loss, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(results[0], results[1])


def test_compiles_in_one_graph():
    torch.compiler.reset()
    model = make(MegaForAudioClassification, **RAW, num_hidden_layers=1)
    inputs = {"input_values": values(3, 11), "attention_mask": MASK, "labels": torch.tensor([0, 1, 2])}
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
    torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits, rtol=1e-4, atol=1e-5)


def test_a_causal_model_of_values_goes_on_from_a_cache():
    model = make(MegaModel, **{**RAW, **CAUSAL, "normalization_type": "layernorm"}).double()
    x, cache, parts = values(2, 11).double(), None, []
    with torch.no_grad():
        whole = model(input_values=x, use_cache=False).last_hidden_state
        for piece in x.split([3, 1, 7], dim=1):
            outputs = model(input_values=piece, cache=cache, use_cache=True)
            cache = outputs.cache
            parts.append(outputs.last_hidden_state)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-9)


def test_pipeline_of_sounds():
    model = make(MegaForAudioClassification, **RAW, id2label={0: "stop", 1: "go", 2: "left"})
    classify = pipeline("audio-classification", model=model, feature_extractor=Wav2Vec2FeatureExtractor())
    sound = np.sin(np.arange(800, dtype=np.float32) / 7)
    found = classify(sound)
    inputs = classify.feature_extractor(sound, sampling_rate=16000, return_tensors="pt").to(model.device)
    probabilities = model(**inputs).logits.softmax(-1)[0]
    best = int(probabilities.argmax())
    assert found[0]["label"] == model.config.id2label[best]
    assert found[0]["score"] == pytest.approx(probabilities[best].item(), abs=1e-5)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "give either input_values or inputs_embeds; got neither"),
        ({"input_ids": torch.ones(2, 5, dtype=torch.long)}, "input_ids is given, but this model reads values"),
        ({"input_values": torch.ones(2, 5, dtype=torch.long)}, "must be real numbers.*got dtype torch.int64"),
        ({"input_values": torch.ones(5)}, r"input_values has shape \(5,\), but must be \(batch, length\)"),
        ({"input_values": torch.ones(2, 5, 1)}, r"input_values has shape \(2, 5, 1\)"),
        ({"input_values": torch.ones(2, 0)}, r"shape \(2, 0\)"),
        ({"input_values": torch.tensor([[0.0, float("nan")]])}, "input_values holds nan, but must be finite"),
        ({"input_values": torch.tensor([[0.0, float("-inf")]])}, "input_values holds -inf"),
        ({"input_values": torch.ones(2, 5), "inputs_embeds": torch.ones(2, 5, 8)}, "got both"),
        ({"inputs_embeds": torch.ones(2, 5, 9)}, "hidden_size=8"),
        ({"input_values": torch.ones(2, 5), "attention_mask": torch.ones(2, 4)}, "attention_mask has shape"),
        ({"input_values": torch.ones(2, 5), "token_type_ids": torch.ones(2, 5, dtype=torch.long)}, "token_type_ids"),
    ],
)
@pytest.mark.parametrize("model_class", [MegaModel, MegaForSequenceClassification])
def test_values_that_cannot_be(model_class, inputs, message):
    with pytest.raises(ValueError, match=message):
        make(model_class, input_type="values")(**inputs)


def test_values_for_a_model_of_tokens():
    with pytest.raises(ValueError, match="input_values is given, but this model reads tokens; give input_ids"):
        make(MegaModel)(input_values=values(2, 5))
    with pytest.raises(ValueError, match=r"input_type='tokens': MegaForAudioClassification reads values"):
        make(MegaForAudioClassification)


@pytest.mark.parametrize(
    "model_class", [MegaForMaskedLM, MegaForTokenClassification, MegaForSequencePairClassification]
)
def test_classes_that_read_no_values(model_class):
    with pytest.raises(ValueError, match=f"input_type='values': {model_class.__name__} reads tokens"):
        make(model_class, input_type="values")


def test_nothing_of_words_in_a_model_of_values():
    with pytest.raises(ValueError, match="MegaForCausalLM reads tokens"):
        make(MegaForCausalLM, input_type="values", **CAUSAL)
    with pytest.raises(ValueError, match="has no token embedding table"):
        make(MegaModel, input_type="values").resize_token_embeddings(40)
    with pytest.raises(ValueError, match="encoder: input_type='values'"):
        MegaSeq2SeqConfig(encoder={"input_type": "values"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input_type": "pixels"}, "input_type='pixels' is unknown; the known values are tokens, values"),
        ({"input_type": "values", "embedding_size": 4}, "embedding_size=4 needs input_type='tokens'"),
        ({"input_type": "values", "adaptive_cutoffs": [4]}, r"adaptive_cutoffs=\[4\] needs input_type='tokens'"),
        ({"input_type": "values", "add_token_type_embeddings": True}, "add_token_type_embeddings=True needs"),
        ({"classifier_head": "linear"}, "classifier_head='linear' is unknown; the known values are blocks, tanh"),
        ({"classifier_activation": "sinus"}, "classifier_activation='sinus' is unknown"),
        (
            {"classifier_hidden_sizes": [4, 0]},
            r"classifier_hidden_sizes=\[4, 0\] must be a list of widths of at least 1, or None",
        ),
    ],
)
def test_configurations_that_cannot_work(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**fields)


# -- heads


def test_blocks_are_linear_then_dropout_then_activation():
    model = make(MegaForSequenceClassification, **{**BLOCKS, "classifier_dropout": 0.5}).train()
    head, vectors = model.classifier, values(5, 8)
    assert [tuple(p.shape) for p in head.parameters()] == [(12, 8), (12,), (6, 12), (6,), (3, 6)]
    torch.manual_seed(3)
    expected = vectors
    for block in head.blocks:
        expected = F.gelu(F.dropout(F.linear(expected, block[0].weight, block[0].bias), 0.5))
    torch.manual_seed(3)
    torch.testing.assert_close(head(vectors), expected @ head.out_proj.weight.t())


def test_the_head_of_4_40_2_is_the_default():
    model = make(MegaForSequenceClassification, num_labels=3)
    assert {name for name in model.state_dict() if name.startswith("classifier")} == {
        f"classifier.{layer}.{part}" for layer in ("dense", "out_proj") for part in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("sizes", "shapes"), [(None, [(8, 8), (8,), (2, 8)]), ([5], [(5, 8), (5,), (2, 5)]), ([], [(2, 8)])]
)
def test_numbers_of_blocks(sizes, shapes):
    model = make(MegaForSequenceClassification, classifier_head="blocks", classifier_hidden_sizes=sizes)
    assert [tuple(p.shape) for p in model.classifier.parameters()] == shapes
    assert model(some_ids(2, 5)).logits.shape == (2, 2)


# -- pairs


@pytest.mark.parametrize("fields", [{"num_labels": 3, **NO_DROPOUT}, BLOCKS])
def test_pairs_are_two_readings_side_by_side(fields):
    model = make(MegaForSequencePairClassification, **fields).double()
    first, second = some_ids(3, 11), some_ids(3, 8, seed=2)
    second_mask = torch.tensor([[1] * 8, [1] * 3 + [0] * 5, [0] * 2 + [1] * 6])
    pair = {"attention_mask": MASK, "pair_input_ids": second, "pair_attention_mask": second_mask}
    labels = torch.tensor([0, 2, 1])
    outputs = model(first, **pair, labels=labels, output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(outputs.loss, F.cross_entropy(outputs.logits, labels))
    vectors = []
    for ids, mask in ((second, second_mask), (first, MASK)):
        rows = []
        for row, real in zip(ids, mask.bool()):
            hidden = model.mega(row[real][None]).last_hidden_state[0]
            rows.append(hidden.mean(0) if fields is BLOCKS else hidden[0])
        vectors.append(torch.stack(rows))
    torch.testing.assert_close(outputs.logits, model.classifier(torch.cat(vectors, dim=-1)), rtol=0, atol=1e-9)
    assert [state.shape for state in outputs.hidden_states] == [(3, 11, 8)] * 3
    assert [state.shape for state in outputs.pair_hidden_states] == [(3, 8, 8)] * 3
    assert [tuple(weights.shape[-2:]) for weights in outputs.pair_attentions] == [(8, 8)] * 2
    swapped = model(second, second_mask, first, MASK)
    assert not torch.allclose(swapped.logits, outputs.logits)
    embeddings = model.get_input_embeddings()
    pair["pair_inputs_embeds"] = embeddings(pair.pop("pair_input_ids"))
    torch.testing.assert_close(model(inputs_embeds=embeddings(first), **pair).logits, outputs.logits)


def test_pairs_in_half_precision_checkpointed_and_saved(tmp_path):
    first, second, labels = some_ids(3, 11), some_ids(3, 8, seed=2), torch.tensor([0, 2, 1])
    results = []
    for checkpointing in (False, True):
        model = make(MegaForSequencePairClassification, **BLOCKS).double().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        loss = model(first, pair_input_ids=second, labels=labels).loss
        loss.backward()
        results.append((loss, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(results[0], results[1])
    model = model.eval().float()
    expected = model(first, pair_input_ids=second).logits
    model.save_pretrained(tmp_path)
    loaded, info = MegaForSequencePairClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    torch.testing.assert_close(loaded(first, pair_input_ids=second).logits, expected)
    half = loaded.bfloat16()(first, pair_input_ids=second).logits
    torch.testing.assert_close(half.float(), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pair_input_ids": None}, "give either pair_input_ids or pair_inputs_embeds; got neither"),
        ({"input_ids": None}, "give either input_ids or inputs_embeds; got neither"),
        ({"pair_input_ids": torch.ones(3, 4, dtype=torch.long)}, "2 first sequences, but pair_input_ids has 3 rows"),
        ({"pair_input_ids": torch.full((2, 4), 31)}, "pair_input_ids holds 31"),
        (
            {"pair_input_ids": torch.ones(4, dtype=torch.long)},
            r"pair_input_ids has shape \(4,\), but must be \(batch, length\)",
        ),
        ({"pair_token_type_ids": torch.ones(2, 4, dtype=torch.long)}, "pair_token_type_ids are given"),
        ({"pair_attention_mask": torch.ones(2, 5)}, r"pair_attention_mask has shape \(2, 5\)"),
        ({"attention_mask": torch.full((2, 5), 3)}, "attention_mask holds 3"),
        ({"labels": torch.tensor([0, 3])}, r"labels holds 3, but must be in \[0, 3\)"),
        ({"labels": torch.tensor([0])}, "labels has shape"),
    ],
)
def test_pairs_that_cannot_be(change, message):
    inputs = {"input_ids": torch.ones(2, 5, dtype=torch.long), "pair_input_ids": torch.ones(2, 4, dtype=torch.long)}
    with pytest.raises(ValueError, match=message):
        make(MegaForSequencePairClassification, num_labels=3)(**{**inputs, **change})
