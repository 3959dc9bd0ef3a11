"""Adaptive input and softmax against their definitions, and against PyTorch's own where that is laid out alike."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import grad

from mega_transformers.ops.adaptive import (
    adaptive_cross_entropy,
    adaptive_embedding,
    adaptive_embedding_reference,
    adaptive_log_probs,
    adaptive_log_probs_reference,
)

SIZES, WIDTHS, WIDTH = [5, 4, 6], [8, 4, 2], 8
VOCABULARY = sum(SIZES)


def numbers(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def matrices(head="whole", factored=True, dtype=torch.float64):
    """Head and tails; tokens of the first cluster and the tails are one matrix, two, or two with one in factors."""
    clusters, words = (len(SIZES) - 1, WIDTH), (SIZES[0], WIDTH)
    heads = {
        "whole": lambda: [(numbers(SIZES[0] + clusters[0], WIDTH, dtype=dtype), None)],
        "parts": lambda: [(numbers(*words, dtype=dtype), None), (numbers(*clusters, dtype=dtype), None)],
        "factors": lambda: [
            (numbers(SIZES[0], 3, dtype=dtype), numbers(3, WIDTH, dtype=dtype)),
            (numbers(*clusters, dtype=dtype), None),
        ],
    }
    tails = [
        (numbers(size, width, dtype=dtype), numbers(width, WIDTH, dtype=dtype))
        if factored
        else (numbers(size, WIDTH, dtype=dtype), None)
        for size, width in zip(SIZES[1:], WIDTHS[1:])
    ]
    return heads[head](), tails


def tensors(*pairs):
    return [tensor for pair in pairs for tensor in pair if tensor is not None]


def assert_same_gradients(actual, expected, inputs):
    for a, b in zip(grad(actual, inputs), grad(expected, inputs)):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("padding", [None, 1, 7, VOCABULARY - 1])
def test_embedding_is_its_reference(padding):
    torch.manual_seed(0)
    clusters = [(numbers(size, width), numbers(6, width)) for size, width in zip(SIZES, WIDTHS)]
    ids = torch.randint(0, VOCABULARY, (3, 11))
    ids[0] = torch.arange(4, 15)  # the edges of all clusters
    ids[1, :2] = padding or 0
    mix = torch.randn(3, 11, 6, dtype=torch.float64)
    expected = adaptive_embedding_reference(ids, clusters)
    actual = adaptive_embedding(ids, clusters, padding)
    torch.testing.assert_close(actual, expected)
    inputs = tensors(*clusters)
    wanted = list(grad((expected * mix).sum(), inputs))
    if padding is not None:  # its word learns nothing; the projection does
        cluster = next(cluster for cluster in range(3) if padding < sum(SIZES[: cluster + 1]))
        wanted[2 * cluster][padding - sum(SIZES[:cluster])] = 0
    for a, b in zip(grad((actual * mix).sum(), inputs), wanted):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shape", [(7,), (2, 5), ()])
@pytest.mark.parametrize("factored", [True, False])
@pytest.mark.parametrize("head", ["whole", "parts", "factors"])
def test_log_probs_are_their_reference(head, factored, shape):
    torch.manual_seed(0)
    head, tails = matrices(head, factored)
    hidden = numbers(*shape, WIDTH)
    expected = adaptive_log_probs_reference(hidden, head, tails)
    actual = adaptive_log_probs(hidden, head, tails)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(actual.exp().sum(-1), torch.ones(shape, dtype=torch.float64))
    mix = torch.randn_like(actual)
    assert_same_gradients((actual * mix).sum(), (expected * mix).sum(), [hidden, *tensors(*head, *tails)])


@pytest.mark.parametrize("labelled", ["all", "some", "none", "first cluster"])
@pytest.mark.parametrize("head", ["whole", "parts", "factors"])
def test_cross_entropy_is_that_of_the_reference(head, labelled):
    torch.manual_seed(0)
    head, tails = matrices(head)
    hidden = numbers(23, WIDTH)
    labels = torch.randint(0, SIZES[0] if labelled == "first cluster" else VOCABULARY, (23,))
    if labelled == "some":
        labels[::3] = -100
    elif labelled == "none":
        labels[:] = -100
    inputs = [hidden, *tensors(*head, *tails)]
    log_probs = adaptive_log_probs_reference(hidden, head, tails)
    expected = F.nll_loss(log_probs, labels, reduction="sum") if labelled != "none" else (log_probs * 0).sum()
    actual = adaptive_cross_entropy(hidden, labels, head, tails)
    torch.testing.assert_close(actual, expected)
    # also where no label is in a tail, there are gradients
    assert_same_gradients(actual * 0.5, expected * 0.5, inputs)


def test_pytorch_s_own_is_a_special_case():
    torch.manual_seed(0)
    theirs = nn.AdaptiveLogSoftmaxWithLoss(WIDTH, VOCABULARY, [5, 9], div_value=2.0).double()
    head = [(theirs.head.weight, None)]
    tails = [(words.weight, projection.weight) for projection, words in theirs.tail]
    hidden, labels = numbers(40, WIDTH), torch.randint(0, VOCABULARY, (40,))
    torch.testing.assert_close(adaptive_log_probs(hidden, head, tails), theirs.log_prob(hidden))
    loss, expected = adaptive_cross_entropy(hidden, labels, head, tails) / 40, theirs(hidden, labels).loss
    torch.testing.assert_close(loss, expected)
    assert_same_gradients(loss, expected, [hidden, *theirs.parameters()])


def test_dropout_is_between_the_factors_of_tails_only():
    torch.manual_seed(0)
    head, tails = matrices()
    hidden = numbers(9, WIDTH)
    torch.manual_seed(1)
    actual = adaptive_log_probs(hidden, head, tails, dropout=0.5)
    torch.manual_seed(1)
    by_hand = [F.dropout(hidden @ projection.t(), 0.5) @ words.t() for words, projection in tails]
    choices = torch.log_softmax(hidden @ head[0][0].t(), -1)
    expected = [choices[:, : SIZES[0]]]
    expected += [choices[:, [SIZES[0] + i]] + torch.log_softmax(scores, -1) for i, scores in enumerate(by_hand)]
    torch.testing.assert_close(actual, torch.cat(expected, dim=-1))
    labels = torch.full((9,), VOCABULARY - 1)
    torch.manual_seed(1)
    F.dropout(torch.empty(0, WIDTHS[1]), 0.5)  # no label is in the first tail
    dropped = F.dropout(hidden @ tails[1][1].t(), 0.5) @ tails[1][0].t()
    loss = F.cross_entropy(dropped, labels - 9, reduction="sum") - choices[:, -1].sum()
    torch.manual_seed(1)
    torch.testing.assert_close(adaptive_cross_entropy(hidden, labels, head, tails, dropout=0.5), loss)


@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_sums_in_float32(autocast):
    torch.manual_seed(0)
    head, tails = matrices("parts", dtype=torch.float32 if autocast else torch.bfloat16)
    hidden = numbers(64, WIDTH, dtype=head[0][0].dtype)
    labels = torch.randint(0, VOCABULARY, (64,))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        log_probs = adaptive_log_probs(hidden, head, tails)
        loss = adaptive_cross_entropy(hidden, labels, head, tails)
    assert log_probs.dtype == loss.dtype == torch.float32
    # rounded scores are no less a distribution
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(64))
    torch.testing.assert_close(loss, F.nll_loss(log_probs, labels, reduction="sum"), rtol=1e-5, atol=0)
    loss.backward()
    assert all(tensor.grad.isfinite().all() for tensor in [hidden, *tensors(*head, *tails)])


@pytest.mark.parametrize("rows", [1, 3])
def test_few_rows_give_the_same(rows):
    """Those of a decoding step take another way."""
    torch.manual_seed(0)
    sizes, widths = [300, 300], [64, 64]
    clusters = [(torch.randn(size, width), torch.randn(260, width)) for size, width in zip(sizes, widths)]
    head = [(torch.randn(301, 64), None)]
    tails = [(torch.randn(300, 64), torch.randn(64, 64))]
    ids, hidden = torch.randint(0, 600, (rows, 1)), torch.randn(rows, 1, 64)
    with torch.no_grad():
        few = adaptive_embedding(ids, clusters), adaptive_log_probs(hidden, head, tails)
    torch.testing.assert_close(few[0], adaptive_embedding_reference(ids, clusters), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(few[1], adaptive_log_probs_reference(hidden, head, tails), rtol=1e-4, atol=1e-4)
