"""What a card reaches at its two limits: how fast it copies memory, and how fast it multiplies matrices."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from benchmarks.timing import calls_within, mean_seconds, seconds

COPIED = {"cuda": 2**30, "cpu": 2**24}  # bytes
SIDE = {"cuda": 8192, "cpu": 256}
BURST_SECONDS = 0.1


def measure(device: str, dtype: str = "bfloat16") -> dict[str, Any]:
    """Bytes that are read or written in a second, operations of matrix products in a second, and the card's name."""
    return {
        "device": _name(device),
        "dtype": dtype,
        "bytes_per_second": copy_rate(device, COPIED[device]),
        "operations_per_second": matmul_rate(device, SIDE[device], getattr(torch, dtype)),
    }


def copy_rate(device: str, size: int) -> float:
    """Bytes a second, read and written ones together, of copying `size` bytes within the memory of a device."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _median_seconds(lambda: target.copy_(source), device)


def matmul_rate(device: str, side: int, dtype: torch.dtype) -> float:
    """Operations a second of the product of two square matrices, two for each multiplication."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / _median_seconds(lambda: torch.mm(a, b, out=out), device)


def _median_seconds(work: Callable[[], object], device: str) -> float:
    seconds(work, device)  # a warm-up
    calls = calls_within(seconds(work, device), BURST_SECONDS)
    return median(mean_seconds(work, device, calls) for _ in range(5))


def _name(device: str) -> dict[str, Any]:
    if device == "cpu":
        return {"name": "CPU", "cuda": None, "memory_bytes": None}
    properties = torch.cuda.get_device_properties(device)
    return {"name": properties.name, "cuda": torch.version.cuda, "memory_bytes": properties.total_memory}
