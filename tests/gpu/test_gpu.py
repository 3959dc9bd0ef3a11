"""On a GPU against the CPU in float32: every head, padding and packing, the fused kernels, and decoding in three ways.

MEGA_TEST_DEVICE=cpu runs the same on the CPU, to try the tests themselves.
"""

import os

import pytest
import torch
from tiny import CAUSAL, tiny_config
from transformers import CompileConfig

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
from mega_transformers.ops.attention import attention
from mega_transformers.ops.layout import cached_layout, self_attention_layout
from mega_transformers.ops.relative_bias import RotaryBias

DEVICE = os.environ.get("MEGA_TEST_DEVICE", "cuda")
pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device (MEGA_TEST_DEVICE=cpu tries it)"
)

FLOAT32 = 5e-4
"""Most that outputs (largest element) and gradients (norm of all) may differ by, as a share of the CPU's."""
HALF = 3.0
"""The same in bfloat16, in differences that the CPU in bfloat16 has from itself in float32."""
SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "nffn_hidden_size": 128,
    "shared_representation_size": 32,  # with the features of the bias 64, which flash kernels take
    "ema_projection_size": 8,
    "initializer_range": 0.2,
    "dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "nffn_activation_dropout_prob": 0.0,
}
ROWS, LENGTH = 3, 200
HEADS = (
    MegaModel,
    MegaForMaskedLM,
    MegaForCausalLM,
    MegaForSequenceClassification,
    MegaForTokenClassification,
    MegaForQuestionAnswering,
    MegaForMultipleChoice,
    MegaForSequencePairClassification,
    MegaForConditionalGeneration,
)


def make(head=MegaForMaskedLM, **fields):
    torch.manual_seed(0)
    fields = {**SIZES, **fields}
    if head is MegaForConditionalGeneration:
        return head(MegaSeq2SeqConfig(encoder=fields, decoder=fields))
    if head is MegaForCausalLM:
        fields |= CAUSAL
    return head(MegaConfig(**fields, problem_type=None))


def batch(head=MegaForMaskedLM, padding="right"):
    """Rows of unequal lengths, and labels of the head."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, SIZES["vocab_size"], (ROWS, LENGTH), generator=generator)
    lengths = torch.tensor([LENGTH, LENGTH - 71, 30]).unsqueeze(1)
    column = torch.arange(LENGTH)
    mask = (column < lengths if padding == "right" else column >= LENGTH - lengths).long()
    if padding is None:
        mask = torch.ones_like(mask)
    inputs = {"input_ids": ids.masked_fill(mask == 0, 1), "attention_mask": mask}
    words, one = ids.masked_fill(mask == 0, -100), torch.tensor([1, 0, 1])
    if head is MegaForQuestionAnswering:
        return inputs | {"start_positions": one, "end_positions": one + 3}
    if head is MegaForMultipleChoice:
        return {name: torch.stack([x, x.roll(1, 0)], 1) for name, x in inputs.items()} | {"labels": one}
    if head is MegaForSequencePairClassification:
        return inputs | {f"pair_{name}": x for name, x in inputs.items()} | {"labels": one}
    if head is MegaForSequenceClassification:
        return inputs | {"labels": one}
    if head is MegaForTokenClassification:
        words = words.masked_fill(words > 0, 1)
    return inputs if head is MegaModel else inputs | {"labels": words}


def results(model, inputs, device="cpu", dtype=torch.float32):
    """Output and gradients of a forward and backward pass; on padding there are none."""
    model.zero_grad()
    ema = {parameter: parameter.data for name, parameter in model.named_parameters() if "ema_gate" in name}
    model.to(device, dtype)
    for parameter, value in ema.items():  # as when a checkpoint is loaded in half precision
        parameter.data = value.to(device)
    output = model(**{name: x.to(device) for name, x in inputs.items()})
    first = output.logits if "logits" in output else output.get("start_logits", output[0])
    if "labels" in inputs or "start_positions" in inputs:
        output.loss.backward()
    else:
        first.float().square().mean().backward()
    if first.dim() == 3 and first.shape[:2] == inputs["input_ids"].shape:
        first = first * inputs["attention_mask"].to(first)[..., None]
    gradients = [p.grad.float().cpu().flatten() for p in model.parameters() if p.grad is not None]
    return first.detach().float().cpu(), torch.cat(gradients)


def largest(x):
    return x.abs().max()


def assert_near(model, inputs, dtype):
    """The device's results against the CPU's in float32."""
    expected = results(model, inputs)
    allowed = [FLOAT32 * norm(x) for norm, x in zip((largest, torch.linalg.vector_norm), expected)]
    if dtype != torch.float32:
        usual = results(model, inputs, "cpu", dtype)
        allowed = [HALF * d + least for d, least in zip(differences(usual, expected), allowed)]
    actual = results(model, inputs, DEVICE, dtype)
    assert all(bool(x.isfinite().all()) for x in actual)
    found = differences(actual, expected)
    assert all(d <= most for d, most in zip(found, allowed)), (found, allowed)


def differences(actual, expected):
    return [norm(a - b) for norm, a, b in zip((largest, torch.linalg.vector_norm), actual, expected)]


FLASH = pytest.mark.skipif(DEVICE == "cpu", reason="flash kernels are a GPU's")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@DTYPES
@pytest.mark.parametrize("head", HEADS)
def test_every_head(head, dtype):
    assert_near(make(head), batch(head), dtype)


@DTYPES
@pytest.mark.parametrize("padding", ["left", "right", None])
@pytest.mark.parametrize("fields", [
    {},
    {"use_chunking": True, "chunk_size": 64},
    {"use_chunking": True, "chunk_size": 64, "attention_activation": "laplace"},
    {"is_decoder": True, "bidirectional": False},
], ids=str)  # fmt: skip
def test_padding_and_chunks(fields, padding, dtype):
    assert_near(make(MegaModel, **fields, add_pooling_layer=False), batch(MegaModel, padding), dtype)


@DTYPES
def test_packed_documents(dtype):
    starts = torch.zeros(ROWS, LENGTH, dtype=torch.int64)
    starts[:, 50] = starts[:, 120] = 1
    assert_near(make(), batch(padding=None) | {"seq_idx": starts.cumsum(1)}, dtype)


def layouts():
    """Each kind of problem that the fused kernels are given."""
    mask = batch()["attention_mask"]
    column = torch.arange(LENGTH)
    reset = ((column == 50) | (column == 120)).expand(ROWS, -1)
    return {
        "full": self_attention_layout(None, LENGTH),
        "causal": self_attention_layout(None, LENGTH, causal=True),
        "padding": self_attention_layout(mask, LENGTH),
        "causal, padding": self_attention_layout(mask.flip(1), LENGTH, causal=True),
        "chunks, padding": self_attention_layout(mask.flip(1), LENGTH, chunk_size=64),
        "documents": self_attention_layout(None, LENGTH, reset=reset),
        "cached": cached_layout(None, LENGTH - 20, 20, None),
    }


@FLASH
@pytest.mark.parametrize("kind", layouts())
def test_fused_kernels(kind):
    """Flash attention and its variable-length form, forward and backward, against the definition."""
    layout, generator = layouts()[kind], torch.Generator().manual_seed(2)
    z, h, dtype = 32, 96, torch.bfloat16
    lengths = (layout.queries, layout.keys, layout.keys)
    given = [torch.randn(ROWS, n, width, generator=generator) for n, width in zip(lengths, (z, z, h))]
    given += [torch.randn(z, generator=generator) * 0.3 for _ in range(2)]
    given = [x.to(dtype).float() for x in given]
    real = layout.tokens if layout.tokens is not None else torch.ones(ROWS, layout.queries)
    upstream = torch.randn(ROWS, layout.queries, h, generator=generator) * real.unsqueeze(-1)

    def run(device, dtype, backend):
        q, k, v, alpha, beta = (x.detach().clone().to(device, dtype).requires_grad_() for x in given)
        place = layout.to(device)
        output, _ = attention(q, k, v, RotaryBias(alpha, beta), place, backend=backend)
        output.backward(upstream.to(device, dtype))
        output = output.detach() * real.to(device, dtype).unsqueeze(-1)
        return [x.float().cpu() for x in (output, q.grad, k.grad, v.grad, alpha.grad, beta.grad)]

    expected, usual = run("cpu", torch.float32, "reference"), run("cpu", dtype, "reference")
    for got, want, rounded in zip(run(DEVICE, dtype, "fused"), expected, usual):
        allowed = HALF * torch.linalg.vector_norm(rounded - want) + FLOAT32 * torch.linalg.vector_norm(want)
        assert torch.linalg.vector_norm(got - want) <= allowed


@pytest.mark.parametrize("fields", [{}, {"use_chunking": True, "chunk_size": 16}], ids=str)
def test_decoding_dynamic_static_and_captured(fields):
    """Captured with chunks only, since Inductor takes its time."""
    torch.manual_seed(0)
    model = MegaForCausalLM(tiny_config(**CAUSAL, **fields, initializer_range=0.5)).eval()
    ids = torch.randint(5, 31, (2, 21))
    mask = (torch.arange(21) >= torch.tensor([[0], [9]])).long()
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}

    def tokens(device, **how):
        model.to(device)
        return model.generate(ids.to(device), attention_mask=mask.to(device), **options, **how).cpu()

    expected = tokens("cpu")
    assert torch.equal(tokens(DEVICE), expected)
    assert torch.equal(tokens(DEVICE, cache_implementation="static", disable_compile=True), expected)
    if not fields:
        return
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    how = CompileConfig() if DEVICE == "cuda" else CompileConfig(backend="aot_eager", mode=None)
    how._compile_all_devices = True
    for _ in range(2):  # another cache, at other addresses
        captured = tokens(DEVICE, cache_implementation="static", compile_config=how)
        assert torch.equal(captured, expected)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1
    if DEVICE == "cuda":
        assert counters["inductor"]["cudagraph_skips"] == 0
