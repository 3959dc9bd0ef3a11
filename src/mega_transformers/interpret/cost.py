"""Measures time and memory of a Mega model by the length of its input."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch

from ..evaluation.memory import peak_memory, reset_peak_memory
from .inspection import sides_of
from .reading import evaluating, longest_input

FIRST_LENGTH = 256
MOST_PASSES = 5
_GROWTH = 2.5  # growth of the time when the length doubles: a guess until two lengths are measured


@dataclass(frozen=True)
class Cost:
    """Time and memory of a forward pass over one row.

    Args:
        length: Tokens, on each side of an encoder-decoder.
        seconds: Time of the fastest of `passes` forward passes.
        passes: How many passes were timed.
        memory: Highest memory above that before the pass, in bytes; None where the system does not tell.
    """

    length: int
    seconds: float
    passes: int
    memory: int | None


def measure_costs(
    model: Any,
    lengths: Sequence[int] | None = None,
    seconds: float = 5.0,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Cost]:
    """Measures forward passes through the blocks, without the head, over one row of random tokens.

    Args:
        model: A model of this package. It is not changed.
        lengths: Lengths in tokens, ascending. Default: from 256 tokens, or an eighth of the longest input of the model
            if that is less, doubling while the next length fits into `seconds`.
        seconds: Seconds for all passes together. Each given length is measured at least once.
        tell: Called with what is about to be measured.
    """
    limit = longest_input(model) or sys.maxsize
    first = min(FIRST_LENGTH, max(1, limit // 8))
    wanted = (first << step for step in count()) if lengths is None else iter(lengths)
    costs: list[Cost] = []
    began = time.perf_counter()
    with evaluating(model), torch.inference_mode():
        _pass(model, first)()  # the first pass also loads libraries
        for length in wanted:
            if lengths is None:
                length = min(length, limit)
                left = seconds - (time.perf_counter() - began)
                if costs and (length == costs[-1].length or _expected(costs) > left):
                    break
            tell(f"{length:,} tokens")
            costs.append(_measure(model, length, seconds / 6))
    return costs


def _expected(costs: list[Cost]) -> float:
    """The expected seconds of a pass of twice the length."""
    growth = _GROWTH if len(costs) < 2 else max(2.0, costs[-1].seconds / costs[-2].seconds)
    return growth * costs[-1].seconds


def _measure(model: Any, length: int, seconds: float) -> Cost:
    run = _pass(model, length)
    told = model.device.type == "cuda" or sys.platform == "linux"
    before_all = reset_peak_memory(model.device) if told else 0
    times: list[float] = []
    while not times or (len(times) < MOST_PASSES and sum(times) + times[-1] < seconds):
        before = time.perf_counter()
        run()
        times.append(time.perf_counter() - before)
    memory = max(0, peak_memory(model.device) - before_all) if told else None
    return Cost(length, min(times), len(times), memory)


def _pass(model: Any, length: int) -> Callable[[], None]:
    """A forward pass over random tokens or values; waits until the device has finished."""
    sides = sides_of(model)
    random = torch.Generator().manual_seed(0)
    inputs: dict[str, dict[str, torch.Tensor]] = {}
    for name, side in sides.items():
        if side.config.input_type == "values":
            inputs[name] = {"input_values": torch.randn(1, length, generator=random).to(side.device)}
        else:
            ids = torch.randint(side.config.vocab_size, (1, length), generator=random)
            inputs[name] = {"input_ids": ids.to(side.device)}

    def run() -> None:
        states: dict[str, torch.Tensor] = {}
        for name, side in sides.items():
            output = side(**inputs[name], **states, use_cache=False).last_hidden_state
            states = {"encoder_hidden_states": output}
        if output.device.type != "cpu":
            torch.accelerator.synchronize(output.device)

    return run


def growth_exponent(lengths: Sequence[float], values: Sequence[float]) -> float | None:
    """The slope of log(value) over log(length) by least squares over the upper half of the lengths, three at least.

    None with fewer than three lengths, or with a value that is not positive.
    """
    if len(lengths) < 3:
        return None
    some = max(3, math.ceil(len(lengths) / 2))
    if min(values[-some:]) <= 0:
        return None
    slope, _ = np.polyfit(np.log(lengths[-some:]), np.log(values[-some:]), 1)
    return float(slope)
