"""torch.func through whole models with their losses: gradients, per-sample gradients, Hessians, forward mode."""

import pytest
import torch
from tiny import CAUSAL, tiny_config

from mega_transformers import MegaForCausalLM, MegaForMaskedLM, MegaForSequenceClassification

LENGTH = 140  # long enough for the forms with a backward pass of their own
MODELS = {
    "masked": (MegaForMaskedLM, {}),
    "masked, laplace, simple": (
        MegaForMaskedLM,
        {"attention_activation": "laplace", "relative_positional_bias": "simple"},
    ),
    "causal, chunks": (MegaForCausalLM, {**CAUSAL, "use_chunking": True, "chunk_size": 32}),
    "classes": (MegaForSequenceClassification, {"num_labels": 3}),
}


@pytest.fixture(params=MODELS)
def problem(request):
    """A loss as a function of parameters and a batch, in float64; the parameters; and a batch with padding."""
    torch.manual_seed(0)
    cls, fields = MODELS[request.param]
    model = cls(tiny_config(**fields, initializer_range=0.3)).double().eval()
    ids = torch.randint(3, 31, (3, LENGTH))
    mask = torch.ones(3, LENGTH, dtype=torch.int64)
    mask[1, :9] = 0
    labels = torch.randint(3, (3,)) if cls is MegaForSequenceClassification else ids

    def loss(parameters, ids, mask, labels):
        given = {"input_ids": ids, "attention_mask": mask, "labels": labels, "return_dict": True}
        return torch.func.functional_call(model, parameters, kwargs=given).loss

    # transformers' own losses compute in float32, which they do where a head's weight is no plain parameter
    return loss, {name: p.detach() for name, p in model.named_parameters()}, (ids, mask, labels), model


def dot(one, other):
    return sum((one[name] * other[name]).sum() for name in one)


def assert_close(one, other, atol=1e-6):
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def test_gradients(problem):
    loss, parameters, batch, model = problem
    ids, mask, labels = batch
    model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
    expected = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    assert_close(torch.func.grad(loss)(parameters, *batch), expected)


def test_gradients_of_every_sample(problem):
    loss, parameters, batch, _ = problem

    def one(parameters, ids, mask, labels):
        return loss(parameters, ids.unsqueeze(0), mask.unsqueeze(0), labels.unsqueeze(0))

    together = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0, 0, 0), randomness="error")(parameters, *batch)
    for i in range(3):
        alone = torch.func.grad(one)(parameters, *(x[i] for x in batch))
        assert_close({name: grads[i] for name, grads in together.items()}, alone)


def test_forward_mode_and_hessian_vector_products(problem):
    loss, parameters, batch, _ = problem
    direction = {name: torch.randn_like(p) for name, p in parameters.items()}

    def of(parameters):
        return loss(parameters, *batch)

    grads = torch.func.grad(of)(parameters)
    _, slope = torch.func.jvp(of, (parameters,), (direction,))
    torch.testing.assert_close(slope.double(), dot(grads, direction), rtol=1e-5, atol=1e-6)
    _, forward_over_reverse = torch.func.jvp(torch.func.grad(of), (parameters,), (direction,))
    _, pull = torch.func.vjp(torch.func.grad(of), parameters)
    (reverse_over_reverse,) = pull(direction)
    assert_close(forward_over_reverse, reverse_over_reverse)
    step = 1e-4
    near = [{n: p + s * step * direction[n] for n, p in parameters.items()} for s in (1, -1)]
    ahead, behind = (torch.func.grad(of)(point) for point in near)
    differences = {n: (ahead[n] - behind[n]) / (2 * step) for n in parameters}
    assert_close(forward_over_reverse, differences, atol=2e-2)
