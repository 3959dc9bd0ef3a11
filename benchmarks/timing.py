"""The time that work takes on a device."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def seconds(work: Callable[[], object], device: str) -> float:
    """Between two events before and behind the work, on a CPU by the clock."""
    if device == "cpu":
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def mean_seconds(work: Callable[[], object], device: str, calls: int) -> float:
    """Of `calls` calls in a row, so that a device need not wait for the host between them."""

    def all_of_them() -> None:
        for _ in range(calls):
            work()

    return seconds(all_of_them, device) / calls


def calls_within(once: float, wanted: float, most: int = 1000) -> int:
    """How many calls of `once` seconds fill `wanted` seconds; at least one."""
    return max(1, min(most, int(wanted / max(once, 1e-9))))
