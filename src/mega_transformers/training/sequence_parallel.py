"""Sequence parallelism under transformers' Trainer: rows are cut over groups of processes, beside DDP or FSDP2.

Processes form a mesh (data, sequence). Those of a group have the same rows and compute a piece each; gradients are
averaged over all processes, by DDP or FSDP2 as ever, which gives those of whole rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import ParallelismConfig
from accelerate.utils import recursively_apply
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from transformers import Trainer

from ..parallel import aligned_labels, cut_sequence, gather_sequence, parallelize_sequence

# names that accelerate knows: its dataloaders give processes of one "cp" group the same batches, and FSDP2 divides
# weights over both dimensions as one
DATA, SEQUENCE, BOTH = "dp_shard", "cp", "dp_shard_cp"


class SequenceParallelism(ParallelismConfig):
    """Groups of `size` processes that share their rows; for `TrainingArguments(parallelism_config=...)`.

    accelerate's own context parallelism, which would cut attention, stays off: the sizes that it sees are 1. So counts
    of labels are those of all processes, each group's `size` times, which `parallelize_sequence` expects.

    Raises:
        ValueError: for a size below 2; when the processes meet, for a number of them that it does not divide.
    """

    def __init__(self, size: int) -> None:
        if size < 2:
            raise ValueError(f"SequenceParallelism({size}): a row is cut over at least 2 processes")
        super().__init__(dp_replicate_size=1, dp_shard_size=1, tp_size=1, cp_size=1, sp_size=1)
        self.size = size

    def build_device_mesh(self, device_type: str) -> DeviceMesh:
        """Neighbours share a row: those of a machine, where it has `size` processes."""
        processes = dist.get_world_size() if dist.is_initialized() else 1
        check_divides(self.size, processes)
        mesh = init_device_mesh(device_type, (processes // self.size, self.size), mesh_dim_names=(DATA, SEQUENCE))
        mesh[DATA, SEQUENCE]._flatten(BOTH)
        return mesh

    def _validate_accelerator(self, accelerator: Any) -> None:
        """Leaves out accelerate's checks, of sizes that do not tell, and of CPUs."""

    def __getstate__(self) -> dict[str, Any]:
        """Without the mesh: checkpoints hold the arguments of their training."""
        return {name: value for name, value in vars(self).items() if name != "device_mesh"}


def check_divides(size: int, processes: int) -> None:
    """Raises a ValueError for processes that cannot be divided into groups of `size`."""
    if processes % size:
        raise ValueError(
            f"{processes} {'process' if processes == 1 else 'processes'} cannot be divided into groups of {size}; "
            f"start a multiple of {size}, as torchrun --nproc-per-node {size} does, on a CPU with use_cpu=True"
        )


def check_arguments(args: Any) -> None:
    """Refuses `TrainingArguments` under which rows cannot be cut as they say, with a ValueError."""
    if (size := sequence_size(args)) == 1:
        return
    check_divides(size, args.world_size)
    if args.label_smoothing_factor:
        raise ValueError(
            f"label_smoothing_factor={args.label_smoothing_factor}: the Trainer would smooth labels of whole rows at "
            "logits of a piece; set it to 0"
        )
    if args.torch_compile:
        raise ValueError("torch_compile=True: a compiled model does not exchange states; leave it out")


def sequence_size(args: Any) -> int:
    """The processes that share a row."""
    config = getattr(args, "parallelism_config", None)
    return config.size if isinstance(config, SequenceParallelism) else 1


class SequenceParallelTrainer(Trainer):
    """transformers' Trainer that cuts rows over processes where `args.parallelism_config` is a `SequenceParallelism`.

    Losses, norms of gradients and learning rates are those of one process with the same rows, in evaluations too.
    Checkpoints are those of the Trainer, and continue with any other division of rows and processes.

    Args:
        model, args, kwargs: As of the Trainer; the model as `parallelize_sequence` takes it.
        piece_sums: For evaluations of rows too long to have all their logits in one place: makes sums for each row,
            (B, ...), of the logits (B, piece, V) and labels (B, piece), shifted where the model does, of a piece. They
            are added up over the pieces and take the place of logits. None: logits of whole rows, as without cuts.

    Raises:
        ValueError: for a model or rows that cannot be cut.
    """

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        *,
        piece_sums: Callable[[Any, torch.Tensor], torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        self._size = sequence_size(args)
        if self._size > 1:
            check_arguments(args)
            for name in ("model_init", "compute_loss_func"):
                if kwargs.get(name) is not None:
                    raise ValueError(f"{name} cannot be used under sequence parallelism; leave it out")
            # one process would hand every process rows of its own
            args.accelerator_config.dispatch_batches = False
        super().__init__(model, args, **kwargs)
        if self._size > 1:
            mesh: Any = self.accelerator.torch_device_mesh
            self._data, self._sequence = mesh[DATA], mesh[SEQUENCE]
            parallelize_sequence(cast(Any, self.model), self._sequence)
            self._piece_sums = piece_sums

    def get_batch_samples(self, epoch_iterator: Iterator[Any], *args: Any, **kwargs: Any) -> Any:
        """As the Trainer; processes of a group get the batches of its first."""
        if self._size > 1:
            epoch_iterator = map(self._shared, epoch_iterator)
        return super().get_batch_samples(epoch_iterator, *args, **kwargs)

    def _shared(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch of the group's first process: collators may draw masks in every process anew."""
        shared = dict(self._prepare_inputs(batch))
        for name, value in shared.items():
            if torch.is_tensor(value):
                shared[name] = value.contiguous()
                dist.broadcast(shared[name], group=self._sequence.get_group(), group_src=0)
        return shared

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Any, Any, Any]:
        """As the Trainer: the loss and, where they are asked for, the logits of whole rows, or their `piece_sums`."""
        if self._size == 1:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs, group, own_model = self._shared(inputs), self._sequence.get_group(), cast(Any, self.model)
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if loss is not None:
            dist.all_reduce(loss, group=group)
            loss = loss / self._size
        if logits is not None and self._piece_sums is not None:
            aligned = aligned_labels(own_model, cast(torch.Tensor, labels))
            logits = self._piece_sums(logits, cut_sequence(aligned, group, own_model.config.chunk_size, -100))
            dist.all_reduce(logits, group=group)
        elif logits is not None:
            length = next(value for value in inputs.values() if torch.is_tensor(value)).shape[1]
            logits = recursively_apply(lambda piece: gather_sequence(piece, group, length), logits)
        return loss, logits, labels

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer; every row counts once."""
        if self._size > 1:
            self.gather_function = self._gather_rows  # the Trainer's own again after each evaluation
        return super().evaluation_loop(*args, **kwargs)

    def _gather_rows(self, rows: Any) -> Any:
        """As `Accelerator.gather_for_metrics`, of rows that every process of a group has."""
        state = self.accelerator.gradient_state
        count = state.remainder if state.end_of_dataloader and state.remainder > 0 else None

        def gathered(x: torch.Tensor) -> torch.Tensor:
            every = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self._data.size())]
            dist.all_gather(every, x.contiguous(), group=self._data.get_group())
            return torch.cat(every)[:count]

        return recursively_apply(gathered, rows)

    # what the Trainer counts in every process

    def get_total_train_batch_size(self, args: Any) -> int:
        """Rows of a step."""
        return super().get_total_train_batch_size(args) // self._size

    def floating_point_ops(self, inputs: Any) -> int:
        """Of this process's piece."""
        return super().floating_point_ops(inputs) // self._size

    def _track_num_input_tokens(self, inputs: Any) -> None:
        before = self.state.num_input_tokens_seen
        super()._track_num_input_tokens(inputs)
        self.state.num_input_tokens_seen = before + (self.state.num_input_tokens_seen - before) // self._size
