"""Compiles the kernels that functions launch, for GPUs that need not be there.

The interpreter knows neither types nor layouts nor registers. Needs a process that is not to interpret.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.bool: "i1",
}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


class Compiled(NamedTuple):
    """A kernel for an architecture: registers per thread, bytes of them that go to memory, bytes of shared memory."""

    kernel: str
    architecture: int
    registers: int
    spilled: int
    shared: int
    asm: dict


class _Recorder:
    """Takes the place of a kernel, and keeps what it is called with."""

    def __init__(self, kernel: triton.JITFunction, calls: list) -> None:
        self.kernel, self.calls = kernel, calls

    def __getitem__(self, grid: object) -> object:
        return lambda *args, **options: self.calls.append((self.kernel, args, options))


@contextmanager
def recorded(module: ModuleType) -> Iterator[list]:
    """The calls (kernel, arguments, options) of a module's kernels, `*_kernel`, none of which is run."""
    calls: list = []
    kernels = {name: kernel for name, kernel in vars(module).items() if name.endswith("_kernel")}
    try:
        for name, kernel in kernels.items():
            setattr(module, name, _Recorder(kernel, calls))
        yield calls
    finally:
        for name, kernel in kernels.items():
            setattr(module, name, kernel)


def source(kernel: triton.JITFunction, args: tuple, options: dict) -> ASTSource:
    """What Triton makes of a call: types, constants, and what is a multiple of 16."""
    signature, constants, attributes = {}, {}, {}
    given = {**dict(zip(kernel.arg_names, args)), **{k: x for k, x in options.items() if k in kernel.arg_names}}
    for i, parameter in enumerate(kernel.params):
        name, x = parameter.name, given[parameter.name]
        varies = not parameter.do_not_specialize
        if isinstance(x, torch.Tensor):
            signature[name], multiple = f"*{TYPES[x.dtype]}", not parameter.do_not_specialize_on_alignment
        elif parameter.is_constexpr or x is None or (x == 1 and varies):
            signature[name], constants[(i,)], multiple = "constexpr", x, False
        else:
            signature[name], multiple = "i32" if abs(x) < 1 << 31 else "i64", varies and x % 16 == 0
        if multiple:
            attributes[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, attributes)


def compile_calls(calls: list, architecture: int) -> list[Compiled]:
    """Each different kernel of some calls, compiled for an architecture (80, 90, ...)."""
    made: dict = {}
    for kernel, args, options in calls:
        how = {name: options[name] for name in OPTIONS if name in options}
        what = source(kernel, args, options)
        key = what.hash(), *how.items()
        if key not in made:
            code = triton.compile(what, target=GPUTarget("cuda", architecture, 32), options=how)
            registers, spilled = _assembled(code.asm["ptx"], architecture)
            made[key] = Compiled(
                kernel.__name__, architecture, registers, spilled, code.metadata.shared, dict(code.asm)
            )
    return list(made.values())


def _assembled(ptx: str, architecture: int) -> tuple[int, int]:
    """Registers per thread, and bytes of them that go to memory, by the assembler that Triton brings along."""
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
