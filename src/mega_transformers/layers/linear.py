"""Applying linear layers."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules import module as module_globals

from ..ops.few_rows import are_few_rows, linear_few_rows

_FORWARD = nn.Linear.forward


def is_unhooked(module: nn.Module) -> bool:
    """Whether calling a module only runs its forward: neither the module nor PyTorch globally has hooks."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module_globals._has_any_global_hook()
        or "forward" in module.__dict__
    )


def is_plain(module: nn.Module) -> bool:
    """Whether calling a module only multiplies by a plain float matrix and adds a bias.

    No hooks, no forward replaced, no quantised or parametrised weight, no subclass.
    """
    return (
        type(module) is nn.Linear
        and type(module.weight) is nn.Parameter
        and type(module.weight.data) is torch.Tensor
        and nn.Linear.forward is _FORWARD
        and is_unhooked(module)
    )


def linear(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`module(x)` for a linear layer or its replacement; a plain layer uses a faster operator for few rows."""
    if are_few_rows(x) and is_plain(module):
        return linear_few_rows(x, module.weight, module.bias)  # type: ignore[arg-type]
    # the EMA's output is stored by channels; bitsandbytes' 4-bit kernel assumes the usual order
    return module(x if type(module) is nn.Linear else x.contiguous())
