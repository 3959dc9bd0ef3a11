"""captum explains a class by integrated gradients, from a text of one word to the one given."""

import pytest
import torch
from tiny import tiny_config

from mega_transformers import MegaForSequenceClassification

captum_attr = pytest.importorskip("captum.attr")


@pytest.mark.parametrize("activation", ["softmax", "laplace"])
def test_layer_integrated_gradients_are_complete(activation):
    torch.manual_seed(0)
    config = tiny_config(num_labels=3, initializer_range=0.3, attention_activation=activation)
    model = MegaForSequenceClassification(config).eval()
    ids = torch.randint(3, 31, (2, 12))
    # the vector of padding is zero, of which a norm makes any direction: no path of gradients begins there
    baseline = torch.full_like(ids, 4)
    mask = torch.ones_like(ids)

    def logit(ids):
        return model(input_ids=ids, attention_mask=mask[:1].expand(ids.shape[0], -1)).logits[:, 1]

    method = captum_attr.LayerIntegratedGradients(logit, model.mega.embedding_layer.word_embeddings)
    attributions = method.attribute(ids, baselines=baseline, n_steps=50)
    with torch.no_grad():
        difference = logit(ids) - logit(baseline)
    assert attributions.shape == (2, 12, 8)
    torch.testing.assert_close(attributions.sum((1, 2)).float(), difference, rtol=1e-3, atol=1e-4)
