"""Cuts a long text into a model's inputs. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import RecipeError

# mode -> the sizes that it uses
USES = {"full": ("piece",), "chunk": ("window",), "sliding": ("window", "stride")}


@dataclass(frozen=True)
class Reading:
    """How a long text is cut into the model's inputs.

    Args:
        mode: `"full"`: every token is predicted from all before it, by a cache that is carried from piece to piece;
            `"chunk"`: from those before it in its window, which starts without context;
            `"sliding"`: from those before it in a window that moves by `stride`; only the new tokens are scored, after
            at least `window - stride` tokens of context.
        window: Tokens per window.
        stride: Tokens by which a window moves. Default: half a window.
        piece: Tokens per forward pass of mode full. It changes only time and memory.

    Raises:
        RecipeError: for an unknown mode, sizes below 1, and a stride above the window.
    """

    mode: str = "full"
    window: int = 512
    stride: int | None = None
    piece: int = 1024

    def __post_init__(self) -> None:
        if self.mode not in USES:
            raise RecipeError(f"mode={self.mode!r} is unknown; the known modes are {', '.join(USES)}")
        for name in ("window", "stride", "piece"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"{name}={value} must be at least 1")
        if self.stride is not None and self.stride > self.window:
            raise RecipeError(
                f"stride={self.stride} is above window={self.window}, which would skip tokens between windows; lower "
                f"stride to at most {self.window}"
            )

    @property
    def step(self) -> int:
        """The distance in tokens between the starts of two forward passes."""
        if self.mode == "full":
            return self.piece
        return self.window if self.mode == "chunk" else self.stride or max(self.window // 2, 1)

    def used(self) -> dict[str, Any]:
        """The mode and the sizes that it uses, as a mapping."""
        sizes = {"piece": self.piece, "window": self.window, "stride": self.step}
        return {"mode": self.mode, **{name: sizes[name] for name in USES[self.mode]}}

    def spans(self, length: int) -> Iterator[tuple[int, int, int]]:
        """Forward passes over inputs 0 to length - 1: first input, first input that predicts a new token, end.

        Args:
            length: Number of inputs.
        """
        size = self.piece if self.mode == "full" else self.window
        begin = done = 0
        while done < length:
            end = min(begin + size, length)
            yield begin, done, end
            begin, done = begin + self.step, end
