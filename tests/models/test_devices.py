"""On a device that is no CPU: nothing waits for it, and nothing grows with the square of the length.

The `meta` device knows shapes and no values: whoever reads one there raises. So does an operation of tensors there and
on the CPU. What this shows holds for any device, as far as no kernel of that device is involved.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mega_transformers import (
    MegaConfig,
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

DEVICE = "meta"
BATCH, LENGTH = 8, 8192
SIZES = {
    "vocab_size": 512,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "shared_representation_size": 16,
    "ema_projection_size": 4,
    "nffn_hidden_size": 64,
    "max_positions": LENGTH,
}
CHUNKS = {"use_chunking": True, "chunk_size": 512}
CAUSAL = {"is_decoder": True, "bidirectional": False}


class Watch(TorchDispatchMode):
    """Records the largest tensor that an operation on the device makes, float64 there, and copies that wait for it."""

    def __init__(self):
        super().__init__()
        self.largest, self.doubles, self.copies = 0, [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        given = {x.device.type for x in tree_leaves((args, kwargs)) if torch.is_tensor(x) and x.dim()}
        for x in tree_leaves(result):
            if not torch.is_tensor(x):
                continue
            asynchronous = kwargs.get("non_blocking") and given == {"cpu"}
            if given and given != {x.device.type} and not asynchronous:
                self.copies.append(str(function))
            if x.device.type != DEVICE:
                continue
            self.largest = max(self.largest, x.untyped_storage().nbytes())
            if x.dtype == torch.float64:
                self.doubles.append(str(function))
        return result


def watched(model, inputs, train=True):
    """Forward, and backward in training: what was seen, and the size of the largest activation in bytes."""
    config = model.config if isinstance(model.config, MegaConfig) else model.config.decoder
    rows = max(x.numel() for x in inputs.values() if torch.is_tensor(x))
    widest = max(
        2 * config.hidden_size + config.shared_representation_size + config.intermediate_size,
        config.vocab_size if "labels" in inputs else 0,
    )
    watch = Watch()
    with watch:
        if train:
            model.train()
            output = model(**inputs)
            loss = output.loss if "loss" in output and output.loss is not None else output[0].sum()
            loss.backward()
        else:
            with torch.no_grad():
                output = model.eval()(**inputs)
    assert watch.largest > 0
    assert not watch.doubles and not watch.copies, (watch.doubles[:3], watch.copies[:3])
    return watch, output, 4 * rows * widest


def test_the_watch_sees_what_it_is_to_see():
    x, watch = torch.zeros(64, 2, device=DEVICE), Watch()
    with watch:
        x @ x.t()
        x.double()
        x + torch.zeros(64, 2).to(DEVICE)
    assert watch.largest == 4 * 64 * 64 and len(watch.doubles) == 1 and len(watch.copies) == 1
    for read in (lambda: x.sum().item(), x.nonzero, lambda: bool(x.any()), lambda: x[x > 0]):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read()


def make(model_class, **fields):
    with torch.device(DEVICE):
        return model_class(MegaConfig(**SIZES, **fields))


def batch(mask=True, length=LENGTH):
    inputs = {"input_ids": torch.zeros(BATCH, length, dtype=torch.int64, device=DEVICE)}
    if mask:
        inputs["attention_mask"] = torch.ones(BATCH, length, dtype=torch.int64, device=DEVICE)
    return inputs


@pytest.mark.parametrize("length", [LENGTH, LENGTH - 5])
@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("bias", ["rotary", "simple"])
@pytest.mark.parametrize("activation", ["softmax", "laplace", "relu2"])
@pytest.mark.parametrize("fields", [{}, CHUNKS, CAUSAL, {**CAUSAL, **CHUNKS}], ids=str)
def test_the_model_in_training(fields, activation, bias, mask, length):
    fields = {**fields, "attention_activation": activation, "relative_positional_bias": bias}
    model = make(MegaModel, **fields)
    watch, _, activation_size = watched(model, batch(mask, length))
    assert watch.largest <= 4 * activation_size


@pytest.mark.parametrize("model_class", [
    MegaForMaskedLM, MegaForSequenceClassification, MegaForTokenClassification, MegaForQuestionAnswering,
    MegaForMultipleChoice, MegaForSequencePairClassification, MegaForCausalLM,
])  # fmt: skip
def test_every_head_in_training(model_class):
    inputs = batch(length=1024)
    labels = torch.zeros(BATCH, dtype=torch.int64, device=DEVICE)
    if model_class in (MegaForMaskedLM, MegaForCausalLM, MegaForTokenClassification):
        inputs["labels"] = inputs["input_ids"] % 2
    elif model_class is MegaForQuestionAnswering:
        inputs |= {"start_positions": labels, "end_positions": labels}
    elif model_class is MegaForMultipleChoice:
        inputs = {name: x.unsqueeze(1).expand(-1, 2, -1) for name, x in inputs.items()} | {"labels": labels}
    elif model_class is MegaForSequencePairClassification:
        inputs |= {f"pair_{name}": x for name, x in inputs.items()} | {"labels": labels}
    else:
        inputs["labels"] = labels
    fields = CAUSAL if model_class is MegaForCausalLM else {"problem_type": "single_label_classification"}
    model = make(model_class, **fields)
    watch, _, activation_size = watched(model, inputs)
    assert watch.largest <= 4 * max(activation_size, 4 * BATCH * 1024 * SIZES["vocab_size"])


@pytest.mark.parametrize("fields", [{}, CHUNKS, CAUSAL], ids=str)
def test_packed_documents(fields):
    model = make(MegaModel, **fields)
    inputs = {"input_ids": torch.zeros(1, LENGTH, dtype=torch.int64, device=DEVICE)}
    borders = torch.zeros(9, dtype=torch.int32, device=DEVICE)
    watch, _, activation_size = watched(model, {**inputs, "cu_seq_lens_q": borders})
    assert watch.largest <= 4 * activation_size


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("activation", ["softmax", "laplace"])
@pytest.mark.parametrize("fields", [{}, CHUNKS, {"truncation": 5}], ids=str)
def test_prompts_and_decoding_steps(fields, activation, static):
    from transformers import DynamicCache, StaticCache

    model = make(MegaForCausalLM, **CAUSAL, **fields, attention_activation=activation)
    cache = StaticCache(config=model.config, max_cache_len=2 * LENGTH) if static else DynamicCache(config=model.config)
    watch, _, activation_size = watched(model, {**batch(), "cache": cache, "logits_to_keep": 1}, train=False)
    assert watch.largest <= 4 * activation_size
    for new in (1, 1, 700):
        seen = LENGTH if new == 1 else LENGTH + 2
        mask = torch.ones(BATCH, new if static else cache.get_seq_length() + new, dtype=torch.int64, device=DEVICE)
        ids = torch.zeros(BATCH, new, dtype=torch.int64, device=DEVICE)
        inputs = {"input_ids": ids, "attention_mask": mask, "cache": cache, "logits_to_keep": 1}
        watch, _, _ = watched(model, inputs, train=False)
        assert watch.largest <= 4 * activation_size, seen


def test_an_encoder_decoder():
    side = {**SIZES, "max_positions": 1024}
    with torch.device(DEVICE):
        model = MegaForConditionalGeneration(MegaSeq2SeqConfig(encoder=side, decoder=side))
    inputs = batch(length=1024)
    watch, output, activation_size = watched(model, {**inputs, "labels": inputs["input_ids"]})
    assert watch.largest <= 4 * activation_size
    with torch.no_grad():
        step = {"decoder_input_ids": inputs["input_ids"][:, :1], "use_cache": True}
        watch, output, _ = watched(model, {**inputs, **step}, train=False)
        watched(model, {**step, "encoder_outputs": (output.encoder_last_hidden_state,), "cache": output.cache,
                        "attention_mask": inputs["attention_mask"]}, train=False)  # fmt: skip


def test_an_adaptive_vocabulary():
    model = make(MegaForCausalLM, **CAUSAL, adaptive_cutoffs=[100, 300], adaptive_input=True, adaptive_softmax=True)
    inputs = batch(length=1024)
    watch, _, activation_size = watched(model, {**inputs, "labels": inputs["input_ids"]})
    assert watch.largest <= 4 * activation_size
