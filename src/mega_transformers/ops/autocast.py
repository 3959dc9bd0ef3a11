"""Computing outside of autocast."""

from __future__ import annotations

import contextlib

import torch


def no_autocast(device: str) -> contextlib.AbstractContextManager:
    """Switches autocast off for a type of device; free where it is off, which matters in a decoding step."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else contextlib.nullcontext()
