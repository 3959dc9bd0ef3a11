"""Several processes: which one prepares first, and how all end after an error."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import disable_progress_bars
from torch import nn
from torch.distributed.nn.functional import all_reduce
from transformers.utils import logging

from ..errors import RecipeError

T = TypeVar("T")


def meet(training: dict[str, Any]) -> int:
    """Connects the processes of torchrun or accelerate, as transformers would do later.

    The recipe's `use_cpu`, `ddp_backend` and `ddp_timeout` decide how. Returns the number of this process; only the
    first shows progress.
    """
    options: dict[str, Any] = {}
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        options["backend"] = training.get("ddp_backend")
        options["timeout"] = timedelta(seconds=float(training.get("ddp_timeout", 1800)))
    state = PartialState(cpu=bool(training.get("use_cpu", not torch.accelerator.is_available())), **options)
    if state.process_index:
        disable_progress_bars()
        logging.disable_progress_bar()
        logging.set_verbosity_error()
    return state.process_index


def in_turn(make: Callable[[], T]) -> T:
    """The result of `make`: called in the first process, then in the first of every other machine, then in the rest.

    So the others find the caches and folders of the first. An error in one process ends them all.
    """
    state = PartialState()
    mine = 0 if state.is_main_process else 1 if state.is_local_main_process else 2
    for turn in range(3 if state.num_processes > 1 else 1):
        errors: list[Exception] = []
        if turn == mine:
            try:
                made = make()
            except (RecipeError, OSError) as caught:
                errors = [caught]
        if errors := gather_object(errors):
            raise errors[0] if state.is_main_process else RecipeError(str(errors[0]))
    return made


class BatchNormOfAll(nn.BatchNorm1d):
    """A batch norm over all processes on a CPU, which PyTorch's `SyncBatchNorm` does not support."""

    running_mean: Any
    running_var: Any
    num_batches_tracked: Any

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, d) -> (N, d); N may differ between processes."""
        if not self.training:
            return super().forward(x)
        wide = x.float()
        count = all_reduce(torch.tensor(float(len(x))))
        mean = all_reduce(wide.sum(dim=0)) / count
        variance = all_reduce((wide - mean).square().sum(dim=0)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        normed = ((wide - mean) * (variance + self.eps).rsqrt()).to(x.dtype)
        return torch.addcmul(self.bias, normed, self.weight) if self.affine else normed


def synchronised(model: nn.Module, device: torch.device) -> nn.Module:
    """Makes the batch norms of a model use statistics over the rows of all processes."""
    if device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.SyncBatchNorm)):
            module.__class__ = BatchNormOfAll
    return model
