"""Peak memory of the current process above its level just before a piece of work."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Callable

CACHE_METHOD = "tensors of the cache"
"""How memory was measured that is not the process's."""

_STATUS = "/proc/self/status"
_CLEAR_REFS = "/proc/self/clear_refs"


def measure(work: Callable[[], None], device: str = "cpu") -> tuple[int, str]:
    """Bytes by which `work` raises the memory in use at its highest point, and how they were measured.

    On a GPU that is what PyTorch's allocator has given out. On a CPU it is the process's resident memory.

    On Linux the kernel's high-water mark is reset (5 written to clear_refs) and read back as VmHWM, less VmRSS before.
    Elsewhere it is `ru_maxrss`, which cannot be reset: right in a process that has not yet held more than its model.
    """
    gc.collect()
    if device != "cpu":
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before, "max_memory_allocated"
    _return_free_memory()
    if os.access(_CLEAR_REFS, os.W_OK):
        with open(_CLEAR_REFS, "w") as file:
            file.write("5")
        before = _status("VmRSS")
        work()
        return max(0, _status("VmHWM") - before), "VmHWM"
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit, "ru_maxrss"


def _return_free_memory() -> None:
    """Have glibc hand freed pages back, or what an earlier step left cached would count as loaded model."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _status(name: str) -> int:
    with open(_STATUS) as file:
        for line in file:
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    raise RuntimeError(f"{_STATUS} has no {name}.")
