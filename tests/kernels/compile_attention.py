"""Compiles what attention launches, for GPUs that need not be there: a row per kernel of what it takes."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mega_transformers.ops.attention import triton_attention
from mega_transformers.ops.layout import self_attention_layout
from mega_transformers.ops.relative_bias import BiasTable

TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int32: "i32", torch.bool: "i1"}
CASES = [
    # architecture, activation, z, h, dtype, dropout
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


class Recorder:
    """Takes the place of a kernel, and keeps what it is called with."""

    def __init__(self, kernel: triton.JITFunction, calls: list) -> None:
        self.kernel, self.calls = kernel, calls

    def __getitem__(self, grid: object) -> object:
        return lambda *args, **options: self.calls.append((self.kernel, args, options))


def source(kernel: triton.JITFunction, args: tuple, options: dict) -> ASTSource:
    """What Triton makes of a call: types, constants, and what is a multiple of 16."""
    signature, constants, attributes = {}, {}, {}
    given = {**dict(zip(kernel.arg_names, args)), **{k: x for k, x in options.items() if k in kernel.arg_names}}
    for i, parameter in enumerate(kernel.params):
        name, x = parameter.name, given[parameter.name]
        varies = not parameter.do_not_specialize
        if isinstance(x, torch.Tensor):
            signature[name], multiple = f"*{TYPES[x.dtype]}", True
        elif parameter.is_constexpr or x is None or (x == 1 and varies):
            signature[name], constants[(i,)], multiple = "constexpr", x, False
        else:
            signature[name], multiple = "i32" if abs(x) < 1 << 31 else "i64", varies and x % 16 == 0
        if multiple:
            attributes[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, attributes)


def spilled(ptx: str, architecture: int) -> tuple[int, int]:
    """Registers a thread, and bytes of them that go to memory, by the assembler that Triton brings along."""
    folder = Path(triton.__file__).parent / "backends/nvidia/bin"
    newer = folder / "ptxas-blackwell"  # for what Triton writes for sm_90 and above
    assembler = newer if architecture >= 90 and newer.exists() else folder / "ptxas"
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "kernel.ptx"
        file.write_text(ptx)
        target = re.search(r"\.target (sm_\w+)", ptx)[1]
        command = [str(assembler), "-v", f"-arch={target}", str(file), "-o", str(file.with_suffix(".cubin"))]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    return int(re.search(r"Used (\d+) registers", told)[1]), int(re.search(r"(\d+) bytes spill stores", told)[1])


def launched(architecture: int, activation: str, z: int, h: int, dtype: torch.dtype, dropout: float) -> list:
    """The calls of a forward and a backward pass."""
    calls: list = []
    triton_attention.is_large = lambda _: architecture >= 90
    kernels = {name: kernel for name, kernel in vars(triton_attention).items() if name.endswith("_kernel")}
    mask = torch.ones(2, 256)
    mask[0, :3] = 0
    layout = self_attention_layout(mask, 256)
    inputs = [torch.zeros(2, 256, n, dtype=dtype, requires_grad=True) for n in (z, z, h)]
    bias = BiasTable(torch.zeros(511, requires_grad=True), 255)
    try:
        for name, kernel in kernels.items():
            setattr(triton_attention, name, Recorder(kernel, calls))
        output = triton_attention.attention_triton(*inputs, bias, layout, activation=activation, dropout=dropout)
        output.backward(torch.zeros_like(output))
    finally:
        for name, kernel in kernels.items():
            setattr(triton_attention, name, kernel)
    return calls


if __name__ == "__main__":
    compiled = set()
    for case in EVERY if "--every" in sys.argv else CASES:
        for kernel, args, options in launched(*case):
            how = {name: options.pop(name) for name in ("num_warps", "num_stages") if name in options}
            made = source(kernel, args, options)
            key = case[0], made.hash(), *how.items()
            if key in compiled:
                continue
            compiled.add(key)
            code = triton.compile(made, target=GPUTarget("cuda", case[0], 32), options=how)
            registers, memory = spilled(code.asm["ptx"], case[0])
            row = kernel.__name__, case[0], registers, memory, code.metadata.shared
            print(*row, *(case[1:] if "--every" in sys.argv else ()), sep="\t", flush=True)
