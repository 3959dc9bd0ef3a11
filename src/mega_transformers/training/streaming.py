"""Cross entropy of texts of any length under a causal language model, read piece by piece."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .baselines import Score
from .schema import RecipeError

MODES = ("full", "chunk", "sliding")
SECONDS_WITHOUT_BAR = 2


@dataclass(frozen=True)
class Reading:
    """How a long text is cut into the model's inputs.

    Args:
        mode: `"full"`: every token is predicted from all before it, by a cache that is carried from piece to piece;
            `"chunk"`: from those before it in its window, at whose start the model knows nothing;
            `"sliding"`: from those before it in a window that moves on by `stride`, of which the model scores the new
            tokens only, having read at least `window - stride` before them.
        window: Tokens per window.
        stride: Tokens by which a window moves on; half a window for None.
        piece: Tokens per forward pass of mode full. They only change time and memory.

    Raises:
        RecipeError: for an unknown mode, sizes below 1, and a stride above the window.
    """

    mode: str = "full"
    window: int = 512
    stride: int | None = None
    piece: int = 1024

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise RecipeError(f"mode={self.mode!r} is unknown; known are {', '.join(MODES)}")
        for name in ("window", "stride", "piece"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"{name}={value} must be at least 1")
        if self.stride is not None and self.stride > self.window:
            raise RecipeError(
                f"stride={self.stride} is above window={self.window}, so that tokens between two windows would be left "
                "out; lower the stride to at most the window"
            )

    def spans(self, length: int) -> Iterator[tuple[int, int, int]]:
        """Forward passes over inputs 0 to length - 1: first input, first one that predicts a new token, end."""
        if self.mode == "sliding":
            size, step = self.window, self.stride or max(self.window // 2, 1)
        else:
            size = step = self.piece if self.mode == "full" else self.window
        begin = done = 0
        while done < length:
            end = min(begin + size, length)
            yield begin, done, end
            begin, done = begin + step, end


def score_tokens(model: Any, tokens: np.ndarray, reading: Reading, description: str = "Reading") -> Score:
    """The cross entropy of every token but the first, exactly: each is predicted once, from tokens before it.

    Args:
        model: A causal language model of transformers.
        tokens: (tokens,) ids, at least two.
        reading: How they are cut into inputs.
        description: What the progress bar says, which is shown on stderr when this takes longer than two seconds.

    Raises:
        RecipeError: for less than two tokens.
    """
    from transformers import DynamicCache

    length = len(tokens) - 1
    if length < 1:
        raise RecipeError(f"{len(tokens)} tokens leave nothing to predict; give a longer text")
    carried = reading.mode == "full"
    arguments: dict[str, Any] = {"use_cache": carried}
    if carried:
        arguments["past_key_values"] = DynamicCache(config=model.config)
    few_logits = model._supports_logits_to_keep()
    score = Score()
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), _LateBar(description, length) as bar:
            for begin, new, end in reading.spans(length):
                ids = torch.from_numpy(tokens[begin : end + 1].astype(np.int64)).to(model.device)
                if few_logits:
                    arguments["logits_to_keep"] = end - new
                logits = model(input_ids=ids[:-1].unsqueeze(0), **arguments).logits[0, new - end :].float()
                targets = ids[new - end :]
                nats = F.cross_entropy(logits, targets, reduction="sum").item()
                score.add(nats, int((logits.argmax(dim=-1) == targets).sum()), end - new)
                bar.advance(end - new)
    finally:
        model.train(was_training)
    return score


class _LateBar:
    """A progress bar on stderr that only appears when the work takes long."""

    def __init__(self, description: str, total: int) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self.began = time.monotonic()
        self.shown = False
        self.progress = Progress(console=Console(stderr=True), transient=True)
        self.task = self.progress.add_task(description, total=total)

    def __enter__(self) -> _LateBar:
        return self

    def __exit__(self, *error: object) -> None:
        if self.shown:
            self.progress.stop()

    def advance(self, tokens: int) -> None:
        """Tells that so many more tokens are done."""
        self.progress.advance(self.task, tokens)
        if not self.shown and time.monotonic() - self.began > SECONDS_WITHOUT_BAR:
            self.progress.start()
            self.shown = True
