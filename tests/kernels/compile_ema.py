"""Compiles what the EMA launches, and prints a row per kernel of what it takes of a GPU."""

from __future__ import annotations

import sys

import torch
from compiling import compile_calls, recorded

from mega_transformers.ops.ema import EMACoefficients, triton_scan

# architecture, channels, states, dtype, and what is asked
FEW = [
    (80, 768, 16, torch.bfloat16, {"bidirectional": True, "packed": True}),
    (90, 100, 64, torch.float16, {"return_state": True}),
]
EVERY = [
    (architecture, 768, states, dtype, options)
    for architecture in (80, 90)
    for states in (1, 16, 32, 64)
    for dtype in (torch.bfloat16, torch.float32)
    for options in (
        {"bidirectional": True},
        {"bidirectional": True, "packed": True},
        {},
        {"packed": True},
        {"return_state": True},
    )
]


def launched(channels: int, states: int, dtype: torch.dtype, options: dict) -> list:
    """The calls of a forward and a backward pass over several chunks."""
    options = dict(options)
    x = torch.zeros(2, 64, channels, dtype=dtype, requires_grad=True)
    reset = torch.zeros(2, 64, dtype=torch.bool) if options.pop("packed", False) else None
    rows = channels * (2 if options.get("bidirectional") else 1)
    coefficients = EMACoefficients(*(torch.zeros(rows, states, requires_grad=True) for _ in range(4)))
    with recorded(triton_scan) as calls:
        y, last = triton_scan.ema_triton(x, coefficients, reset=reset, **options)
        (y.sum() + (0 if last is None else last.sum())).backward()
    return calls


if __name__ == "__main__":
    triton_scan.chunk_size = lambda *_: 32
    for architecture, *case in EVERY if "--every" in sys.argv else FEW:
        for made in compile_calls(launched(*case), architecture):
            print(*made[:5], *(case if "--every" in sys.argv else ()), sep="\t", flush=True)
