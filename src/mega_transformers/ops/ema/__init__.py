"""Multi-dimensional damped EMA: one definition, several exact forms, one function that chooses."""

from __future__ import annotations

from typing import Any

import torch

from ..autocast import no_autocast
from ..dispatch import ema_form, runs_triton, wants_triton
from .boundary import ema_boundary, ema_continuation, ema_entering
from .chunked import block_size, ema_chunked
from .direct import ema_direct
from .fft import ema_fft, ema_kernel
from .packed import PackedBlocks, packed_blocks
from .reference import EMACoefficients, ema_coefficients, ema_reference
from .step import ema_step

__all__ = [
    "EMACoefficients",
    "PackedBlocks",
    "block_size",
    "ema",
    "ema_boundary",
    "ema_chunked",
    "ema_coefficients",
    "ema_continuation",
    "ema_direct",
    "ema_entering",
    "ema_fft",
    "ema_kernel",
    "ema_reference",
    "ema_step",
    "packed_blocks",
    "packing_size",
]

BACKENDS = ("reference", "fft", "direct", "chunked", "step", "triton")
MOST_STATES = 64
"""States per channel that Triton's kernels hold in registers."""


def ema(
    x: torch.Tensor,
    coefficients: EMACoefficients,
    *,
    bidirectional: bool = False,
    truncation: int | None = None,
    reset: torch.Tensor | None = None,
    packed: PackedBlocks | None = None,
    state: torch.Tensor | None = None,
    history: torch.Tensor | None = None,
    return_state: bool = False,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Multi-dimensional damped EMA (paper section 3.1), without the residual and the activation that follow it.

    Per channel and direction, with p = sigmoid(damping_factor), a = sigmoid(decay_factor):
    s_t = (1 - p a) s_{t-1} + p * ema_expansion_matrix * x_t and y_t = <kernel_projection_matrix, s_t> / sqrt(N).
    Computed in float32 at least; exact in every form.

    Args:
        x: (B, L, d) inputs, zero at padding.
        coefficients: What `ema_coefficients` makes of the parameters, (D', N) each with D' = d, or 2d if bidirectional
            (the second half runs backwards in time).
        bidirectional: Whether to add the EMA of the reversed sequence. The current token counts in both.
        truncation: Keep only the contributions of lags below this.
        reset: (B, L) bool, True at the first token of every packed document: the state starts afresh there.
        packed: What `packed_blocks` made of `reset`, where several layers share it.
        state: (B, d, N) states before the first token.
        history: (B, truncation, d) the inputs before the first token, 0 for missing ones; with truncation, a
            state needs them.
        return_state: Whether to return the states after the last token too.
        backend: `"reference"` (a loop), `"fft"`, `"direct"` (one matrix), `"chunked"` (matrices of blocks), `"step"`
            (one token), `"triton"` (kernels for CUDA; no float64, up to 64 states); None chooses.

    Returns:
        y (B, L, d) in the dtype of x; and the state (B, d, N), float32 at least, where it was asked for.

    Raises:
        ValueError: for arguments that contradict each other.
    """
    length = x.shape[1]
    stateful = state is not None or return_state
    _check(x, bidirectional, truncation, reset, state, history, stateful, backend)
    form = backend or _form(x, coefficients, reset is not None, stateful)
    if form == "triton":
        _check_triton(x, coefficients)
        from .triton_scan import ema_triton  # not everyone has Triton

        options: Any = {"bidirectional": bidirectional, "truncation": truncation, "return_state": return_state}
        with no_autocast(x.device.type):
            y, last = ema_triton(x, coefficients, **options, reset=reset, state=state, history=history)
        return y, last if return_state else None
    with no_autocast(x.device.type):  # float32 inside, whatever surrounds it
        dtype = torch.promote_types(x.dtype, coefficients.input.dtype)
        inputs = x if x.dtype == dtype else x.to(dtype)
        if coefficients.input.dtype != dtype:
            coefficients = EMACoefficients(*(c.to(dtype) for c in coefficients))
        if history is not None and history.dtype != dtype:
            history = history.to(dtype)
        both: Any = {"bidirectional": bidirectional, "truncation": truncation}
        new_state: torch.Tensor | None = None
        if form == "step":
            y, new_state = ema_step(inputs, coefficients, truncation=truncation, state=state, history=history)
        elif form == "reference":
            y, new_state = ema_reference(inputs, coefficients, **both, reset=reset, state=state, history=history)
        elif form == "chunked":
            if reset is not None and packed is None:
                packed = packed_blocks(reset, block_size(length))
            y, new_state = ema_chunked(inputs, coefficients, **both, packed=packed, state=state, history=history)
        else:
            y = (ema_fft if form == "fft" else ema_direct)(inputs, coefficients, **both)
    return y if y.dtype == x.dtype else y.to(x.dtype), new_state if return_state else None


def _form(x, coefficients, packed, stateful) -> str:
    """The implementation that `ops.dispatch` chooses."""
    triton = _fits_triton(x, coefficients) and wants_triton(x.device.type)
    return ema_form(x.device.type, x.shape[1], x.shape[0], stateful, packed, triton)


def packing_size(x: torch.Tensor, coefficients: EMACoefficients) -> int | None:
    """Tokens per block into which packed documents are laid out, for `packed_blocks`.

    Args:
        x: (B, L, d) inputs.
        coefficients: As in `ema`.

    Returns:
        What the implementation wants that `ema` will choose; None where it needs no blocks.
    """
    return block_size(x.shape[1]) if _form(x, coefficients, True, False) == "chunked" else None


def _check(x, bidirectional, truncation, reset, state, history, stateful, backend) -> None:
    """Raises ValueError for arguments that contradict each other."""
    length = x.shape[1]
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is unknown; the known values are {', '.join(BACKENDS)}")
    if stateful and bidirectional:
        raise ValueError("state and return_state need bidirectional=False: the future has no state")
    if truncation is not None and (state is None) != (history is None):
        raise ValueError(
            f"truncation={truncation}: state and history go together, the latter being the last {truncation} inputs"
        )
    if history is not None and (truncation is None or history.shape[1] != truncation):
        raise ValueError(
            f"history has shape {tuple(history.shape)}, but must be (batch, truncation={truncation}, channels)"
        )
    if stateful and reset is not None:
        raise ValueError("state and return_state cannot be used with reset")
    if length == 0:
        raise ValueError("x has no tokens: its shape must be (batch, length >= 1, channels)")
    if backend in ("fft", "direct") and (stateful or reset is not None):
        raise ValueError(f"backend={backend!r} takes neither state nor reset; use backend='chunked'")
    if backend == "step" and (length != 1 or bidirectional or reset is not None):
        raise ValueError(f"backend='step' takes one token in one direction; got {length} tokens")


def _fits_triton(x: torch.Tensor, coefficients: EMACoefficients) -> bool:
    given = coefficients.input
    is_wide = given.dtype == torch.promote_types(x.dtype, given.dtype) == torch.float32
    return is_wide and given.shape[1] <= MOST_STATES


def _check_triton(x: torch.Tensor, coefficients: EMACoefficients) -> None:
    if not runs_triton(x.device.type):
        raise ValueError(
            f"backend='triton' needs Triton (pip install 'mega-transformers[gpu]') and a CUDA device, not {x.device}; "
            "TRITON_INTERPRET=1 runs its kernels on a CPU, slowly"
        )
    if not _fits_triton(x, coefficients):
        raise ValueError(
            f"backend='triton' computes in float32 with up to {MOST_STATES} states, not with "
            f"{coefficients.input.shape[1]} and x of {x.dtype}, coefficients of {coefficients.input.dtype}; use "
            "backend='chunked'"
        )
