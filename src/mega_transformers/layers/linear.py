"""Applying linear layers."""

from __future__ import annotations

import torch
from torch import nn

from ..ops.few_rows import are_few_rows, linear_few_rows


def is_plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a module is a linear layer (or of `kinds`) and nothing else, so that its parts may be used directly."""
    return type(module) in (nn.Linear, *kinds) and not (
        module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook")
    )


def project(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`module(x)` for a linear layer or what took its place (adapters, quantisation); faster in decoding steps."""
    if are_few_rows(x) and is_plain(module):
        return linear_few_rows(x, module.weight, module.bias)  # type: ignore[arg-type]
    return module(x)
