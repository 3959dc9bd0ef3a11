"""The least work of a step: operations and bytes that no implementation can do without; docs/gpu.md defines them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

FORWARD, TRAINING = 2, 5
"""Times that a layer's input or output goes through memory: x and y; with the backward pass also x, dy and dx."""
ADAMW = 10
"""Times that weights go through memory in a training step: read forward and backward, their gradients written and
read, and the optimiser's weights and two moments read and written."""
BACKWARD = 3.5  # operations of attention forward and backward, in those of its forward pass


class Work(NamedTuple):
    """Operations, two for a multiplication and an addition, None if unknown; and bytes read or written."""

    operations: float | None
    bytes: float


def counted(work: Callable[[], object]) -> float:
    """Operations of the matrix products and attention kernels that `work` calls, by PyTorch's counter."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def on_meta(module: nn.Module) -> nn.Module:
    """A copy without values that computes attention by its definition, to count operations at no cost."""
    shadow = copy.deepcopy(module).to("meta")
    config: Any = shadow.config
    if hasattr(config, "_attn_implementation"):
        config._attn_implementation = "eager"
    return shadow


def step_of_model(module: nn.Module, shape: tuple[int, int], train: bool, width: int, layers: int) -> Work:
    """The work of a training step, or of an inference, for ids of a shape."""
    tensors = list(module.parameters())
    size = tensors[0].element_size()
    moved = sum(x.numel() * x.element_size() for x in tensors) * (ADAMW if train else 1)
    moved += shape[0] * shape[1] * width * layers * size * (TRAINING if train else FORWARD)
    shadow = on_meta(module)
    ids = torch.zeros(shape, dtype=torch.int64, device="meta")

    def step() -> None:
        with torch.set_grad_enabled(train):
            output = shadow(input_ids=ids, **({"labels": ids} if train else {}))
            if train:
                output.loss.backward()

    try:
        return Work(counted(step), moved)
    except Exception:  # kernels of a library that know nothing of devices without values
        return Work(None, moved)


def weights_read(module: nn.Module) -> int:
    """Bytes of weights that every step reads: all but tables of embeddings, of which it reads a row a token."""
    tables = {id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Embedding)}
    tables -= {id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Linear)}
    return sum(x.numel() * x.element_size() for x in module.parameters() if id(x) not in tables)


def op(task: str, rows: int, length: int, width: int, shared: int, hidden: int, size: int) -> Work | None:
    """The work of an EMA of `width` channels, or of full attention; None for other calls.

    Of an EMA the bytes of its inputs and outputs, of attention the operations of its products with n x n matrices.
    """
    passes = FORWARD if task.endswith("-forward") else TRAINING
    if task.startswith("ema-"):
        return Work(None, float(passes * rows * length * width * size))
    if task.startswith("attention-"):
        times = 1.0 if passes == FORWARD else BACKWARD
        moved = passes / FORWARD * rows * length * 2 * (shared + hidden) * size
        return Work(times * 2 * rows * length**2 * (shared + hidden), moved)
    return None
