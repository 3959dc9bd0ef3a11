"""Multi-dimensional damped EMA: one definition, several exact forms, one function that chooses."""

from __future__ import annotations

from typing import Any

import torch

from ..autocast import no_autocast
from ..visibility import aligned_slots, count_blocks, positions_in_documents, take_slots
from .chunked import block_size, ema_chunked
from .direct import ema_direct
from .fft import ema_fft, ema_kernel
from .reference import EMACoefficients, ema_coefficients, ema_reference
from .step import ema_step

__all__ = [
    "EMACoefficients",
    "ema",
    "ema_chunked",
    "ema_coefficients",
    "ema_continued",
    "ema_direct",
    "ema_fft",
    "ema_kernel",
    "ema_reference",
    "ema_step",
]

SHORT = 128
"""Tokens of a batch up to which making any matrices costs more than using them saves."""
DIRECT = 64
"""Length up to which one matrix is cheaper than blocks with a state between them."""

BACKENDS = ("reference", "fft", "direct", "chunked", "step")


def ema(
    x: torch.Tensor,
    damping_factor: torch.Tensor,
    decay_factor: torch.Tensor,
    ema_expansion_matrix: torch.Tensor,
    kernel_projection_matrix: torch.Tensor,
    *,
    bidirectional: bool = False,
    truncation: int | None = None,
    document_starts: torch.Tensor | None = None,
    num_documents: int | None = None,
    state: torch.Tensor | None = None,
    history: torch.Tensor | None = None,
    return_state: bool = False,
    backend: str | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Multi-dimensional damped EMA (paper section 3.1), without the residual and the activation that follow it.

    Per channel and direction, with p = sigmoid(damping_factor), a = sigmoid(decay_factor):
    s_t = (1 - p a) s_{t-1} + p * ema_expansion_matrix * x_t and y_t = <kernel_projection_matrix, s_t> / sqrt(N).
    Computed in float32 at least; exact in every form.

    Args:
        x: (B, L, d) inputs, zero at padding.
        damping_factor, decay_factor, ema_expansion_matrix: (D', N, 1) with D' = d, or 2d if bidirectional (the
            second half runs backwards in time).
        kernel_projection_matrix: (D', N).
        bidirectional: Whether to add the EMA of the reversed sequence. The current token counts in both.
        truncation: Keep only the contributions of lags below this.
        document_starts: (B, L) bool, True at the first token of every packed document: the state is reset there.
        num_documents: An upper bound of the documents in a row, which saves a GPU synchronisation.
        state: (B, d, N) states before the first token.
        history: (B, truncation, d) the inputs before the first token, 0 where there are none; with truncation, a
            state needs them.
        return_state: Whether to return the states after the last token too.
        backend: `"reference"` (a loop), `"fft"`, `"direct"` (one matrix), `"chunked"` (matrices of blocks), `"step"`
            (one token); None chooses.

    Returns:
        y (B, L, d) in the dtype of x; with `return_state` also the state (B, d, N), float32 at least.

    Raises:
        ValueError: for arguments that contradict each other.
    """
    length = x.shape[1]
    stateful = state is not None or return_state
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is unknown; known are {', '.join(BACKENDS)}")
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
    if stateful and document_starts is not None:
        raise ValueError("state and return_state cannot be used with document_starts")
    if length == 0:
        raise ValueError("x has no tokens: its shape must be (batch, length >= 1, channels)")
    if backend is None:
        backend = _choose(x, stateful, document_starts is not None)
    if backend in ("fft", "direct") and (stateful or document_starts is not None):
        raise ValueError(f"backend={backend!r} takes neither state nor document_starts; use backend='chunked'")
    if backend == "step" and (length != 1 or bidirectional or document_starts is not None):
        raise ValueError(f"backend='step' takes one token in one direction; got {length} tokens")

    with no_autocast(x.device.type):  # float32 inside, whatever surrounds it
        coefficients = ema_coefficients(damping_factor, decay_factor, ema_expansion_matrix, kernel_projection_matrix)
        if stateful:
            y, new_state = ema_continued(
                x, coefficients, truncation=truncation, state=state, history=history, backend=backend
            )
            return (y, new_state) if return_state else y
        inputs, coefficients = _promoted(x, coefficients)
        if backend == "reference":
            y, _ = ema_reference(
                inputs, coefficients, bidirectional=bidirectional, truncation=truncation, starts=document_starts
            )
        elif backend in ("fft", "direct"):
            form = ema_fft if backend == "fft" else ema_direct
            y = form(inputs, coefficients, bidirectional=bidirectional, truncation=truncation)
        elif backend == "step":
            y, _ = ema_step(inputs, coefficients)
        elif document_starts is None:
            y, _ = ema_chunked(inputs, coefficients, bidirectional=bidirectional, truncation=truncation)
        else:
            positions = positions_in_documents(document_starts)
            block = block_size(length)
            blocks = count_blocks(document_starts, positions, block, num_documents)
            slot_of_token, token_of_slot = aligned_slots(positions, block, blocks)
            documents = (positions == 0).cumsum(dim=1)
            y, _ = ema_chunked(
                take_slots(inputs, token_of_slot),
                coefficients,
                bidirectional=bidirectional,
                truncation=truncation,
                documents=take_slots(documents, token_of_slot),
                block=block,
            )
            y = y.gather(1, slot_of_token.unsqueeze(-1).expand_as(inputs))
    return y.to(x.dtype)


def ema_continued(
    x: torch.Tensor,
    coefficients: EMACoefficients,
    *,
    truncation: int | None = None,
    state: torch.Tensor | None = None,
    history: torch.Tensor | None = None,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`ema` in one direction with a state going in and out, from coefficients made before; not under autocast."""
    inputs, coefficients = _promoted(x, coefficients)
    history = None if history is None else history.to(inputs.dtype)
    if backend is None:
        backend = _choose(x, True, False)
    forms: dict[str, Any] = {"reference": ema_reference, "step": ema_step, "chunked": ema_chunked}
    y, new_state = forms[backend](inputs, coefficients, truncation=truncation, state=state, history=history)
    assert new_state is not None
    return y.to(x.dtype), new_state


def _promoted(x: torch.Tensor, coefficients: EMACoefficients) -> tuple[torch.Tensor, EMACoefficients]:
    """Both in the wider of their dtypes."""
    if x.dtype == coefficients.input.dtype:
        return x, coefficients
    dtype = torch.promote_types(x.dtype, coefficients.input.dtype)
    return x.to(dtype), EMACoefficients(*(c.to(dtype) for c in coefficients))


def _choose(x: torch.Tensor, stateful: bool, documents: bool) -> str:
    """The fastest form, by the measurements in docs/performance.md."""
    if stateful or documents:
        return "step" if x.shape[1] == 1 and not documents else "chunked"
    if torch.compiler.is_exporting():
        return "fft"  # the only form whose graph does not depend on the length
    if x.device.type == "cpu" and x.shape[0] * x.shape[1] <= SHORT:
        return "fft"
    if x.device.type == "cpu" and not torch.compiler.is_compiling() and x.shape[1] <= DIRECT:
        return "direct"
    return "chunked"
