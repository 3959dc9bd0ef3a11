"""What every form of attention is asked in the same way: a back end that can do it, and operands of one dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..activations import ELEMENTWISE


def check_request(activation: str, need_weights: bool, backend: str | None, backends: Sequence[str]) -> None:
    """Raises ValueError for an unknown activation or back end, or one that cannot do what is asked."""
    if activation != "softmax" and activation not in ELEMENTWISE:
        raise ValueError(f"activation={activation!r} is unknown; known are softmax, {', '.join(ELEMENTWISE)}")
    if backend is not None and backend not in backends:
        raise ValueError(f"backend={backend!r} is unknown; known are {', '.join(backends)}")
    if backend in ("sdpa", "flex") and activation != "softmax":
        raise ValueError(f"backend={backend!r} computes softmax only; use 'blockwise' for activation={activation!r}")
    if need_weights and backend not in (None, "reference"):
        raise ValueError(f"backend={backend!r} returns no weights; use backend='reference'")


def in_one_dtype(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All in the dtype of v, or under autocast in that of autocast."""
    device = v.device.type
    if torch.is_autocast_enabled(device):
        v = v.to(torch.get_autocast_dtype(device))
    return q.to(v.dtype), k.to(v.dtype), v
