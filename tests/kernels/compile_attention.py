"""Compiles what attention launches, and prints a row per kernel of what it takes of a GPU."""

from __future__ import annotations

import sys

import torch
from compiling import compile_calls, recorded

from mega_transformers.ops.attention import triton_attention
from mega_transformers.ops.layout import self_attention_layout
from mega_transformers.ops.relative_bias import BiasTable

# architecture, activation, z, h, dtype, dropout
FEW = [
    (80, "laplace", 256, 512, torch.bfloat16, 0.1),
    (80, "softmax", 64, 512, torch.float32, 0.0),
    (90, "softmax", 128, 1024, torch.bfloat16, 0.1),
]
EVERY = [
    (architecture, activation, z, h, dtype, dropout)
    for architecture in (80, 90)
    for activation, dropout in (("softmax", 0.0), ("softmax", 0.1), ("laplace", 0.1), ("relu2", 0.1))
    for z, h in ((16, 64), (64, 512), (128, 1024), (256, 2048))
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
]


def launched(activation: str, z: int, h: int, dtype: torch.dtype, dropout: float) -> list:
    """The calls of a forward and a backward pass."""
    mask = torch.ones(2, 256)
    mask[0, :3] = 0
    layout = self_attention_layout(mask, 256)
    inputs = [torch.zeros(2, 256, n, dtype=dtype, requires_grad=True) for n in (z, z, h)]
    bias = BiasTable(torch.zeros(511, requires_grad=True), 255)
    with recorded(triton_attention) as calls:
        output = triton_attention.attention_triton(*inputs, bias, layout, activation=activation, dropout=dropout)
        output.backward(torch.zeros_like(output))
    return calls


if __name__ == "__main__":
    for architecture, *case in EVERY if "--every" in sys.argv else FEW:
        triton_attention.is_large = lambda _, large=architecture >= 90: large
        for made in compile_calls(launched(*case), architecture):
            print(*made[:5], *(case if "--every" in sys.argv else ()), sep="\t", flush=True)
