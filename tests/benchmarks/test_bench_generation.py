"""What is measured of causal models: each subject does the work it says, from the same start every time."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks.build import build
from benchmarks.cases import BEFORE, CASES, GPT2, MARIAN, OLD, ONE_BY_ONE, OURS, UNCOMPILED, Workload
from benchmarks.generation import tensor_bytes
from benchmarks.memory import CACHE_METHOD
from benchmarks.models import MODELS
from benchmarks.worker import Session

DECODE = Workload("decode", 21, head="causal-lm", new_tokens=5)
GENERATE = Workload("generate", 30, head="causal-lm", batch=3, new_tokens=4)


@pytest.mark.parametrize(("peer", "chunk"), [(OURS, None), (OURS, 4), (GPT2, None)])
def test_decoding_continues_the_context(peer, chunk):
    subject = build(peer, Workload(**{**DECODE.to_dict(), "chunk": chunk}), 0)
    output = subject.evaluate()["output"]
    with torch.no_grad():
        whole = subject.module(torch.cat([subject.context, subject.new_tokens], dim=1), use_cache=False).logits
    torch.testing.assert_close(output, whole[:, DECODE.length :], atol=2e-5, rtol=2e-5)


def test_compiled_steps_continue_the_context_in_a_static_cache(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    workload = replace(DECODE, compiled=True)
    subject, uncompiled = build(OURS, workload, 0), build(UNCOMPILED, workload, 0)
    expected = uncompiled.evaluate()["output"]
    graphs = []
    for _ in range(3):
        torch.testing.assert_close(subject.evaluate()["output"], expected, atol=2e-5, rtol=2e-5)
        addresses = [layer.keys.data_ptr() for layer in subject.cache.layers]
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert addresses == [layer.keys.data_ptr() for layer in subject.cache.layers]
    assert graphs[0] == graphs[-1] > 0  # none is compiled again
    assert type(subject.cache).__name__ == "StaticCache" != type(uncompiled.cache).__name__
    assert BEFORE in MODELS and build(BEFORE, workload, 0).compiled and not uncompiled.compiled


def test_calls_are_those_of_one_token():
    steps = build(GPT2, DECODE, 0), build(GPT2, replace(DECODE, new_tokens=2), 0)
    few, many = sorted(subject.calls() for subject in steps)
    assert 50 < few <= many < 1.1 * few


def test_every_run_of_steps_starts_behind_the_context():
    subject = build(OURS, DECODE, 0)
    first = subject.evaluate()["output"]
    for _ in range(2):
        subject.prepare()
        assert subject.cache.get_seq_length() == DECODE.length
        subject.step()
        assert subject.cache.get_seq_length() == DECODE.length + DECODE.new_tokens
    assert torch.equal(subject.evaluate()["output"], first)


def test_memory_of_decoding_is_what_the_cache_holds():
    subject = build(GPT2, DECODE, 0)
    size, method = subject.memory()
    keys_and_values = 4 * 2 * 256 * (DECODE.length + DECODE.new_tokens)  # layers, two of them, width, tokens
    assert (size, method) == (4 * keys_and_values, CACHE_METHOD)


def test_with_chunks_the_cache_does_not_grow():
    sizes = {
        build(OURS, Workload("decode", length, chunk=128, head="causal-lm", new_tokens=3), 0).memory()[0]
        for length in (2 * 128 + 61, 8 * 128 + 61)
    }
    assert len(sizes) == 1


def test_bytes_of_what_tensors_share_count_once():
    tensor = torch.zeros(10, 4)
    holder = {"a": [tensor, tensor[2:]], "b": (torch.zeros(3), None), "c": "text"}
    holder["itself"] = holder
    assert tensor_bytes(holder) == 4 * (40 + 3)


@pytest.mark.parametrize("all_logits", [False, True])
def test_prefill(all_logits):
    subject = build(OURS, Workload("prefill", 24, chunk=8, head="causal-lm", all_logits=all_logits), 0)
    with torch.no_grad():
        whole = subject.module(subject.input_ids, use_cache=False).logits
    torch.testing.assert_close(subject.evaluate()["output"], whole if all_logits else whole[:, -1:])
    assert subject.options["use_cache"] and ("logits_to_keep" in subject.options) != all_logits
    subject.step(1)


def test_prompts_are_of_unequal_lengths():
    subject = build(OURS, CASES["generate-batch8"].workload, 0)
    assert subject.attention_mask.sum(1).tolist() == [20, 60, 100, 140, 180, 220, 260, 300]
    assert bool(subject.attention_mask[:, -1].all())
    assert bool(((subject.input_ids == 1) == (subject.attention_mask == 0)).all())


def test_a_batch_and_one_by_one_give_the_same_tokens():
    together, alone = build(OURS, GENERATE, 0), build(ONE_BY_ONE, GENERATE, 0)
    tokens = together.evaluate()["tokens"]
    assert tokens.shape == (3, 4) and len(tokens.unique()) > 3
    assert torch.equal(alone.evaluate()["tokens"], tokens)
    calls = []
    alone.generate = lambda input_ids, **_: calls.append(input_ids) or torch.zeros(1, input_ids.shape[1] + 4)
    alone.step(10)
    assert [ids.shape for ids in calls] == [(1, 2), (1, 10), (1, 10)]
    assert all(bool((ids != 1).all()) for ids in calls)


class Counting:
    """A subject that takes its time to prepare, and says what was asked of it."""

    parts = 4

    def __init__(self):
        self.asked = []

    def prepare(self):
        self.asked.append("prepare")

    def step(self):
        self.asked.append("step")


def test_a_time_is_that_of_a_part_and_without_preparation(monkeypatch):
    session = Session()
    session.subject = Counting()
    wall = iter((0.0, 12.0, 100.0, 112.0))  # steps of 12 s, 8 s of them at work; what passes between does not count
    cpu = iter((0.0, 8.0, 50.0, 58.0))
    monkeypatch.setattr("benchmarks.worker.time.perf_counter", lambda: next(wall))
    monkeypatch.setattr("benchmarks.worker.time.process_time", lambda: next(cpu))
    monkeypatch.setattr("benchmarks.worker.BURST_SECONDS", 16.0)
    assert session.time() == {"seconds": 3.0, "cpu_seconds": 2.0}
    assert session.subject.asked == ["prepare", "step"] * 2


@pytest.mark.parametrize("old_way", ["training", "inference", "cached"])
def test_old_prefill_goes_the_way_asked_for(monkeypatch, old_way):
    monkeypatch.setitem(MODELS, OLD, lambda workload: torch.nn.Identity())
    subject = build(OLD, Workload("prefill", 24, chunk=8, head="causal-lm", old_way=old_way), 0)
    assert subject.options == {"use_cache": old_way == "cached"}
    assert subject.module.training == (old_way == "training")


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("peer", [OURS, MARIAN])
def test_text_to_text_generates_for_every_source_as_for_it_alone(peer, beams):
    workload = Workload("generate", 9, head="text-to-text", batch=3, new_tokens=4, beams=beams)
    subject = build(peer, workload, 0)
    lengths = subject.attention_mask.sum(1)
    assert lengths.min() < lengths.max() == 9
    tokens = subject.evaluate()["tokens"]
    assert tokens.shape == (3, 4)
    for row, length in enumerate(lengths.tolist()):
        alone = subject._continue(subject.input_ids[row : row + 1, :length], None)
        assert torch.equal(alone[0], tokens[row])


def test_text_to_text_models_are_of_like_size():
    sizes = [
        sum(parameter.numel() for parameter in MODELS[peer](CASES["text2text-batch16-greedy"].workload).parameters())
        for peer in (OURS, MARIAN)
    ]
    assert max(sizes) / min(sizes) < 1.02
