"""Computing outside of autocast."""

from __future__ import annotations

import contextlib

import torch


def autocast_dtype(device: str) -> torch.dtype | None:
    """The autocast dtype of a device type; None if autocast is off or not available."""
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def no_autocast(device: str) -> contextlib.AbstractContextManager:
    """Switches autocast off for a type of device; free if it is off already, which matters in a decoding step."""
    return contextlib.nullcontext() if autocast_dtype(device) is None else torch.autocast(device, enabled=False)
