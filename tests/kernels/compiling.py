"""Compiles kernels for cards that are not here: `python compiling.py`, with jobs as JSON on stdin, answers as JSON.

The interpreter knows neither layouts nor all rules about types; a compiler does, and says what a program takes.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def compiled(jobs: list[dict[str, Any]]) -> list[dict[str, int]]:
    """What kernels take of a card, from another process: the interpreter is for a whole process, or not at all.

    Args:
        jobs: Of each the `module`, the `kernel`, the types of its arguments, as Triton writes them, by name
            (`types`; what is not named is "i32"), its `constants`, the number of `warps` and the `card` (80 or 90).

    Returns:
        Of each: `registers` a thread, `stack` (bytes a thread that did not fit) and `shared` (bytes).
    """
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, __file__], input=json.dumps(jobs), env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def _compile(job: dict[str, Any]) -> dict[str, int]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(job["module"]), job["kernel"])
    constants = job["constants"]
    signature = {
        name: "constexpr" if name in constants else job["types"].get(name, "i32") for name in kernel.arg_names
    }
    target = GPUTarget("cuda", job["card"], 32)
    made = triton.compile(ASTSource(kernel, signature, constants), target, {"num_warps": job["warps"]})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(made.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", said).groups()  # type: ignore[union-attr]
    return {"registers": int(registers), "stack": int(stack), "shared": made.metadata.shared}


if __name__ == "__main__":
    print(json.dumps([_compile(job) for job in json.load(sys.stdin)]))
