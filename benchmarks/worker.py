"""One process that measures one subject, in whichever interpreter it is started: `python -m benchmarks.worker`.

It reads one JSON request a line from stdin and answers each with one JSON line on stdout, `{"error": ...}` on failure:

    load     peer, workload, seed, threads, weights (a file to read or null) -> parameters, versions, package (a file)
    save     path                   -> writes the weights as safetensors
    check    path                   -> writes what one evaluation gives as safetensors: outputs, loss and gradients
    memory                          -> bytes, method: peak of one step above the loaded model; of decoding, the cache
    calls                           -> calls of aten functions in a step, or in one of its like parts
    time                            -> seconds and cpu_seconds (of all threads) of a step, or of one of its like parts
    device_time                     -> the same by the device's clock, of several steps in a row where they allow it
    work                            -> operations and bytes that a step, or a part, cannot do without; null if unknown
    roofline device                 -> the card, and the rates it copies and multiplies at
    unload                          -> drops the subject and returns the device's memory
"""

from __future__ import annotations

import gc
import json
import os
import platform
import sys
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from typing import Any

BURST_SECONDS = 0.2  # of processor time
DEVICE_BURST_SECONDS = 0.1


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
        if workload["device"] == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("PyTorch finds no CUDA device")
        self.calls_in_a_row = 1
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

    def device_time(self) -> dict[str, Any]:
        """Seconds of a step's part by the device's clock, and of processor time; the first answer is a warm-up."""
        from benchmarks.timing import calls_within, mean_seconds

        subject, calls = self.subject, self.calls_in_a_row
        subject.prepare()
        cpu_start = time.process_time()
        seconds = mean_seconds(subject.step, subject.workload.device, calls)
        cpu_seconds = (time.process_time() - cpu_start) / calls
        if not subject.is_prepared:
            self.calls_in_a_row = calls_within(seconds, DEVICE_BURST_SECONDS)
        return {"seconds": seconds / subject.parts, "cpu_seconds": cpu_seconds / subject.parts}

    def work(self) -> dict[str, Any]:
        """The least work of a step's part."""
        work = self.subject.work()
        return {"operations": work and work.operations, "bytes": work and work.bytes}

    def roofline(self, device: str) -> dict[str, Any]:
        """What the card is, and reaches."""
        from benchmarks.roofline import measure

        return measure(device)

    def unload(self) -> dict[str, Any]:
        """Drop the subject, compiled graphs and free memory; fails where an error left the device unusable."""
        import torch

        self.subject = None
        torch._dynamo.reset()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        return {}


OPERATIONS = ("load", "save", "check", "memory", "calls", "time", "device_time", "work", "roofline", "unload")


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
    operations = {name: getattr(session, name) for name in OPERATIONS}
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
