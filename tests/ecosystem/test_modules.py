"""Whatever is done to a linear layer or an embedding takes effect, however the model is used."""

import contextlib
import functools

import pytest
import torch
import torch.nn.functional as F
from tiny import CAUSAL, SIZES, tiny_config
from torch import nn
from torch.nn.utils import parametrize, prune
from transformers import DynamicCache, EncoderDecoderCache

from mega_transformers import (
    MegaForAudioClassification,
    MegaForCausalLM,
    MegaForConditionalGeneration,
    MegaForMaskedLM,
    MegaForMultipleChoice,
    MegaForQuestionAnswering,
    MegaForSequenceClassification,
    MegaForSequencePairClassification,
    MegaForTokenClassification,
    MegaModel,
    MegaSeq2SeqConfig,
)

NO_DROPOUT = dict.fromkeys(
    ("dropout_prob", "hidden_dropout_prob", "attention_probs_dropout_prob", "nffn_activation_dropout_prob"), 0.0
)
OPTIONS = {**NO_DROPOUT, "num_hidden_layers": 1, "initializer_range": 0.5, "tie_word_embeddings": False}
VALUES = {"input_type": "values"}
CLASSES = {
    MegaModel: {"add_token_type_embeddings": True, "embedding_size": 6},
    MegaForMaskedLM: {},
    MegaForCausalLM: CAUSAL,
    MegaForSequenceClassification: {"num_labels": 3},
    MegaForAudioClassification: {"num_labels": 3, "classifier_head": "blocks", **VALUES},
    MegaForTokenClassification: {"num_labels": 3},
    MegaForMultipleChoice: {},
    MegaForQuestionAnswering: {},
    MegaForSequencePairClassification: {"num_labels": 3},
    MegaForConditionalGeneration: None,
}


def make(cls):
    torch.manual_seed(0)
    if CLASSES[cls] is not None:
        return cls(tiny_config(**{**OPTIONS, **CLASSES[cls]})).eval()
    sizes = {**SIZES, **OPTIONS}
    return cls(
        MegaSeq2SeqConfig(encoder=sizes, decoder=sizes, share_embeddings=False, tie_word_embeddings=False)
    ).eval()


def inputs_of(model, rows, length):
    generator = torch.Generator().manual_seed(1)

    def ids(*shape, high=31):
        return torch.randint(3, high, shape, generator=generator)

    shape = (rows, 2, length) if isinstance(model, MegaForMultipleChoice) else (rows, length)
    if model.config.model_type == "mega" and model.config.input_type == "values":
        return {"input_values": torch.randn(shape, generator=generator)}
    inputs = {"input_ids": ids(*shape)}
    if isinstance(model, MegaForSequencePairClassification):
        inputs["pair_input_ids"] = ids(*shape)
    if isinstance(model, MegaForConditionalGeneration):
        inputs = {"input_ids": ids(rows, length + 3), "decoder_input_ids": ids(*shape)}
    return inputs


def labels_of(model, rows, length):
    if isinstance(model, MegaModel):
        return {}
    if isinstance(model, MegaForQuestionAnswering):
        return dict.fromkeys(("start_positions", "end_positions"), torch.ones(rows, dtype=torch.int64))
    words = isinstance(model, (MegaForMaskedLM, MegaForCausalLM, MegaForConditionalGeneration))
    if words or isinstance(model, MegaForTokenClassification):
        return {"labels": torch.arange(rows * length).view(rows, length) % 3}
    return {"labels": torch.arange(rows) % 2}


def tensors_of(outputs):
    return [x for x in outputs.to_tuple() if torch.is_tensor(x)]


def read(model, during, rows=1, length=5, labels=False):
    """What a model gives in inference."""
    given = {**inputs_of(model, rows, length), **(labels_of(model, rows, length) if labels else {})}
    with torch.no_grad(), during():
        outputs = model(**given)
    return [outputs.loss] if labels and not isinstance(model, MegaModel) else tensors_of(outputs)


def train(model, during, rows=2, length=5):
    """Gradients, and what a model gives in training."""
    model.zero_grad()
    with during():
        outputs = model.train()(**inputs_of(model, rows, length), **labels_of(model, rows, length))
        loss = sum(x.float().square().sum() for x in tensors_of(outputs))
        loss.backward()
    model.eval()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def step(model, during, rows=1):
    """What a model gives for a token behind cached ones."""
    given = inputs_of(model, rows, 5)
    with torch.no_grad():
        if isinstance(model, MegaForConditionalGeneration):
            cache = EncoderDecoderCache(DynamicCache(config=model.config.decoder), DynamicCache())
            source = model.model.encoder(given["input_ids"])
            model(encoder_outputs=source, decoder_input_ids=given["decoder_input_ids"], cache=cache)
            last = {"encoder_outputs": source, "decoder_input_ids": given["decoder_input_ids"][:, -1:]}
        else:
            cache = DynamicCache(config=model.config)
            model(**given, cache=cache)
            last = {"input_ids": given["input_ids"][:, -1:]}
        with during():
            return [model(**last, cache=cache).logits]


MODES = {
    "a row": read,
    "many rows": functools.partial(read, rows=9),
    "a token": functools.partial(read, length=1),
    "labels": functools.partial(read, labels=True),
    "labels of many rows": functools.partial(read, rows=9, labels=True),
    "training": train,
    "cached step": step,
    "cached step of many rows": functools.partial(step, rows=9),
}


class Doubled(torch.Tensor):
    """A weight that takes part in products and look-ups as its double, as quantised weights do as another."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function in (F.linear, F.embedding):
            args = [2 * x.as_subclass(torch.Tensor) if isinstance(x, cls) else x for x in args]
        return super().__torch_function__(function, types, args, kwargs or {})


class Double(nn.Module):
    def forward(self, weight):
        return 2 * weight


def bigger(value):
    return 2 * value + 1


@contextlib.contextmanager
def replaced_forward(module):
    forward = module.forward
    module.forward = lambda x: bigger(forward(x))
    yield
    del module.forward


@contextlib.contextmanager
def replaced_class_forward(module):
    """As where a library changes what all linear layers do."""
    cls, forward = type(module), type(module).forward
    cls.forward = lambda self, x: bigger(forward(self, x)) if self is module else forward(self, x)
    yield
    cls.forward = forward


@contextlib.contextmanager
def removed(handle):
    yield
    handle.remove()


def forward_hook(module):
    return removed(module.register_forward_hook(lambda module, args, output: bigger(output)))


def forward_pre_hook(module):
    linear = isinstance(module, nn.Linear)
    return removed(module.register_forward_pre_hook(lambda _, args: (bigger(args[0]) if linear else args[0] * 0 + 1,)))


def global_forward_hook(module):
    hook = lambda called, args, output: bigger(output) if called is module else None  # noqa: E731
    return removed(nn.modules.module.register_module_forward_hook(hook))


def backward_pre_hook(module):
    return removed(module.register_full_backward_pre_hook(lambda module, grads: tuple(2 * g for g in grads)))


@contextlib.contextmanager
def counted(register):
    """Fails unless a hook, which may have nothing to change, is called."""
    calls = []
    handle = register(lambda module, *_: calls.append(module))
    yield calls
    handle.remove()


@contextlib.contextmanager
def subclass_of_weight(module):
    weight = module.weight
    module.weight = nn.Parameter(weight.detach().as_subclass(Doubled))
    yield
    module.weight = weight


@contextlib.contextmanager
def parametrisation(module):
    parametrize.register_parametrization(module, "weight", Double(), unsafe=True)
    yield
    parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)


@contextlib.contextmanager
def pruning(module):
    weight = module.weight.detach().clone()
    prune.custom_from_mask(module, "weight", torch.zeros_like(weight))
    yield
    prune.remove(module, "weight")
    module.weight.data.copy_(weight)


@contextlib.contextmanager
def replaced_module(model, name):
    class Bigger(nn.Module):
        """As adapters take the place of what they adapt."""

        def __init__(self, module):
            super().__init__()
            self.base_layer = module

        @property
        def weight(self):
            return self.base_layer.weight

        @property
        def bias(self):
            return getattr(self.base_layer, "bias", None)

        def forward(self, x):
            return bigger(self.base_layer(x))

    module = model.get_submodule(name)
    model.set_submodule(name, Bigger(module))
    yield
    model.set_submodule(name, module)


OF_OUTPUTS = (
    replaced_forward,
    replaced_class_forward,
    forward_hook,
    forward_pre_hook,
    global_forward_hook,
    subclass_of_weight,
    parametrisation,
    pruning,
)


def walk(cls):
    """Model, name of a module, and the modes in which the model uses it."""
    model = make(cls)
    generates = hasattr(model, "generate") and cls is not MegaModel
    for name, module in model.named_modules():
        if type(module) in (nn.Linear, nn.Embedding):
            # keys and values of a source are computed once
            once = ".encoder." in name or "cross_attn.k_proj" in name or "cross_attn.v_proj" in name
            for mode, run in MODES.items():
                cached = mode.startswith("cached")
                if not cached or (cls in (MegaForCausalLM, MegaForConditionalGeneration) and generates and not once):
                    yield model, name, mode, run


def differs(one, other):
    return len(one) != len(other) or any(not torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(one, other))


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("change", OF_OUTPUTS, ids=lambda change: change.__name__)
def test_what_changes_outputs(cls, change):
    seen = 0
    for model, name, mode, run in walk(cls):
        before = run(model, contextlib.nullcontext)
        changed = run(model, lambda: change(model.get_submodule(name)))  # noqa: B023
        assert differs(before, changed), f"{change.__name__} of {name} has no effect on {mode}"
        assert not differs(before, run(model, contextlib.nullcontext)), f"{change.__name__} of {name} stays"
        seen += 1
    assert seen


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_replaced_modules(cls):
    for model, name, mode, run in walk(cls):
        before = run(model, contextlib.nullcontext)
        changed = run(model, lambda: replaced_module(model, name))  # noqa: B023
        assert differs(before, changed), f"what replaces {name} has no effect on {mode}"


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_backward_hooks(cls):
    for model, name, mode, run in walk(cls):
        if mode != "training":
            continue
        module = model.get_submodule(name)
        before = run(model, contextlib.nullcontext)
        assert differs(before, run(model, lambda: backward_pre_hook(module))), name  # noqa: B023
        registers = [module.register_full_backward_hook, nn.modules.module.register_module_full_backward_hook]
        for register in registers:
            hooked = counted(register)
            calls = []

            @contextlib.contextmanager
            def during():
                with hooked as found:  # noqa: B023
                    yield
                    calls.extend(found)  # noqa: B023

            run(model, during)
            assert module in calls, f"{register.__name__} is not called for {name}"
