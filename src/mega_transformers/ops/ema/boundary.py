"""What a piece of a sequence leaves in the EMA's states, and what the states that enter it add to its outputs.

The recurrence is linear, so a sequence can be cut into pieces that are computed on their own, in any order or on
several machines. Each leaves states, from which those that enter every piece follow, from the past and the future.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .chunked import block_size
from .reference import EMACoefficients


def ema_boundary(
    x: torch.Tensor, coefficients: EMACoefficients, *, bidirectional: bool = False, reset: torch.Tensor | None = None
) -> torch.Tensor:
    """The states that a piece leaves when none enter it.

    Args:
        x: (B, L, d) inputs, zero at padding.
        coefficients: (D', N) each, with D' = d, or 2d if bidirectional.
        bidirectional: Whether there is a backward direction.
        reset: (B, L) bool, True at the first token of every packed document.

    Returns:
        (B, D', N): of the forward direction the states after the last token, of the backward direction those before
        the first one, which are 0 where a document starts there.
    """
    x = x.to(coefficients.input.dtype)
    channels, forward = x.shape[-1], x
    if reset is not None:
        forward = x * (_starts_after(reset) == 0).unsqueeze(-1)
    states = _left_by(forward.flip(1), EMACoefficients(*(c[:channels] for c in coefficients)))
    if not bidirectional:
        return states
    backward = x if reset is None else x * (reset.cumsum(1) == 0).unsqueeze(-1)
    return torch.cat([states, _left_by(backward, EMACoefficients(*(c[channels:] for c in coefficients)))], dim=1)


def ema_continuation(
    states: torch.Tensor,
    coefficients: EMACoefficients,
    length: int,
    *,
    bidirectional: bool = False,
    reset: torch.Tensor | None = None,
) -> torch.Tensor:
    """What the states that enter a piece of `length` tokens add to its outputs: (B, length, d).

    Args:
        states: (B, D', N): of the forward direction those before the first token, of the backward direction those
            after the last one.
        coefficients, bidirectional, reset: As in `ema_boundary`.
    """
    channels = states.shape[1] // (2 if bidirectional else 1)
    y = _fading(states[:, :channels], EMACoefficients(*(c[:channels] for c in coefficients)), length)
    if reset is not None:
        y = y * (reset.cumsum(1) == 0).unsqueeze(-1)
    if not bidirectional:
        return y
    ahead = _fading(states[:, channels:], EMACoefficients(*(c[channels:] for c in coefficients)), length).flip(1)
    return y + (ahead if reset is None else ahead * (_starts_after(reset) == 0).unsqueeze(-1))


def ema_entering(
    left: torch.Tensor,
    log_decay: torch.Tensor,
    lengths: Sequence[int],
    *,
    bidirectional: bool = False,
    passes: torch.Tensor | None = None,
) -> torch.Tensor:
    """The states that enter each of several pieces, which follow each other.

    Args:
        left: (pieces, B, D', N), what `ema_boundary` returns for each.
        log_decay: (D', N), as in `EMACoefficients`.
        lengths: Tokens of each piece.
        bidirectional: As in `ema_boundary`.
        passes: (pieces, B) bool, False where a document starts in the piece, which no state then passes through; None
            where there are no documents.

    Returns:
        (pieces, B, D', N), as `ema_continuation` takes them.
    """
    channels = left.shape[2] // (2 if bidirectional else 1)

    def carried(order: list[int], part: slice) -> list[torch.Tensor]:
        entering = [torch.zeros_like(left[0, :, part])]
        for piece in order[:-1]:
            through = torch.exp(log_decay[part] * lengths[piece]) * entering[-1]
            if passes is not None:
                through = through * passes[piece, :, None, None]
            entering.append(through + left[piece, :, part])
        return entering

    order = list(range(len(lengths)))
    forward = torch.stack(carried(order, slice(channels)))
    if not bidirectional:
        return forward
    backward = torch.stack(carried(order[::-1], slice(channels, None))[::-1])
    return torch.cat([forward, backward], dim=2)


def _starts_after(reset: torch.Tensor) -> torch.Tensor:
    """(B, L) how many documents start behind each token."""
    return reset.flip(1).cumsum(1).flip(1) - reset.int()


def _powers(log_decay: torch.Tensor, exponents: torch.Tensor) -> torch.Tensor:
    return torch.exp(log_decay.unsqueeze(-1) * exponents)


def _left_by(x: torch.Tensor, coefficients: EMACoefficients) -> torch.Tensor:
    """sum_l input * decay^l * x_l over l = i * m + j, in two steps: (B, L, d) -> (B, d, N)."""
    m = min(block_size(x.shape[1]), x.shape[1])
    x = F.pad(x, (0, 0, 0, -x.shape[1] % m))
    blocks = x.shape[1] // m
    fine = coefficients.input.unsqueeze(-1) * _powers(coefficients.log_decay, torch.arange(m, device=x.device))
    coarse = _powers(coefficients.log_decay, m * torch.arange(blocks, device=x.device))
    rows = x.unflatten(1, (blocks, m)).permute(3, 0, 1, 2).flatten(1, 2)  # (d, B blocks, m)
    sums = torch.bmm(rows, fine.transpose(1, 2)).unflatten(1, (-1, blocks))
    return torch.einsum("dbkn,dnk->bdn", sums, coarse)


def _fading(states: torch.Tensor, coefficients: EMACoefficients, length: int) -> torch.Tensor:
    """sum_n output * decay^(l + 1) * state for l = i * m + j: (B, d, N) -> (B, length, d)."""
    m = min(block_size(length), length)
    blocks = -(-length // m)
    coarse = _powers(coefficients.log_decay, m * torch.arange(blocks, device=states.device))
    fine = coefficients.output.unsqueeze(-1) * _powers(
        coefficients.log_decay, torch.arange(1, m + 1, device=states.device)
    )
    entering = (states.unsqueeze(-1) * coarse).permute(1, 0, 3, 2).flatten(1, 2)  # (d, B blocks, N)
    y = torch.bmm(entering, fine).unflatten(1, (-1, blocks))  # (d, B, blocks, m)
    return y.permute(1, 2, 3, 0).flatten(1, 2)[:, :length]
