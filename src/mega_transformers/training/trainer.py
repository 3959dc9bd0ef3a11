"""transformers' trainers with what recipes add: decayed weights, reproducible order, stopping in good order."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from transformers import EarlyStoppingCallback, Seq2SeqTrainer, Trainer, TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState
from transformers.trainer_pt_utils import get_length_grouped_indices

from ..errors import RecipeError
from .sequence_parallel import SequenceParallelTrainer, sequence_size

# parameters that weight decay would pull towards values without a meaning: scales, offsets, EMA coefficients
NO_DECAY = ("ema_gate.", "qk_weight", "qk_bias", "rel_pos_bias.")


class Epoch(TrainerCallback):
    """The number of the epoch, for what draws anew in every one."""

    number = 0

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.number = int((state.epoch or 0.0) + 1e-9)


class TrainingOrder(Sampler[int]):
    """The order of an epoch: it depends on the seed and the epoch alone, and its last batch is full.

    The rows that the last batch lacks are those that the epoch began with. accelerate does so where there are several
    processes; done in any case, every step has the same rows on any number of them.

    Args:
        rows, lengths: Their number, and how long each is, for batches of similar ones; None for any.
        batch_size: Rows of a step, as `rows_of_a_step`.
        seed, epoch: The recipe's, and of the training.
    """

    def __init__(self, rows: int, batch_size: int, seed: int, epoch: Epoch, lengths: list[int] | None = None) -> None:
        self.rows, self.batch_size, self.seed, self.epoch, self.lengths = rows, batch_size, seed, epoch, lengths

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size) * self.batch_size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch.number)
        if self.lengths is None:
            order = torch.randperm(self.rows, generator=generator).tolist()
        else:
            order = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        return islice(cycle(order), len(self))


class RecipeTrainerMixin(Trainer if TYPE_CHECKING else object):  # type: ignore[misc]
    """What every task's trainer has beside transformers' own: an `epoch`, which collators may know too, and perhaps an
    `evaluation_collator`, which makes batches in evaluations.
    """

    data_collator: Any

    def __init__(self, *args: Any, epoch: Epoch, evaluation_collator: Any = None, **kwargs: Any) -> None:
        self.use_cache = vars(getattr(kwargs["model"], "config", self)).get("use_cache")
        super().__init__(*args, **kwargs)
        self.own_epoch = epoch
        self.evaluation_collator = evaluation_collator
        # checkpoints hold a tied weight once; the trainer is not to miss the others
        if tied := getattr(self.model, "all_tied_weights_keys", None):
            self.model._keys_to_ignore_on_save = list(tied)

    def restore_cache(self) -> None:
        """Lets the model generate with its cache again, which transformers turns off to train."""
        if hasattr(self.model, "config"):
            vars(self.model.config).pop("use_cache", None)
            if self.use_cache is not None:  # configurations of two sides have none
                self.model.config.use_cache = self.use_cache

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        return decayed_parameters(model)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        training, self.data_collator = self.data_collator, self.evaluation_collator or self.data_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training

    get_test_dataloader = get_eval_dataloader

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows: Any = self.train_dataset  # what is given may lack the lengths by now
        args = self.args
        if args.train_sampling_strategy not in ("random", "group_by_length") or not hasattr(rows, "num_rows"):
            return super()._get_train_sampler(train_dataset)
        grouped = args.train_sampling_strategy == "group_by_length" and "length" in rows.column_names
        lengths = list(rows["length"]) if grouped else None
        return TrainingOrder(len(rows), rows_of_a_step(args), args.seed, self.own_epoch, lengths)

    def _get_eval_sampler(self, eval_dataset: Any) -> SequentialSampler:
        # transformers would sort by length here too, but outputs are compared in the rows' order
        return SequentialSampler(eval_dataset)

    def restore_finished(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is a training's last; if so, the model becomes what that ended with.

        transformers would train another step, and count evaluations without progress anew.
        """
        state, args = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")), self.args
        longer = args.max_steps <= 0 and args.num_train_epochs > state.num_train_epochs
        end = args.max_steps if args.max_steps > 0 else math.inf if longer else state.max_steps
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ExportableState):
                kept = state.stateful_callbacks.get(type(callback).__name__, {})
                vars(callback).update(kept.get("attributes", {}))
            if isinstance(callback, EarlyStoppingCallback) and (
                callback.early_stopping_patience_counter >= callback.early_stopping_patience
            ):
                end = state.global_step
        if state.global_step < end:
            return False
        self.state = state
        if self.is_fsdp_enabled:  # no shards without an optimizer
            self.model_wrapped, _ = self.accelerator.prepare(self.model, self.create_optimizer())
        self._load_from_checkpoint(str(checkpoint))
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._load_best_model()
        return True


class RecipeTrainer(RecipeTrainerMixin, Trainer):
    """transformers' Trainer with what recipes add."""


class RecipeSequenceParallelTrainer(RecipeTrainerMixin, SequenceParallelTrainer):
    """A trainer that cuts rows over processes, with what recipes add."""


class RecipeSeq2SeqTrainer(RecipeTrainerMixin, Seq2SeqTrainer):
    """transformers' Seq2SeqTrainer with what recipes add. Evaluations give the plain cross entropy of a label.

    transformers would smooth it, and take the mean of batches for it.
    """

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        smoother, self.label_smoother = self.label_smoother, self._plain_loss  # type: ignore[assignment]
        self._sums = torch.zeros(2)
        try:
            output: Any = super().evaluation_loop(*args, **kwargs)
        finally:
            self.label_smoother = smoother
        losses = [key for key in output.metrics if key.endswith("_loss")]
        output.metrics.update(dict.fromkeys(losses, (self._sums[0] / self._sums[1]).item()))
        return output

    def _plain_loss(self, outputs: Any, labels: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        nats = F.cross_entropy(outputs["logits"].transpose(1, 2).float(), labels, reduction="none")
        rows = torch.stack([nats.sum(dim=1), (labels != -100).sum(dim=1)], dim=1)
        self._sums = self._sums + self.accelerator.gather_for_metrics(rows).cpu().double().sum(dim=0)
        return nats.sum() / rows[:, 1].sum()


def rows_of_a_step(args: Any) -> int:
    """Of all processes, and of accumulated batches."""
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size // sequence_size(args)


def decayed_parameters(model: torch.nn.Module) -> list[str]:
    """Names of the parameters that weight decay applies to."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() >= 2 and not any(pattern in name for pattern in NO_DECAY)
    ]


class Stop(TrainerCallback):
    """A checkpoint and an orderly end of all processes at SIGINT (Ctrl-C), SIGTERM or after some time.

    A context manager: signals are caught inside it, and told with `say`. A second one ends at once. Any process may be
    told to stop; after the same step all of them do.
    """

    def __init__(self, say: Callable[[str], None], seconds: float | None = None) -> None:
        self.say = say
        self.end = math.inf if seconds is None else time.monotonic() + seconds
        self.stopped = False
        self._caught_at: float | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._caught)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _caught(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if self._caught_at is None:
            self._caught_at = now
            self.say(f"{signal.Signals(number).name}: saving a checkpoint after this step (again to stop at once)")
        # torchrun sends to its processes once more what Ctrl-C has sent them
        elif "LOCAL_RANK" not in os.environ or now >= self._caught_at + 5:
            raise KeyboardInterrupt

    def on_step_end(self, args, state, control, **kwargs):
        wanted = self._caught_at is not None or time.monotonic() >= self.end
        if args.world_size > 1:
            flag = torch.tensor(float(wanted), device=args.device)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
            wanted = bool(flag)
        if wanted and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True
            control.should_evaluate = False


class StepTimes(TrainerCallback, ExportableState):
    """Seconds of steps, data and optimiser included, evaluations left out: by the clock, and of the processor.

    Other work on the machine changes the former, not the latter. To wait for a GPU after every step (`synchronize`) is
    slower, and exact for single steps. Checkpoints keep the totals, so that a continued run counts all its steps.
    """

    def __init__(self, synchronize: bool = False) -> None:
        self.synchronize = synchronize
        self.seconds: list[float] = []
        self.steps, self.total, self.processor_total = 0, 0.0, 0.0

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        totals = {name: getattr(self, name) for name in ("steps", "total", "processor_total")}
        return {"args": {"synchronize": self.synchronize}, "attributes": totals}

    def on_train_begin(self, args, state, control, **kwargs):
        # transformers writes only what is there, and a checkpoint of an older version may lack it
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        self._restart()

    def _restart(self, *args: Any, **kwargs: Any) -> None:
        self._wall, self._processor = time.perf_counter(), time.process_time()

    on_evaluate = on_save = _restart

    def on_step_end(self, args, state, control, **kwargs):
        if self.synchronize and args.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self._wall)
        self.steps += 1
        self.total += self.seconds[-1]
        self.processor_total += time.process_time() - self._processor
        self._restart()


class OnlyFinite(TrainerCallback):
    """Ends a training whose loss is no longer finite, before a checkpoint of it is written."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_log |= control.should_save

    def on_log(self, args, state, control, **kwargs):
        logs = kwargs["logs"]
        loss, norm = logs.get("loss", 0.0), 0.0 if args.fp16 else logs.get("grad_norm", 0.0)
        if math.isfinite(loss) and math.isfinite(norm):
            return
        kept = last_checkpoint(Path(args.output_dir))
        where = f"the last good checkpoint is {kept}" if kept else "there is no checkpoint yet"
        raise RecipeError(
            f"the loss became {loss} (norm of the gradients {norm}) before step {state.global_step}; {where}. Lower "
            "training.learning_rate, or give it more training.warmup_steps; float16 needs training.fp16, not a model "
            "in float16"
        )


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a folder; None if there is none.

    transformers writes the trainer state last: a checkpoint without it was cut short.
    """
    for path in sorted(folder.glob("checkpoint-*[0-9]"), key=lambda path: (len(path.name), path.name), reverse=True):
        with suppress(OSError, ValueError):
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            return path
    return None
