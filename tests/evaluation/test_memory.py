"""The most memory in use, begun anew."""

from __future__ import annotations

import sys

import pytest
import torch

from mega_transformers.evaluation.memory import CLEAR_REFS, peak_memory, reset_peak_memory

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a peak")
def test_a_peak_is_forgotten() -> None:
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        pytest.skip("/proc cannot be written to")
    before = reset_peak_memory(CPU)
    block = torch.ones(32 * 2**20)  # 128 MiB
    del block
    assert peak_memory(CPU) - before > 100 * 2**20
    assert reset_peak_memory(CPU) - before < 64 * 2**20
