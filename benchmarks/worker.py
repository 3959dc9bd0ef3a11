"""One process that measures one subject, in whichever interpreter it is started: `python -m benchmarks.worker`.

It reads one JSON request a line from stdin and answers each with one JSON line on stdout, `{"error": ...}` on failure:

    load     peer, workload, seed, threads, weights (a file to read or null) -> parameters, versions, package (a file)
    save     path                   -> writes the weights as safetensors
    check    path                   -> writes what one evaluation gives as safetensors: outputs, loss and gradients
    memory                          -> bytes, method: peak of one step above the loaded model; of decoding, the cache
    calls                           -> calls of aten functions in a step, or in one of its like parts
    time                            -> seconds and cpu_seconds (of all threads) of a step, or of one of its like parts
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from typing import Any

BURST_SECONDS = 0.2  # of processor time


class Session:
    """The subject a worker holds, and what can be asked of it."""

    def load(
        self, peer: str, workload: dict[str, Any], seed: int, threads: int, weights: str | None
    ) -> dict[str, Any]:
        """Build the subject; the process computes with `threads` threads from here on."""
        import torch

        from benchmarks.build import build
        from benchmarks.cases import Workload

        torch.set_num_threads(threads)
        self.subject = build(peer, Workload(**workload), seed)
        if weights is not None:
            self.subject.load_weights(weights)
        return {
            "parameters": sum(parameter.numel() for parameter in self.subject.module.parameters()),
            "package": getattr(sys.modules.get("mega_transformers"), "__file__", None),
            "versions": {"python": platform.python_version(), **_versions("torch", "transformers", "numpy")},
        }

    def save(self, path: str) -> dict[str, Any]:
        """Write the weights."""
        self.subject.save_weights(path)
        return {}

    def check(self, path: str) -> dict[str, Any]:
        """Write what one evaluation gives."""
        from safetensors.torch import save_file

        save_file({name: tensor.contiguous() for name, tensor in self.subject.evaluate().items()}, path)
        return {}

    def memory(self) -> dict[str, Any]:
        """Memory of one step."""
        size, method = self.subject.memory()
        return {"bytes": size, "method": method}

    def calls(self) -> dict[str, Any]:
        """Calls of aten functions in a step's part."""
        return {"calls": self.subject.calls()}

    def time(self) -> dict[str, Any]:
        """Wall and processor time of a step's part: of one step, or the mean of as many as fill `BURST_SECONDS`."""
        seconds = cpu_seconds = 0.0
        steps = 0
        while steps == 0 or cpu_seconds < BURST_SECONDS:
            self.subject.prepare()
            start, cpu_start = time.perf_counter(), time.process_time()
            self.subject.step()
            cpu_seconds += time.process_time() - cpu_start
            seconds += time.perf_counter() - start
            steps += 1
        parts = steps * self.subject.parts
        return {"seconds": seconds / parts, "cpu_seconds": cpu_seconds / parts}


def _versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Answer requests until stdin ends."""
    # Whatever a library prints goes to stderr: the answers keep the real stdout for themselves.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    session = Session()
    operations = {name: getattr(session, name) for name in ("load", "save", "check", "memory", "calls", "time")}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = operations[request.pop("operation")](**request)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
