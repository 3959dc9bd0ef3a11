"""The EMA by Triton's kernels, which walk over time with the states in registers.

Matrices of blocks (`chunked`) would take no fewer operations, and matrix units are not exact. Time is cut into chunks,
for there to be enough programs. Three kernels: what each chunk leaves in the states; the states that enter each chunk;
the outputs.

The backward pass keeps the inputs and the states that entered each chunk. The gradient of the inputs is the EMA of the
outputs' gradient with directions exchanged, by the same kernels; the last one adds up the coefficients' gradients too,
from the states and their derivatives by the decays. Passes over data of the size of x are

    forward   x (states), x, y                  backward   dy (states), dy, x, dx

seven, where five is the least, or five where all of a row is one chunk, which needs no states. Two directions and the
coefficients' gradients read a chunk again while a GPU's cache holds it. States are written, carried in place and
read: with N = 16, two directions and chunks of 128 tokens, 4 bytes for each number of x forward, and 5 backward.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..layout import is_open
from ..operators import graph_operator, operator
from .boundary import ema_boundary
from .chunked import _blocks_forward, _matrices, block_size, truncated
from .packed import PackedBlocks, packed_blocks
from .reference import EMACoefficients
from .triton_kernels import carry_kernel, outputs_kernel, states_kernel

COUNT = 8
"""Tokens that are loaded ahead of their use."""
WARPS = {"states": 24, "outputs": 12, "gradients": 8}
"""Programs, of a warp each, that a multiprocessor has registers for, and cache for their chunks."""
OPEN_CHUNK = 128
"""Tokens per chunk in graphs of any length."""


def chunk_size(batch: int, length: int, channels: int) -> int:
    """Tokens per chunk: as long as possible, for the states' sake, while there are enough chunks for a GPU."""
    if is_open(length):
        return OPEN_CHUNK
    for size in (128, 64):
        if batch * -(-length // size) * -(-channels // 32) >= 2048:
            return size
    return 32


def block_of(states: int) -> tuple[int, int]:
    """The power of two that holds the states, and how many channels a program then has, one warp's."""
    filled = 1 << (states - 1).bit_length()
    return filled, min(32, 512 // filled)


def _on_device(function: Any) -> Any:
    """Triton launches kernels on the current device."""

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        x = next(x for x in args if isinstance(x, torch.Tensor))
        with torch.cuda.device_of(x):
            return function(*args)

    return run


class _Pass:
    """The kernels' arguments for inputs x (B, L, d) that are walked over, in the EMA or (adjoint) its transpose.

    A program has a block of channels, so that a lane has up to 16 states. What there is of states is laid out as
    (..., blocks, states, channels), both filled up.
    """

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
        self.x, self.adjoint, self.stateful, self.tokens = x, adjoint, stateful, chunk
        self.batch, self.length, self.channels = x.shape
        self.chunks = -(-self.length // chunk)
        self.directions, self.states = 2 if bidirectional else 1, log_decay.shape[1]
        self.block = block_of(self.states)
        self.blocks = -(-self.channels // self.block[1])
        self.log_decay = self.tiles(log_decay.unflatten(0, (self.directions, -1)), float("-inf"))
        self.decay = self.log_decay.exp()
        self.drive: torch.Tensor | None = None
        if stateful:
            drive, output = (output, drive) if adjoint else (drive, output)
            self.drive = self.tiles(drive.unflatten(0, (self.directions, -1)))
        else:
            output = drive * output
        self.output = self.tiles(output.unflatten(0, (self.directions, -1)))
        self.starts = self.through = None
        if reset is not None:
            starts = F.pad(reset, (0, self.chunks * chunk + 1 - self.length)).to(torch.int8)
            inside = [part.unflatten(1, (self.chunks, chunk)).any(2) for part in (starts[:, :-1], starts[:, 1:])]
            self.starts, self.through = starts, (~torch.stack(inside)).to(torch.int8)

    def tiles(self, x: torch.Tensor, fill: float = 0.0) -> torch.Tensor:
        """(..., d, N) to (..., blocks, states, channels)."""
        states, width = self.block
        x = F.pad(x, (0, states - self.states, 0, self.blocks * width - self.channels), value=fill)
        return x.unflatten(-2, (self.blocks, width)).transpose(-1, -2).contiguous()

    def columns(self, tiles: torch.Tensor) -> torch.Tensor:
        """(..., blocks, states, channels) to (..., d, N)."""
        x = tiles.transpose(-1, -2).flatten(-3, -2)
        return x[..., : self.channels, : self.states].contiguous()

    def launch(self, kind: str) -> tuple[tuple[int, int], dict[str, Any]]:
        """The grid (blocks of channels, programs that share their chunks), and constants."""
        processors = 1
        if self.x.device.type == "cuda":
            processors = torch.cuda.get_device_properties(self.x.device).multi_processor_count
        items = self.batch * self.chunks
        rounds = max(1, -(-items * self.blocks // (WARPS[kind] * processors)))
        return (self.blocks, -(-items // rounds)), {
            "STATES": self.block[0],
            "CHANNELS": self.block[1],
            "TOKENS": self.tokens,
            "COUNT": COUNT if self.drive is None else COUNT // 2,
            "DIRECTIONS": self.directions,
            "ADJOINT": self.adjoint,
            "UNIT": self.drive is None,
            "PACKED": self.starts is not None,
            "num_warps": 1,
            "enable_fp_fusion": True,
        }

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.length, self.channels, self.chunks, self.batch * self.chunks

    @property
    def starts_batch(self) -> int:
        return 0 if self.starts is None else self.starts.stride(0)

    def entering(self, initial: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The states (chunks, B, directions, blocks, ...) that enter each chunk, and those (B, d, N) after all."""
        shape = self.chunks, self.batch, *self.decay.shape
        nothing = self.decay.new_empty(0)
        if self.chunks == 1 and not self.stateful:
            return self.decay.new_zeros(shape), nothing
        left = self.decay.new_empty(shape)
        grid, constants = self.launch("states")
        states_kernel[grid](
            self.x, left, self.decay, self.drive, self.starts, *self.sizes, *self.x.stride(), self.starts_batch,
            **constants,
        )  # fmt: skip
        first = last = None
        if self.stateful:
            last = torch.empty_like(left[0])
            first = torch.zeros_like(last) if initial is None else self.tiles(initial.to(last.dtype))
        size = self.decay[0].numel()
        carry_kernel[(self.batch * self.directions * -(-size // 128),)](
            left, self.log_decay, self.through, first, last, self.length, self.chunks, left[0].numel(), self.batch,
            size, BLOCK=128, TOKENS=self.tokens, COUNT=COUNT, DIRECTIONS=self.directions, ADJOINT=self.adjoint,
            PACKED=self.starts is not None, STATEFUL=self.stateful, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
        return left, nothing if last is None else self.columns(last[:, 0])

    def outputs(
        self,
        entering: torch.Tensor,
        dtype: torch.dtype,
        inputs: torch.Tensor | None = None,
        states: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """y (B, L, d); and of the transpose, given inputs and the states they made, the sums (2 or 3, D', N)."""
        y = self.x.new_empty(self.x.shape, dtype=dtype)
        grid, constants = self.launch("outputs" if inputs is None else "gradients")
        scratch = sums = None
        if self.directions == 2:
            scratch = entering.new_empty(grid[0] * grid[1], self.tokens, self.block[1])
        if inputs is not None:
            sums = entering.new_empty(2 if self.drive is None else 3, grid[1], *self.decay.shape)
        outputs_kernel[grid](
            self.x, y, entering, self.decay, self.drive, self.output, self.starts, scratch, inputs, states, sums,
            *self.sizes, *self.x.stride(), *((0, 0, 0) if inputs is None else inputs.stride()), self.starts_batch,
            **constants, GRADIENTS=inputs is not None,
        )  # fmt: skip
        return y, None if sums is None else self.columns(sums.sum(1)).flatten(1, 2)


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
    entering, last = run.entering(None if state is None else state.unsqueeze(1))
    y, _ = run.outputs(entering, x.dtype)
    return y, last, entering


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
    decay = log_decay.exp()
    # as if from one token later
    adjoints, first = run.entering(None if dlast is None else (dlast / decay).unsqueeze(1))
    found: list[torch.Tensor | None] = [None] * 5
    if any(needs[:4]):
        of_coefficients = any(needs[1:4])
        found[0], sums = run.outputs(adjoints, x.dtype, *((x, states) if of_coefficients else ()))
        if sums is not None:
            if stateful:
                doutput, ddecay, ddrive = sums
            else:  # the sums are for a drive of 1
                doutput, ddecay, ddrive = sums[0] * drive, sums[1] * drive * output, sums[0] * output
            found[1:4] = ddrive, ddecay * decay, doutput
    if needs[4]:
        found[4] = decay * first
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
    coefficients, length = EMACoefficients(drive, log_decay, output, log_decay.exp()), x.shape[1]
    size, spread, keep = block_size(length), x.to(drive.dtype), None
    packed = None if reset is None else packed_blocks(reset, size)
    if packed is not None:
        spread, keep = packed.spread(spread), packed.continues.to(drive.dtype)
    matrices = _matrices(coefficients, size, bidirectional)
    initial = None if state is None else state.transpose(0, 1)
    padded = F.pad(spread, (0, 0, 0, -spread.shape[1] % size))
    y, *_ = _blocks_forward(padded, *matrices, initial, keep, bidirectional)
    y = y[:, :length] if packed is None else packed.gather(y)
    if not stateful:
        return y.to(x.dtype), drive.new_empty(0)
    last = ema_boundary(x, coefficients)
    return y.to(x.dtype), last if state is None else last + torch.exp(log_decay * length) * state


def _like_results(x: Any, drive: Any, *given: Any) -> list[torch.Tensor]:
    *_, bidirectional, stateful, chunk = given
    batch, length, channels = x.shape
    states, directions = drive.shape[1], 2 if bidirectional else 1
    last = (batch, channels, states) if stateful else (0,)
    filled, width = block_of(states)
    blocks = (channels + width - 1) // width
    entering = (length + chunk - 1) // chunk, batch, directions, blocks, filled, width
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
    run = _IN_GRAPHS if torch.compiler.is_compiling() else _EMA

    def scan(x, coefficients, bidirectional, _, state):
        drive, log_decay, output, _ = coefficients
        return run(x, drive, log_decay, output, state, reset, options=(bidirectional, stateful, chunk))[:2]

    if truncation is None or (history is None and truncation >= x.shape[1]):
        y, last = scan(x, coefficients, bidirectional, None, state)
    else:
        packed = None
        if reset is not None:  # each token a block
            places = torch.arange(x.shape[1], device=x.device).expand(reset.shape)
            packed = PackedBlocks(1, places, places, reset.cumsum(1))
        wide = x.to(coefficients.input.dtype)
        y, last = truncated(scan, wide, coefficients, bidirectional, truncation, packed, state, history)
    return y.to(x.dtype), last if stateful else None
