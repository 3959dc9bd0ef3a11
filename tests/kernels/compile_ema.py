"""Compiles what the EMA launches, and prints a row per kernel of what it takes of a GPU."""

from __future__ import annotations

import torch
from compiling import compile_calls, recorded

from mega_transformers.ops.ema import EMACoefficients, packed_blocks, triton_scan
from mega_transformers.ops.ema.triton_scan import BLOCK, ema_triton


def launched(bidirectional: bool, packed: bool) -> list:
    """The calls of a forward and a backward pass."""
    x = torch.zeros(2, 600, 32, dtype=torch.bfloat16, requires_grad=True)
    drive, log_decay, output = torch.zeros(3, 64 if bidirectional else 32, 16).requires_grad_().unbind()
    coefficients = EMACoefficients(drive, log_decay, output, log_decay.exp())
    documents = packed_blocks(torch.zeros(2, 600, dtype=torch.bool), BLOCK) if packed else None
    with recorded(triton_scan) as calls:
        y, _ = ema_triton(x, coefficients, bidirectional=bidirectional, packed=documents)
        y.backward(torch.zeros_like(y))
    return calls


if __name__ == "__main__":
    for architecture, *case in [(80, True, False), (80, False, True), (90, True, False)]:
        for made in compile_calls(launched(*case), architecture):
            print(*made[:5], sep="\t", flush=True)
