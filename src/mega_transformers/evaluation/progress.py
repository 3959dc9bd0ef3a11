"""A progress bar for work that may take long."""

from __future__ import annotations

import threading

SECONDS_WITHOUT_BAR = 2


class LateBar:
    """A progress bar on stderr, if that is a terminal; it appears only if the work takes long.

    Args:
        description: The label: "Embedding".
        total: Units of work, such as tokens.
    """

    def __init__(self, description: str, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self.progress = Progress(*columns, console=console, transient=True)
        self.task = self.progress.add_task(description, total=total)
        # not in `advance`, since a single step may take long
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
        """Reports that `amount` more units are done."""
        self.progress.advance(self.task, units)
