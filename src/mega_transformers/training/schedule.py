"""The course of the learning rate, by steps or by the clock, and stopping in good order."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState


class Clock(TrainerCallback, ExportableState):
    """Seconds of training, interrupted ones put together, and the end of training when they are used up.

    The seconds are kept in the checkpoints.

    Args:
        elapsed: Seconds trained before this run.
        limit: Seconds after which training has ended; None for no limit.
        time_source: A clock, in seconds.
    """

    def __init__(
        self, elapsed: float = 0.0, limit: float | None = None, time_source: Callable[[], float] = time.monotonic
    ) -> None:
        self.before = elapsed
        self.limit = limit
        self.time_source = time_source
        self.started: float | None = None

    @property
    def elapsed(self) -> float:
        """Seconds trained so far."""
        return self.before + (0.0 if self.started is None else self.time_source() - self.started)

    @property
    def fraction(self) -> float:
        """Used part of the limit, 0 without one."""
        return 0.0 if self.limit is None else self.elapsed / self.limit

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {}, "attributes": {"elapsed": self.elapsed}}

    @staticmethod
    def elapsed_in(trainer_state: dict[str, Any]) -> float:
        """The seconds kept in a checkpoint's trainer_state.json."""
        return float(
            trainer_state.get("stateful_callbacks", {}).get("Clock", {}).get("attributes", {}).get("elapsed", 0)
        )

    def on_train_begin(self, args, state, control, **kwargs):
        self.started = self.time_source()

    def on_train_end(self, args, state, control, **kwargs):
        self.before, self.started = self.elapsed, None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.fraction >= 1:
            control.should_log = control.should_evaluate = control.should_save = True
            control.should_training_stop = True


class EpochOfData(TrainerCallback):
    """Tells the data set its epoch, which accelerate's loader of the rest of an epoch does not."""

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        kwargs["train_dataloader"].dataset.set_epoch(int((state.epoch or 0.0) + 1e-9))


class Interruption(TrainerCallback):
    """A checkpoint and an orderly end at SIGINT (Ctrl-C) and SIGTERM; a second signal ends at once.

    A context manager: signals are caught inside it.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._caught)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _caught(self, number: int, frame: Any) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        self.say(f"{signal.Signals(number).name}: saving a checkpoint after this step (again to stop at once)")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.signal is not None:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False


def learning_rate_factor(step: int, progress: float, warmup_steps: int, shape: str) -> float:
    """The learning rate as a part of its peak: a linear rise over `warmup_steps`, under a fall to 0 at progress 1.

    Args:
        step: Steps done.
        progress: Done part of the training: of its steps or of its time, whichever is more.
        warmup_steps: Length of the rise.
        shape: `"cosine"` or `"linear"`.
    """
    progress = min(max(progress, 0.0), 1.0)
    fall = 0.5 * (1 + math.cos(math.pi * progress)) if shape == "cosine" else 1 - progress
    return min((step + 1) / (warmup_steps + 1), 1.0) * fall


def last_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest complete checkpoint of a folder and its trainer state; None if there is none.

    transformers writes the trainer state last: a checkpoint without it was cut short.
    """
    import json

    numbered = [
        (int(path.name.split("-")[1]), path)
        for path in folder.glob("checkpoint-*")
        if path.name.split("-")[1].isdigit()
    ]
    for _, path in sorted(numbered, reverse=True):
        try:
            return path, json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
    return None
