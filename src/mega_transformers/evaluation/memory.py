"""The most memory that was in use."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

import torch

CLEAR_REFS = Path("/proc/self/clear_refs")


def peak_memory(device: torch.device) -> int:
    """The most bytes that were in use: on a GPU by its tensors, on a CPU by the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak_memory(device: torch.device) -> int:
    """Makes `peak_memory` begin anew with what is in use now, which it returns.

    On a CPU this takes a Linux whose /proc can be written to. Elsewhere `peak_memory` remains that of the process's
    whole life.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # glibc: pages that earlier work left would hide what later work needs
            trim(0)
        with suppress(OSError):
            CLEAR_REFS.write_text("5")
    return peak_memory(device)
