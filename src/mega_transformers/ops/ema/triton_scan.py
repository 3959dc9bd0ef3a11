"""The EMA by Triton's kernels: in one pass over the inputs and one over the outputs, but for a first look at the inputs.

Time is cut into chunks, which programs walk over token by token with the states in registers: matrices (`chunked`)
take as many operations, and matrix units are not exact. Three kernels: what each chunk leaves in the states; the
states that enter each chunk; the outputs.

The backward pass keeps the inputs and the states that entered each chunk. The gradient of the inputs is the EMA of the
outputs' gradient with directions exchanged, by the same kernels; the last one adds up the coefficients' gradients too,
from the states and their derivatives by the decays. So passes over data of the size of x are, with several chunks,

    forward   x (states), x, y                  backward   dy (states), dy, x, dx

seven, where five is the least; and five where all of a row is one chunk, which needs no states. Second readings within
a chunk, which two directions and the coefficients' gradients make, are of what a GPU's cache holds.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from ..layout import is_open
from ..operators import graph_operator, operator
from . import triton_kernels
from .chunked import block_size, ema_chunked, truncated
from .packed import packed_blocks
from .reference import EMACoefficients

WARPS = 12
"""Programs, of a warp each, that a multiprocessor runs: enough to hide loads, and few enough for its cache."""
OPEN_CHUNK = 128
"""Tokens per chunk in graphs of any length."""


class Launch(NamedTuple):
    """What the kernels are made for.

    Attributes:
        states: Power of two that holds N.
        channels: Channels of a program, of one warp, so that a lane has up to 16 states.
        programs: Those that share the chunks of some channels.
        count: Tokens that are loaded ahead.
    """

    states: int
    channels: int
    programs: int
    count: int


def chunk_size(batch: int, length: int, channels: int) -> int:
    """Tokens per chunk: as long as possible, for the states' sake, while there are enough chunks for a GPU."""
    if is_open(length):
        return OPEN_CHUNK
    for size in (256, 128, 64):
        if batch * -(-length // size) * -(-channels // 32) >= 2048:
            return size
    return 32


def _launch(device: torch.device, items: int, channels: int, states: int, differentiates: bool) -> Launch:
    padded = 1 << (states - 1).bit_length()
    width = min(32, 512 // padded)
    blocks = -(-channels // width)
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    programs = max(1, min(items, -(-WARPS * processors // blocks)))
    return Launch(padded, width, programs, 8 if differentiates else 16)


def _on_device(function: Any) -> Any:
    """Triton launches kernels on the current device."""

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        x = next(x for x in args if isinstance(x, torch.Tensor))
        with torch.cuda.device_of(x):
            return function(*args)

    return run


class _Pass:
    """The kernels' arguments for inputs x (B, L, d) that are walked over, in the EMA or (adjoint) its transpose."""

    def __init__(
        self,
        x: torch.Tensor,
        drive: torch.Tensor,
        log_decay: torch.Tensor,
        output: torch.Tensor,
        reset: torch.Tensor | None,
        bidirectional: bool,
        stateful: bool,
        chunk: int,
        adjoint: bool,
    ) -> None:
        self.x, self.adjoint, self.tokens = x, adjoint, chunk
        self.batch, self.length, self.channels = x.shape
        self.chunks = -(-self.length // chunk)
        self.directions = 2 if bidirectional else 1
        self.states = log_decay.shape[1]
        self.log_decay, self.stateful = self.rows(log_decay), stateful
        self.decay = self.log_decay.exp()
        self.drive: torch.Tensor | None = self.rows(output if adjoint else drive)
        self.output = self.rows(drive if adjoint else output)
        if not stateful:
            self.drive, self.output = None, self.rows(drive * output)
        self.starts, self.through = None, None
        if reset is not None:
            starts = F.pad(reset, (0, self.chunks * chunk + 1 - self.length)).to(torch.int8)
            inside = [part.unflatten(1, (self.chunks, chunk)).any(2) for part in (starts[:, :-1], starts[:, 1:])]
            self.starts, self.through = starts, (~torch.stack(inside)).to(torch.int8)

    def rows(self, coefficient: torch.Tensor) -> torch.Tensor:
        """(D', N) to (directions, N, d), so that channels lie side by side."""
        return coefficient.unflatten(0, (self.directions, -1)).transpose(1, 2).contiguous()

    def columns(self, rows: torch.Tensor) -> torch.Tensor:
        """(directions, N, d) to (D', N)."""
        return rows.transpose(1, 2).flatten(0, 1).contiguous()

    def launch(self, differentiates: bool) -> tuple[Launch, tuple[int, int], dict[str, Any]]:
        items = self.batch * self.chunks
        launch = _launch(self.x.device, items, self.channels, self.states, differentiates)
        constants = {
            "N": self.states,
            "STATES": launch.states,
            "CHANNELS": launch.channels,
            "TOKENS": self.tokens,
            "COUNT": launch.count,
            "DIRECTIONS": self.directions,
            "ADJOINT": self.adjoint,
            "UNIT": self.drive is None,
            "PACKED": self.starts is not None,
            "num_warps": 1,
            "enable_fp_fusion": True,
        }
        return launch, (-(-self.channels // launch.channels), launch.programs), constants

    def entering(self, initial: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The states (chunks, B, directions, N, d) that enter each chunk, and those (B, N, d) that leave the last."""
        shape = self.chunks, self.batch, self.directions, self.states, self.channels
        if self.chunks == 1 and not self.stateful:
            return self.log_decay.new_zeros(shape), self.log_decay.new_empty(0)
        left = self.log_decay.new_empty(shape)
        _, grid, constants = self.launch(False)
        starts_batch = 0 if self.starts is None else self.starts.stride(0)
        triton_kernels.states_kernel[grid](
            self.x, left, self.decay, self.drive, self.starts, self.length, self.channels, self.chunks,
            self.batch * self.chunks, *self.x.stride(), starts_batch, **constants,
        )  # fmt: skip
        last = left.new_empty(shape[1], *shape[3:]) if self.stateful else left.new_empty(0)
        if self.stateful:
            initial = torch.zeros_like(last) if initial is None else initial.contiguous()
        total = left[0].numel()
        triton_kernels.carry_kernel[(max(1, -(-total // 128)),)](
            left, self.log_decay, self.through, initial, last, self.length, self.chunks, total, self.batch,
            self.states * self.channels, BLOCK=128, TOKENS=self.tokens, COUNT=8, DIRECTIONS=self.directions,
            ADJOINT=self.adjoint, PACKED=self.starts is not None, STATEFUL=self.stateful, num_warps=4,
            enable_fp_fusion=True,
        )  # fmt: skip
        return left, last

    def outputs(
        self,
        entering: torch.Tensor,
        dtype: torch.dtype,
        inputs: torch.Tensor | None = None,
        states: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """y (B, L, d); and of the transpose, given inputs and the states they made, (sums, directions, N, d)."""
        y = self.x.new_empty(self.x.shape, dtype=dtype)
        launch, grid, constants = self.launch(inputs is not None)
        scratch = sums = None
        if self.directions == 2:
            scratch = entering.new_empty(grid[0] * grid[1], self.tokens, launch.channels)
        if inputs is not None:
            sums = entering.new_empty(2 if self.drive is None else 3, grid[1], *entering.shape[2:])
        strides = (0, 0, 0) if inputs is None else inputs.stride()
        starts_batch = 0 if self.starts is None else self.starts.stride(0)
        triton_kernels.outputs_kernel[grid](
            self.x, y, entering, self.decay, self.drive, self.output, self.starts, scratch, inputs, states, sums,
            self.length, self.channels, self.chunks, self.batch * self.chunks, *self.x.stride(), *strides,
            starts_batch, **constants, GRADIENTS=inputs is not None,
        )  # fmt: skip
        return y, None if sums is None else sums.sum(1)


@_on_device
def forward_pass(
    x: torch.Tensor,
    drive: torch.Tensor,
    log_decay: torch.Tensor,
    output: torch.Tensor,
    state: torch.Tensor | None,
    reset: torch.Tensor | None,
    bidirectional: bool,
    stateful: bool,
    chunk: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y (B, L, d), the state (B, d, N) behind the last token if stateful, and the states that enter each chunk."""
    run = _Pass(x, drive, log_decay, output, reset, bidirectional, stateful, chunk, adjoint=False)
    entering, last = run.entering(None if state is None else state.transpose(1, 2))
    y, _ = run.outputs(entering, x.dtype)
    return y, last.transpose(1, 2).contiguous() if stateful else last, entering


@_on_device
def backward_pass(
    needs: Sequence[bool],
    x: torch.Tensor,
    drive: torch.Tensor,
    log_decay: torch.Tensor,
    output: torch.Tensor,
    state: torch.Tensor | None,
    reset: torch.Tensor | None,
    states: torch.Tensor,
    dy: torch.Tensor | None,
    dlast: torch.Tensor | None,
    bidirectional: bool,
    stateful: bool,
    chunk: int,
) -> list[torch.Tensor | None]:
    """The gradients of the first five, None where not needed."""
    if dy is None:
        dy = x.new_zeros(()).expand(x.shape)
    run = _Pass(dy, drive, log_decay, output, reset, bidirectional, stateful, chunk, adjoint=True)
    if dlast is not None:  # as if from one token later
        dlast = dlast.transpose(1, 2) / run.decay
    adjoints, first = run.entering(dlast)
    found: list[torch.Tensor | None] = [None] * 5
    if any(needs[:4]):
        of_coefficients = any(needs[1:4])
        found[0], sums = run.outputs(adjoints, x.dtype, *((x, states) if of_coefficients else ()))
        if sums is not None:
            parts = [run.columns(part) for part in sums]
            if stateful:
                doutput, ddecay, ddrive = parts
            else:  # the sums are for a drive of 1
                doutput, ddecay, ddrive = parts[0] * drive, parts[1] * drive * output, parts[0] * output
            found[1:4] = ddrive, ddecay * log_decay.exp(), doutput
    if needs[4]:
        found[4] = (run.decay * first).transpose(1, 2).contiguous()
    return [grad if need else None for grad, need in zip(found, needs)]


def definition(
    x: Any,
    drive: Any,
    log_decay: Any,
    output: Any,
    state: Any,
    reset: Any,
    bidirectional: bool,
    stateful: bool,
    chunk: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What is computed, in differentiable operations."""
    coefficients = EMACoefficients(drive, log_decay, output, log_decay.exp())
    packed = None if reset is None else packed_blocks(reset, block_size(x.shape[1]))
    y, last = ema_chunked(
        x.to(drive.dtype), coefficients, bidirectional=bidirectional, packed=packed, state=state
    )
    return y.to(x.dtype), last if stateful and last is not None else drive.new_empty(0)


def _like_results(
    x: Any, drive: Any, log_decay: Any, output: Any, state: Any, reset: Any, bidirectional: bool, stateful: bool, chunk: int
) -> list[torch.Tensor]:
    batch, length, channels = x.shape
    states, directions = drive.shape[1], 2 if bidirectional else 1
    last = (batch, channels, states) if stateful else (0,)
    entering = (length + chunk - 1) // chunk, batch, directions, states, channels
    return [x.new_empty(x.shape), *(drive.new_empty(shape) for shape in (last, entering))]


_PLACES: Any = {"inputs": 5, "outputs": 2, "keeps": (2,)}
_EMA = operator(forward_pass, backward_pass, definition, **_PLACES)
_IN_GRAPHS = graph_operator(
    "ema", "bool bidirectional, bool stateful, SymInt chunk", forward_pass, backward_pass, _like_results, **_PLACES
)


def ema_triton(
    x: torch.Tensor,
    coefficients: EMACoefficients,
    *,
    bidirectional: bool = False,
    truncation: int | None = None,
    reset: torch.Tensor | None = None,
    state: torch.Tensor | None = None,
    history: torch.Tensor | None = None,
    return_state: bool = False,
    chunk: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """See `mega_transformers.ops.ema.ema`. Returns y and, where it is asked for, the state after the last token.

    Args:
        x: (B, L, d) in float32, bfloat16 or float16; strides are free.
        coefficients: In float32, of up to 64 states.
        chunk: Tokens that a program walks over; by default what is fastest.
    """
    stateful = state is not None or return_state
    chunk = chunk_size(*x.shape) if chunk is None else chunk
    run_in_form = _IN_GRAPHS if torch.compiler.is_compiling() else _EMA

    def run(x, coefficients, bidirectional, state):
        drive, log_decay, output, _ = coefficients
        options = bidirectional, stateful, chunk
        y, last, _ = run_in_form(x, drive, log_decay, output, state, reset, options=options)
        return y, last if stateful else None

    if truncation is None or (history is None and truncation >= x.shape[1]):
        return run(x, coefficients, bidirectional, state)
    documents = None if reset is None else reset.cumsum(1)
    y, last = truncated(
        run, x.to(coefficients.input.dtype), coefficients, bidirectional, truncation, documents, state, history
    )
    return y.to(x.dtype), last
