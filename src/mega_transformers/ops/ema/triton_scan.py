"""The EMA by Triton kernels: see `triton_kernels` for what they do, and `chunked` for the mathematics of blocks.

Of tensors as large as x, a forward pass moves three (x twice, y), and the backward pass five (dy three times, x, dx);
where the card's cache holds a tensor, fewer. The states of tiles are N / 64 numbers a token, channel and direction of
a pass besides: with N = 16, two directions and bfloat16 as much as another tensor.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from ..operators import graph_operator, operator
from ..relative_bias import sum_diagonals
from .chunked import _blocks_forward, _matrices, truncated
from .packed import PackedBlocks
from .reference import EMACoefficients
from .triton_kernels import carry_kernel, gradient_kernel, leaving_kernel, output_kernel

BLOCK = 16
"""Tokens M of a block: the least that matrix units take."""
BLOCKS = 16
"""Blocks K of a tile, which registers hold."""
LEAST_STATES = 16
"""As matrix units take them; with fewer, the others are zero."""
MOST_STATES = 64
SPLITS = 8
"""Programs that share the tiles in the gradients of a channel's coefficients."""
LEAST_DECAY = -1e4
"""Of logarithms: minus infinity times 0 is not 0."""


def is_supported(x: torch.Tensor, coefficients: EMACoefficients, truncation: int | None, packed: bool) -> bool:
    """Whether there are kernels for what is asked."""
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16) or (packed and truncation is not None):
        return False
    return coefficients.input.dtype == torch.float32 and coefficients.input.shape[-1] <= MOST_STATES


CHANNELS = {"leaving_kernel": 16, "carry_kernel": 16, "output_kernel": 16, "gradient_kernel": 8}
"""Channels C of a program that has 16 states for each; with more states, fewer."""
WARPS = {"leaving_kernel": 4, "carry_kernel": 4, "output_kernel": 8, "gradient_kernel": 8}


def launch_options(kernel: str, states: int) -> dict[str, int]:
    """The constants of a kernel for N = `states`, with which no registers spill on sm_80 and sm_90, as ptxas says."""
    sizes = {} if kernel == "carry_kernel" else {"K": BLOCKS, "M": BLOCK}
    return {**sizes, "C": max(1, CHANNELS[kernel] * LEAST_STATES // states), "N": states, "num_warps": WARPS[kernel]}


class _Grid(NamedTuple):
    """How a call is divided into programs; made of shapes alone."""

    rows: int
    length: int
    slots: int
    channels: int
    states: int
    tiles: int
    tile: int
    N: int

    @classmethod
    def of(cls, x: torch.Tensor, drive: torch.Tensor, slots: torch.Tensor | None) -> _Grid:
        rows, length, channels = x.shape
        count = length if slots is None else slots.shape[1]
        states = drive.shape[-1]
        N = max(LEAST_STATES, 1 << (states - 1).bit_length())
        tile = BLOCK * BLOCKS
        return cls(rows, length, count, channels, states, -(-count // tile), tile, N)

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.tiles, self.length, self.slots, self.channels, self.states

    def launch(self, kernel: Any, programs: int, *arguments: Any, **flags: Any) -> None:
        """Runs `programs` programs for each part of the channels, which is as large as registers allow."""
        options = launch_options(kernel.__name__, self.N)
        kernel[(programs * -(-self.channels // options["C"]),)](*arguments, **flags, **options)


class _Packing(NamedTuple):
    """Where packed tokens are, and which states pass; of one document a row, nothing."""

    slots: torch.Tensor | None
    keeps: torch.Tensor | None
    passes: torch.Tensor | None
    begins: torch.Tensor | None

    @classmethod
    def of(cls, slots: torch.Tensor | None, keeps: torch.Tensor | None) -> _Packing:
        if slots is None or keeps is None:
            return cls(None, None, None, None)
        tiles = F.pad(keeps, (0, -keeps.shape[1] % BLOCKS)).unflatten(1, (-1, BLOCKS))
        return cls(slots, keeps, tiles[..., 1:].all(2).to(torch.int8), tiles[..., 0].contiguous())


def _half(table: torch.Tensor, direction: int, channels: int) -> torch.Tensor:
    return table[direction * channels : (direction + 1) * channels]


def _carried(x, drive, log_decay, grid, packing, directions, initial=None, extra=None):
    """The states (directions, rows, tiles, channels, states) that enter tiles; and the last to leave, (rows, ...).

    Args:
        directions: Whether each travels backward in time.
    """
    shape = (grid.rows, grid.tiles, grid.channels, grid.states)
    entering = drive.new_empty(len(directions), *shape)
    final = drive.new_empty(grid.rows, grid.channels, grid.states)
    packed = packing.slots is not None
    for i, backward in enumerate(directions):
        drives, log_decays = _half(drive, i, grid.channels), _half(log_decay, i, grid.channels)
        leaving = drive.new_empty(shape)
        grid.launch(
            leaving_kernel, grid.rows * grid.tiles, x, leaving, drives, log_decays, packing.slots,
            packing.keeps, *grid.sizes, *x.stride(), BACKWARD=backward, PACKED=packed,
        )  # fmt: skip
        grid.launch(
            carry_kernel, grid.rows, leaving, entering[i], log_decays, initial, extra, final, packing.passes,
            packing.begins, grid.tiles, grid.channels, grid.states, grid.tile, BACKWARD=backward, PACKED=packed,
            INITIAL=initial is not None, EXTRA=extra is not None,
        )  # fmt: skip
    return entering, final


def _outputs(x, drive, log_decay, output, diagonals, entering, grid, packing, directions):
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grid.launch(
        output_kernel, grid.rows * grid.tiles, x, y, diagonals, drive, log_decay, output, entering,
        packing.slots, packing.keeps, grid.rows, *grid.sizes, *x.stride(), FORWARD=not directions[0],
        BACKWARD=directions[-1], PACKED=packing.slots is not None,
    )  # fmt: skip
    return y


def _forward(x, drive, log_decay, output, diagonals, initial, slots, keeps, bidirectional):
    """y, the states (B, d, N) that enter the last tile, and those that enter each."""
    drive, log_decay, output, diagonals = (t.contiguous() for t in (drive, log_decay, output, diagonals))
    grid = _Grid.of(x, drive, slots)
    packing = _Packing.of(slots, keeps)
    directions = (False, True) if bidirectional else (False,)
    initial = None if initial is None else initial.contiguous()
    entering, _ = _carried(x, drive, log_decay, grid, packing, directions, initial)
    y = _outputs(x, drive, log_decay, output, diagonals, entering, grid, packing, directions)
    return y, entering[0, :, -1].clone(), entering


def _backward(
    needs, x, drive, log_decay, output, diagonals, initial, slots, keeps, entering, dy, dlast, bidirectional
):
    """Gradients of the first six. Those of inputs are the EMA of `dy` in the other directions."""
    drive, log_decay, output = (t.contiguous() for t in (drive, log_decay, output))
    grid = _Grid.of(x, drive, slots)
    packing = _Packing.of(slots, keeps)
    dy = torch.zeros_like(x) if dy is None else dy
    dlast = None if dlast is None else dlast.contiguous()
    # travelling backward in time, adjoints of forward states; and forward, of backward states
    adjoint_directions = (True, False) if bidirectional else (True,)
    adjoints, final = _carried(dy, output, log_decay, grid, packing, adjoint_directions, extra=dlast)
    dx = None
    if needs[0]:
        # in the order of directions, forward in time first
        drives, log_decays, outputs = (_swap(t, bidirectional) for t in (output, log_decay, drive))
        order = adjoints.flip(0) if bidirectional else adjoints
        directions = (False, True) if bidirectional else (True,)
        dx = _outputs(
            dy, drives, log_decays, outputs, diagonals.flip(-1).contiguous(), order, grid, packing, directions
        ).to(x.dtype)
    if not any(needs[1:5]):
        return dx, None, None, None, None, final if needs[5] else None
    splits = min(SPLITS, grid.rows * grid.tiles)
    toeplitz = drive.new_empty(splits, grid.channels, BLOCK, BLOCK)
    sums = [drive.new_empty(2 if bidirectional else 1, splits, grid.channels, grid.states) for _ in range(3)]
    for i, adjoint_backward in enumerate(adjoint_directions):
        tables = (_half(t, i, grid.channels) for t in (drive, log_decay, output))
        grid.launch(
            gradient_kernel, splits, x, dy, toeplitz, *(t[i] for t in sums), *tables, entering[i], adjoints[i],
            packing.slots, packing.keeps, grid.rows, *grid.sizes, splits, *x.stride(), *dy.stride(),
            BACKWARD=not adjoint_backward, PACKED=packing.slots is not None,
        )  # fmt: skip
    coefficients = [t.sum(1).flatten(0, 1) for t in sums]
    return dx, *coefficients, sum_diagonals(toeplitz.sum(0)), final if needs[5] else None


def _swap(table: torch.Tensor, bidirectional: bool) -> torch.Tensor:
    """(2 d, N) with its halves exchanged."""
    return table.roll(table.shape[0] // 2, 0).contiguous() if bidirectional else table


def _definition(x, drive, log_decay, output, diagonals, initial, slots, keeps, bidirectional):
    """y and the states that enter the last tile, in differentiable operations."""
    grid = _Grid.of(x, drive, slots)
    width = x.shape[-1]
    spread = x.float()
    if slots is not None:
        index = slots.long().unsqueeze(-1).expand(-1, -1, width)
        spread = F.pad(spread, (0, 0, 0, 1)).gather(1, index)
    spread = F.pad(spread, (0, 0, 0, grid.tiles * grid.tile - spread.shape[1]))
    _, E, G, decay = _matrices(EMACoefficients(drive, log_decay, output, log_decay.exp()), BLOCK, bidirectional)
    keep = None if keeps is None else F.pad(keeps, (0, grid.tiles * BLOCKS - keeps.shape[1])).to(spread.dtype)
    initial = None if initial is None else initial.transpose(0, 1)
    y, _, H = _blocks_forward(spread, diagonals, E, G, decay, initial, keep, bidirectional)
    if slots is None:
        y = y[:, : x.shape[1]]
    else:
        y = torch.zeros_like(F.pad(x, (0, 0, 0, 1)), dtype=y.dtype).scatter(1, index, y[:, : slots.shape[1]])[:, :-1]
    last = H[:, :, (grid.tiles - 1) * BLOCKS, : grid.states].transpose(0, 1)
    return y.to(x.dtype), last


def _fake(x, drive, log_decay, output, diagonals, initial, slots, keeps, bidirectional):
    grid = _Grid.of(x, drive, slots)
    shape = (2 if bidirectional else 1, grid.rows, grid.tiles, grid.channels, grid.states)
    return [
        torch.empty_like(x, memory_format=torch.contiguous_format),
        drive.new_empty(grid.rows, *shape[3:]),
        drive.new_empty(shape),
    ]


_SCAN = operator(_forward, _backward, _definition, inputs=6, outputs=2, keeps=(2,))
_IN_GRAPHS = graph_operator("ema", "bool bidirectional", _forward, _backward, _fake, inputs=6, outputs=2, keeps=(2,))


def ema_triton(
    x: torch.Tensor,
    coefficients: EMACoefficients,
    *,
    bidirectional: bool = False,
    truncation: int | None = None,
    packed: PackedBlocks | None = None,
    state: torch.Tensor | None = None,
    history: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """See `mega_transformers.ops.ema.ema`. Returns y and, unless bidirectional, the state after the last token.

    Args:
        x: In float32, bfloat16 or float16; y has its dtype, and states are float32.
        packed: Where packed documents go, in blocks of `BLOCK` tokens.
    """
    if truncation is not None and (history is not None or truncation < x.shape[1]):
        return truncated(_scan, x, coefficients, bidirectional, truncation, None, state, history)
    return _scan(x, coefficients, bidirectional, packed, state)


def _scan(
    x: torch.Tensor,
    coefficients: EMACoefficients,
    bidirectional: bool,
    packed: PackedBlocks | None,
    state: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """All lags."""
    log_decay = coefficients.log_decay.clamp(min=LEAST_DECAY)
    coefficients = coefficients._replace(log_decay=log_decay)
    diagonals = _matrices(coefficients, BLOCK, bidirectional)[0]
    slots = keeps = None
    if packed is not None:
        slots, keeps = packed.token_of_slot.to(torch.int32), packed.continues.to(torch.int8)
    tensors = (x, coefficients.input, log_decay, coefficients.output, diagonals, state, slots, keeps)
    run: Any = _IN_GRAPHS if torch.compiler.is_compiling() else _SCAN
    y, entering, *_ = run(*tensors, options=(bidirectional,))
    if bidirectional or packed is not None:
        return y, None
    grid = _Grid.of(x, coefficients.input, None)
    tail = x.shape[1] - (grid.tiles - 1) * grid.tile
    steps = torch.arange(tail - 1, -1, -1, device=x.device)
    weights = coefficients.input.unsqueeze(-1) * torch.exp(log_decay.unsqueeze(-1) * steps)
    added = torch.einsum("btd,dnt->bdn", x[:, -tail:].float(), weights)
    return y, added + torch.exp(log_decay * tail) * entering
