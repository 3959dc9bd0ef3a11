"""A progress bar for work that may take long, and the memory it took."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SECONDS_WITHOUT_BAR = 2


class LateBar:
    """A progress bar on stderr, if that is a terminal, which only appears when the work takes long.

    Args:
        description: What is done: "Embedding".
        total: Units of work, such as tokens.
    """

    def __init__(self, description: str, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self.progress = Progress(*columns, console=console, transient=True)
        self.task = self.progress.add_task(description, total=total)
        # not by `advance`: a single step may be what takes long
        self.timer = threading.Timer(SECONDS_WITHOUT_BAR, self.progress.start) if console.is_terminal else None

    def __enter__(self) -> LateBar:
        if self.timer is not None:
            self.timer.daemon = True
            self.timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.timer is None:
            return
        self.timer.cancel()
        self.timer.join()
        if self.progress.live.is_started:
            self.progress.stop()

    def advance(self, units: int) -> None:
        """Tells that so much more is done."""
        self.progress.advance(self.task, units)


def peak_memory(device: torch.device) -> int:
    """The most bytes that were in use: on a GPU by its tensors, on a CPU by the whole process."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
