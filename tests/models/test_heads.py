"""What the heads compute, beyond the golden numbers."""

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_config

from mega_transformers import (
    MegaForMaskedLM,
    MegaForQuestionAnswering,
    MegaForSequenceClassification,
    MegaModel,
)


@pytest.fixture
def batch():
    torch.manual_seed(0)
    mask = torch.tensor([[1] * 9, [1] * 6 + [0] * 3, [0] * 4 + [1] * 5])
    return {"input_ids": torch.randint(3, 31, (3, 9)), "attention_mask": mask}


def masked_labels(batch):
    labels = batch["input_ids"].clone()
    labels[batch["attention_mask"] == 0] = -100
    labels[:, ::2] = -100
    return labels


def test_masked_lm_loss_is_the_library_s(batch):
    model = MegaForMaskedLM(tiny_config()).eval()
    labels = masked_labels(batch)
    output = model(**batch, labels=labels)
    assert torch.allclose(output.loss, F.cross_entropy(output.logits.view(-1, 31), labels.view(-1)))
    summed = F.cross_entropy(output.logits.view(-1, 31), labels.view(-1), reduction="sum")
    assert torch.allclose(model(**batch, labels=labels, num_items_in_batch=7).loss, summed / 7)


def test_a_loss_function_of_one_s_own_is_used(batch):
    model = MegaForMaskedLM(tiny_config()).eval()
    model.loss_function = lambda logits, labels, vocab_size, **kwargs: logits.sum() * 0 + vocab_size
    assert model(**batch, labels=masked_labels(batch)).loss.item() == 31


def test_sparse_prediction_is_the_same_loss_and_gradient_for_fewer_logits(batch):
    labels = masked_labels(batch)
    results = []
    for sparse in (False, True):
        torch.manual_seed(1)
        model = MegaForMaskedLM(tiny_config(sparse_prediction=sparse)).double().eval()
        output = model(**batch, labels=labels)
        output.loss.backward()
        results.append((output, [p.grad for p in model.parameters()]))
    (dense, dense_gradients), (sparse, sparse_gradients) = results
    assert torch.allclose(sparse.logits, dense.logits[labels != -100])
    assert torch.allclose(sparse.loss, dense.loss)
    for a, b in zip(sparse_gradients, dense_gradients):
        assert torch.allclose(a, b)
    with torch.no_grad():
        assert model(**batch).logits.shape == (3, 9, 31)


def test_training_lets_gradients_through_loss_and_logits(batch):
    """Distillation uses both."""
    labels = masked_labels(batch)
    model = MegaForMaskedLM(tiny_config()).double().eval()
    output = model(**batch, labels=labels)
    (output.loss + output.logits.square().mean()).backward()
    got = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    logits = model(**batch).logits
    (F.cross_entropy(logits.view(-1, 31), labels.view(-1)) + logits.square().mean()).backward()
    for a, b in zip(got, (p.grad for p in model.parameters())):
        assert torch.allclose(a, b)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_classification_pools_real_tokens_only(batch, pooling):
    model = MegaForSequenceClassification(tiny_config(num_labels=3, classifier_pooling=pooling)).eval()
    logits = model(**batch).logits
    for i in range(3):
        row = batch["input_ids"][i][batch["attention_mask"][i].bool()]
        assert torch.allclose(model(row[None]).logits[0], logits[i], atol=1e-5)


@pytest.mark.parametrize(
    ("num_labels", "labels"),
    [
        (1, torch.tensor([0.1, 0.2, 0.3])),
        (3, torch.tensor([0, 2, 1])),
        (3, torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0]])),
    ],
)
def test_classification_losses(batch, num_labels, labels):
    model = MegaForSequenceClassification(tiny_config(num_labels=num_labels)).eval()
    output = model(**batch, labels=labels)
    expected = {
        (1, 1): lambda: F.mse_loss(output.logits.squeeze(), labels),
        (3, 1): lambda: F.cross_entropy(output.logits, labels),
        (3, 2): lambda: F.binary_cross_entropy_with_logits(output.logits, labels),
    }[num_labels, labels.dim()]()
    assert torch.allclose(output.loss, expected)


def test_question_answering_loss(batch):
    model = MegaForQuestionAnswering(tiny_config()).eval()
    start, end = torch.tensor([1, 2, 5]), torch.tensor([3, 3, 8])
    output = model(**batch, start_positions=start, end_positions=end)
    expected = (F.cross_entropy(output.start_logits, start) + F.cross_entropy(output.end_logits, end)) / 2
    assert torch.allclose(output.loss, expected)


def test_token_types_are_added(batch):
    model = MegaModel(tiny_config(add_token_type_embeddings=True)).eval()
    plain = model(**batch).last_hidden_state
    assert torch.equal(model(**batch, token_type_ids=torch.zeros_like(batch["input_ids"])).last_hidden_state, plain)
    typed = model(**batch, token_type_ids=torch.ones_like(batch["input_ids"])).last_hidden_state
    embeds = model.embedding_layer.word_embeddings(batch["input_ids"]) + model.embedding_layer.token_type_embeddings(
        torch.ones_like(batch["input_ids"])
    )
    model.embedding_layer.token_type_embeddings.weight.data.zero_()
    by_hand = model(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).last_hidden_state
    assert torch.allclose(typed, by_hand, atol=1e-6)
    assert not torch.allclose(typed, plain)


def test_legacy_rmsnorm_scales_without_normalising(batch):
    torch.manual_seed(0)
    model = MegaModel(tiny_config(normalization_type="rmsnorm", legacy_unnormalized_rmsnorm=True)).eval()
    norm = model.layers[0].mega_layer.norm
    x = torch.randn(2, 3, 8)
    norm.norm.weight.data.uniform_(0.5, 2)
    assert torch.equal(norm(x), x * norm.norm.weight)
    right = MegaModel(tiny_config(normalization_type="rmsnorm")).layers[0].mega_layer.norm
    assert torch.allclose(right(x).square().mean(-1), torch.ones(2, 3), atol=1e-3)


def test_feature_dropout_drops_features_and_never_chunks():
    from mega_transformers.layers import MegaDropout

    torch.manual_seed(0)
    dropped = MegaDropout(0.5, featurewise=True).train()(torch.ones(4, 12, 50))
    per_feature = dropped.amax(dim=1)
    assert torch.equal(dropped.amin(dim=1), per_feature)  # all positions alike
    assert 0.3 < (per_feature == 0).float().mean() < 0.7
    assert set(per_feature.unique().tolist()) == {0.0, 2.0}
