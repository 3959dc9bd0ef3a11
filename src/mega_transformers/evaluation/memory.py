"""Measures peak memory."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

import torch

CLEAR_REFS = Path("/proc/self/clear_refs")


def peak_memory(device: torch.device) -> int:
    """The peak bytes in use: of tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak_memory(device: torch.device) -> int:
    """Resets `peak_memory` to the bytes in use now, and returns them.

    On a CPU, this needs a Linux with a writable /proc. Elsewhere `peak_memory` covers the whole life of the process.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # glibc: pages left by earlier work would hide the needs of later work
            trim(0)
        with suppress(OSError):
            CLEAR_REFS.write_text("5")
    return peak_memory(device)
