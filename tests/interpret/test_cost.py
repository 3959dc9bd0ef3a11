"""Time and memory by length: which lengths are measured, what of a model is left as it was, how growth is told."""

from __future__ import annotations

import sys

import pytest
import torch
from tiny import CAUSAL, SIZES, tiny_config

from mega_transformers import (
    MegaForCausalLM,
    MegaForConditionalGeneration,
    MegaForSequenceClassification,
    MegaModel,
    MegaSeq2SeqConfig,
)
from mega_transformers.interpret import cost
from mega_transformers.interpret.cost import Cost, growth_exponent, measure_costs
from mega_transformers.interpret.report import growth_in_words


def test_given_lengths_are_all_measured() -> None:
    costs = measure_costs(MegaForCausalLM(tiny_config(**CAUSAL)), [4, 6, 300], seconds=0.0)
    assert [each.length for each in costs] == [4, 6, 300]
    assert all(each.seconds > 0 and each.passes == 1 for each in costs)


def test_lengths_double_within_the_time() -> None:
    told: list[str] = []
    costs = measure_costs(MegaModel(tiny_config()), seconds=0.2, tell=told.append)
    assert [each.length for each in costs] == [256 * 2**step for step in range(len(costs))]
    assert told == [f"{each.length:,} tokens" for each in costs]
    assert max(each.passes for each in costs) <= cost.MOST_PASSES


def test_one_length_is_measured_however_short_the_time() -> None:
    assert len(measure_costs(MegaModel(tiny_config()), seconds=0.0)) == 1


def test_lengths_end_where_positions_do() -> None:
    model = MegaModel(tiny_config(relative_positional_bias="simple", max_positions=40))
    assert [each.length for each in measure_costs(model, seconds=60)] == [5, 10, 20, 40]


@pytest.mark.parametrize(
    "make",
    [
        lambda: MegaForConditionalGeneration(MegaSeq2SeqConfig(encoder=SIZES, decoder=SIZES)),
        lambda: MegaForSequenceClassification(tiny_config(input_type="values")),
    ],
    ids=["encoder-decoder", "values"],
)
def test_every_kind_is_measured_and_left_alone(make) -> None:
    model = make().train()
    random = torch.get_rng_state()
    assert [each.length for each in measure_costs(model, [8], seconds=0.0)] == [8]
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_memory_is_what_a_pass_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 64 << 20

    def pass_of(model: object, length: int):
        return lambda: torch.ones(size // 4).sum()

    monkeypatch.setattr(cost, "_pass", pass_of)
    (found,) = measure_costs(MegaModel(tiny_config()), [1], seconds=0.0)
    assert 0.95 * size <= found.memory <= 1.2 * size  # a few pages were there before


def test_growth_is_the_slope_of_the_upper_half() -> None:
    lengths = [2**power for power in range(6)]
    assert growth_exponent(lengths, [3.0 * length**1.5 for length in lengths]) == pytest.approx(1.5)
    assert growth_exponent(lengths, [9.0, 9.0, 9.0, 64.0, 256.0, 1024.0]) == pytest.approx(2.0)
    assert growth_exponent(lengths[:2], [1.0, 2.0]) is None
    assert growth_exponent(lengths, [0.0] * 6) is None


@pytest.mark.parametrize(
    ("power", "words"),
    [(0.2, "less than linear"), (1.0, "which is linear."), (1.5, "between linear and quadratic"), (2.0, "quadratic.")],
)
def test_growth_in_words(power: float, words: str) -> None:
    costs = [Cost(length, length**power, 1, None) for length in (256, 512, 1024)]
    (sentence,) = growth_in_words(costs)  # nothing of memory, which nobody told
    assert words in sentence
    assert f"power {power:.2f}" in sentence
    assert f"{2**power:.2f} times" in sentence
