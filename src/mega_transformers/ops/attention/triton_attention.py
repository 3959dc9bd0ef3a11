"""Attention by Triton's kernels, for every activation, layout and bias by distance, with memory linear in the length.

The forward pass is one kernel: a tile of queries goes over the keys that it may see, with as many values as fit into
registers. Values are much wider than queries. So most of the backward pass is two products over all values, of which
kernels that keep their results in registers would compute one twice, in small tiles. Here weights and gradients of
scores are computed once, in large tiles, for `SLAB` scores at a time, and then multiplied: no more matrix work than
there has to be, and no atomic additions, so that gradients are the same in every run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from ..activations import ELEMENTWISE
from ..dispatch import is_interpreted
from ..layout import AttentionLayout
from ..operators import graph_operator, operator
from ..relative_bias import BiasTable
from .tiled import SCHEMA, TENSORS, Call, apply, columns_of, definition
from .triton_kernels import diagonals_kernel, forward_kernel, gradients_kernel, product_kernel

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SLAB = 1 << 24
"""Scores that the backward pass holds at a time, about: 32 MiB each of weights and of gradients in half precision."""
LEVELS = 1 << 16
"""Probabilities of dropout are multiples of 1 / LEVELS, as in `ops.dropout`."""


class ForwardBlocks(NamedTuple):
    """Queries, keys and values of a tile, and how a GPU runs it."""

    queries: int
    keys: int
    values: int
    num_warps: int
    num_stages: int


class BackwardBlocks(NamedTuple):
    """Tiles of `tile` queries and keys, made of `features` at a time; `terms` and `columns` of a tile of products."""

    tile: int
    features: int
    terms: int
    columns: int
    num_warps: int
    num_stages: int


def is_large(device: torch.device) -> bool:
    """Whether a GPU's blocks may have the shared memory of an H100 (227 KB), or less, as an A100's (163 KB)."""
    if device.type != "cuda":
        return False
    return getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0) >= 200_000


def forward_blocks(z: int, h: int, element_size: int, large: bool) -> ForwardBlocks:
    """The blocks of the forward pass, with values that make the least work: each block of them computes the scores."""
    widest = 256 if element_size == 2 else 64
    widths = [w for w in (256, 128, 64, 32, 16) if w <= widest]
    values = min(widths, key=lambda width: -(-h // width) * (z + width))
    if element_size == 4:
        return ForwardBlocks(32, 32 if z <= 128 else 16, values, 4, 2)
    return ForwardBlocks(128 if large else 64, 64 if z <= 128 else 32, values, 8, 2)


def backward_blocks(longest: int, element_size: int, large: bool) -> BackwardBlocks:
    """The blocks of the backward pass for rows of `longest` queries and keys at most."""
    if element_size == 4:
        return BackwardBlocks(64, 16, 16, 64, 8, 2)
    return BackwardBlocks(128, 32, 64, 128, 8, 3) if large and longest > 64 else BackwardBlocks(64, 64, 64, 128, 4, 3)


class _Slab(NamedTuple):
    """Queries from `start` on of rows from `first` on, over key columns from `low` on: `tiles` x `key_tiles` tiles."""

    first: int
    rows: int
    start: int
    low: int
    tiles: int
    key_tiles: int


class _Pass:
    """What both passes give to the kernels."""

    def __init__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, values: torch.Tensor | None, call: Call):
        self.q, self.k, self.v = (_in_rows(x) for x in (q, k, v))
        self.call, layout = call, call.layout
        slope, shift = math.log2(math.e), 0.0
        if call.activation != "softmax":
            slope, shift = ELEMENTWISE[call.activation][1:3]
        self.slope = slope
        plan = "triton", q.device, call.activation, q.shape[-1]
        if plan not in call.plans:
            call.plans[plan] = *_ranges(layout, q.device), _scale(q, call, slope)
        self.start, self.stop, self.scale = call.plans[plan]
        self.table = None if values is None else ((values.float() - shift) * slope).contiguous()
        offset = layout.offset
        self.offsets = None if isinstance(offset, int) else offset.to(q.device)
        self.middle = call.zero - (offset if isinstance(offset, int) else 0)
        self.shift = shift * slope
        self.dropped = round(call.dropout * LEVELS)

    @property
    def constants(self) -> dict[str, Any]:
        return {
            "ACTIVATION": self.call.activation,
            "SHIFT": self.shift,
            "BIASED": self.table is not None,
            "PADDED": self.call.layout.real is not None,
            "SHIFTED": self.offsets is not None,
            "DROPPED": self.dropped,
            "PRECISION": precision(),
        }

    @property
    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        return self.table, self.scale, self.start, self.stop, self.call.layout.real, self.offsets

    @property
    def lengths(self) -> tuple[int, ...]:
        entries = 0 if self.table is None else self.table.shape[0]
        return self.q.shape[1], self.k.shape[1], entries, self.middle, self.call.seed

    @property
    def strides(self) -> tuple[int, ...]:
        real, offsets = self.call.layout.real, self.offsets
        return (
            *_strides(self.scale),
            _strides(self.start)[0],
            *((0, 0) if real is None else _strides(real)),
            0 if offsets is None or offsets.shape[0] == 1 else offsets.stride(0),
        )

    def slabs(self, tile: int) -> Iterator[_Slab]:
        """Slabs of whole tiles that cover whatever may be seen, as far as the host knows that."""
        (batch, queries), keys, layout = self.q.shape[:2], self.k.shape[1], self.call.layout
        height = SLAB // max(keys, 1)
        if layout.chunk is not None:  # then h queries see at most h + 2 * chunk keys
            height = max(height, math.isqrt(layout.chunk**2 + SLAB) - layout.chunk)
        height = min(max(height // tile, 1), -(-queries // tile)) * tile
        for start in range(0, queries, height):
            stop = min(start + height, queries)
            low, high, _ = columns_of(layout, slice(None), start, stop)
            low, tiles = low // tile * tile, -(-(stop - start) // tile)
            key_tiles = -(-(high - low) // tile)
            if key_tiles <= 0:
                continue
            together = max(1, SLAB // (tiles * key_tiles * tile**2))
            for first in range(0, batch, together):
                yield _Slab(first, min(together, batch - first), start, low, tiles, key_tiles)


def precision() -> str:
    """How float32 is multiplied: exactly, unless `torch.set_float32_matmul_precision` says otherwise."""
    if is_interpreted():
        return "interpreted"
    return {"highest": "ieee", "high": "tf32x3", "medium": "tf32"}[torch.get_float32_matmul_precision()]


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _in_rows(x: torch.Tensor) -> torch.Tensor:
    """A tensor whose features are next to each other."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _strides(x: torch.Tensor) -> tuple[int, int]:
    """Of a matrix, 0 where there is one row or column for all."""
    rows, columns = (0 if size == 1 else stride for size, stride in zip(x.shape, x.stride()))
    return rows, columns


def _ranges(layout: AttentionLayout, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """`layout.ranges` in int32, without padding at their ends."""
    start, stop = layout.ranges(device)
    if layout.real is not None:
        column = torch.arange(layout.keys, device=device)
        start = torch.maximum(start, torch.where(layout.real, column, layout.keys).amin(1, keepdim=True))
        stop = torch.minimum(stop, torch.where(layout.real, column + 1, 0).amax(1, keepdim=True))
    return start.to(torch.int32).contiguous(), stop.to(torch.int32).contiguous()


def _scale(q: torch.Tensor, call: Call, slope: float) -> torch.Tensor:
    """What products of queries and keys are multiplied by, (B or 1, L or 1) float32."""
    counts = call.layout.counts(q.device) if call.activation != "softmax" else q.shape[-1] ** 0.5
    if isinstance(counts, torch.Tensor):
        return slope / counts.clamp(min=1).float()
    return torch.full((1, 1), slope / counts, device=q.device)


def _bounds(start: torch.Tensor, stop: torch.Tensor, keys: int, tile: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For each tile of queries the tiles of keys that it may see, and the other way round.

    Each (B or 1, tiles, 2) int32: the first tile, and one past the last. Ranges that shrink along a row are widened.
    """
    some = start < stop
    low = torch.where(some, start, keys)
    high = torch.where(some, stop, 0).clamp(max=keys)
    missing = (0, -start.shape[1] % tile)
    low = F.pad(low, missing, value=keys).unflatten(1, (-1, tile)).amin(2) // tile
    high = (F.pad(high, missing).unflatten(1, (-1, tile)).amax(2) + tile - 1) // tile
    low, high = low.flip(1).cummin(1).values.flip(1), high.cummax(1).values
    numbers = torch.arange(-(-keys // tile), device=start.device, dtype=low.dtype).repeat(low.shape[0], 1)
    of_keys = (torch.searchsorted(x.contiguous(), numbers, right=True, out_int32=True) for x in (high, low))
    return torch.stack([low, high], dim=2).int().contiguous(), torch.stack(list(of_keys), dim=2)


def forward_pass(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, values: torch.Tensor | None, *given: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output (B, L, h); and for softmax log2 of the sum of each query's weights (B, L), else nothing (0,)."""
    call = Call.of(q, k, given)
    work = _Pass(q, k, v, values, call)
    (batch, queries, z), h = q.shape, v.shape[2]
    output = v.new_empty(batch, queries, h)
    lse = q.new_empty((batch, queries) if call.activation == "softmax" else (0,), dtype=torch.float32)
    blocks = forward_blocks(z, h, q.element_size(), is_large(q.device))
    tiles = -(-queries // blocks.queries)
    with torch.cuda.device_of(q):
        forward_kernel[(batch * tiles, -(-h // blocks.values))](
            *(work.q, work.k, work.v, output, lse, *work.tensors),
            *(*work.lengths, tiles),
            *(*work.q.stride()[:2], *work.k.stride()[:2], *work.v.stride()[:2], *work.strides),
            **work.constants,
            **{"Z": z, "H": h, "WIDTH": max(16, _power_of_two(z))},
            **{"QUERIES": blocks.queries, "KEYS": blocks.keys, "VALUES": blocks.values},
            **{"num_warps": blocks.num_warps, "num_stages": blocks.num_stages},
        )
    return output, lse


def backward_pass(
    needs: Sequence[bool], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, values: torch.Tensor | None, *given: Any
) -> tuple[torch.Tensor | None, ...]:
    """The gradients of q, k, v and the bias' values, None where not needed; summed in float32."""
    output, lse, doutput = given[TENSORS : TENSORS + 3]
    call = Call.of(q, k, given[:TENSORS] + given[TENSORS + 3 :])
    work = _Pass(q, k, v, values, call)
    (batch, queries, z), (_, keys, h) = q.shape, v.shape
    doutput = _in_rows(doutput)
    delta = torch.linalg.vecdot(doutput.float(), output.float()) if call.activation == "softmax" else lse
    dq, dk, dv = (x.new_zeros(x.shape, dtype=torch.float32) for x in (q, k, v))
    ddiagonals = q.new_zeros(batch, queries + keys - 1, dtype=torch.float32)
    # one scale for all comes last, a scale per query before the sum over queries
    uniform = work.scale.numel() == 1
    scaled = work.q if uniform else (work.q * work.scale.unsqueeze(2)).to(q.dtype)
    blocks = backward_blocks(max(queries, keys), q.element_size(), is_large(q.device))
    tile, how = blocks.tile, {"num_warps": blocks.num_warps, "num_stages": blocks.num_stages}
    of_queries, of_keys = _bounds(work.start, work.stop, keys, tile)
    between = (
        0 if of_queries.shape[0] == 1 else of_queries.stride(0),
        0 if of_keys.shape[0] == 1 else of_keys.stride(0),
    )

    def add_product(slab: torch.Tensor, x: torch.Tensor, target: torch.Tensor, place: _Slab, transposed: bool) -> None:
        rows, terms = (place.low, place.key_tiles), (place.start, place.tiles)
        if not transposed:
            rows, terms = terms, rows
        n = x.shape[2]
        columns = min(blocks.columns, max(16, _power_of_two(n)))
        product_kernel[(place.rows * rows[1], -(-n // columns))](
            *(slab, x, target, of_keys if transposed else of_queries),
            *(target.shape[1], x.shape[1], place.first, rows[0], terms[0], rows[1], terms[1]),
            *(*x.stride()[:2], between[transposed]),
            **{"TRANSPOSED": transposed, "PRECISION": precision(), "N": n},
            **{"TILE": tile, "STEP": min(tile, blocks.terms), "COLUMNS": columns, **how},
        )

    with torch.cuda.device_of(q):
        for place in work.slabs(tile):
            shape = place.rows, place.tiles * tile, place.key_tiles * tile
            weights, dscores = v.new_empty(shape), q.new_empty(shape)
            gradients_kernel[(place.rows * place.tiles * place.key_tiles,)](
                *(work.q, work.k, work.v, doutput, weights, dscores, lse, delta, *work.tensors, of_queries),
                *(*work.lengths, place.first, place.start, place.low, place.tiles, place.key_tiles),
                *(*work.q.stride()[:2], *work.k.stride()[:2], *work.v.stride()[:2], *doutput.stride()[:2]),
                *(*work.strides, between[0]),
                **work.constants,
                **{"Z": z, "H": h, "TILE": tile},
                **{"STEP": min(blocks.features, max(16, _power_of_two(z)))},
                **{"VSTEP": min(blocks.features, max(16, _power_of_two(h))), **how},
            )
            if needs[2]:
                add_product(weights, doutput, dv, place, True)
            if needs[1]:
                add_product(dscores, scaled, dk, place, True)
            if needs[0]:
                add_product(dscores, work.k, dq, place, False)
            if values is not None and needs[3]:
                columns = 64
                blocks_of = -(-(shape[1] + shape[2] - 1) // columns)
                diagonals_kernel[(place.rows * blocks_of,)](
                    *(dscores, ddiagonals, of_queries, queries, keys),
                    *(place.first, place.start, place.low, place.tiles, place.key_tiles, between[0]),
                    **{"TILE": tile, "STEP": min(tile, 32), "COLUMNS": columns, "num_warps": 4},
                )
    dq *= work.scale.unsqueeze(2)
    if uniform:
        dk *= work.scale
    return (
        dq.to(q.dtype) if needs[0] else None,
        dk.to(k.dtype) if needs[1] else None,
        dv.to(v.dtype) if needs[2] else None,
        _of_table(ddiagonals * work.slope, values, call) if values is not None and needs[3] else None,
    )


def _of_table(diagonals: torch.Tensor, values: torch.Tensor, call: Call) -> torch.Tensor:
    """The gradient of a bias' values, from sums along the diagonals of each row's scores: (B, L + S - 1)."""
    grad = torch.zeros(values.shape, dtype=torch.float32, device=values.device)
    queries, keys, offset = call.layout.queries, call.layout.keys, call.layout.offset
    table = BiasTable(values, call.zero)
    if isinstance(offset, int):
        first, stop = table.span(-offset, queries, keys)
        low, high = max(first, 0), min(stop, grad.shape[0])
        grad[low:high] = diagonals.sum(0)[low - first : high - first]
    else:
        index = table.window(-offset, queries, keys)
        diagonals = diagonals if index.shape[0] == diagonals.shape[0] else diagonals.sum(0)
        grad.index_add_(0, index.flatten(), diagonals.flatten())
    return grad.to(values.dtype)


_ATTENTION = operator(forward_pass, backward_pass, definition, inputs=4, keeps=(0, 1))
_IN_GRAPHS = graph_operator(
    "attention_triton",
    SCHEMA,
    forward_pass,
    backward_pass,
    lambda q, k, v, *given: [
        v.new_empty(*q.shape[:2], v.shape[2]),
        q.new_empty(q.shape[:2] if given[-2] == "softmax" else (0,), dtype=torch.float32),
    ],
    inputs=4,
    keeps=(0, 1),
)


def attention_triton(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: BiasTable | None,
    layout: AttentionLayout,
    *,
    activation: str = "softmax",
    dropout: float = 0.0,
) -> torch.Tensor:
    """`attention_reference`'s output for every activation and layout, of float32 and half precision."""
    return apply((_ATTENTION, _IN_GRAPHS), q, k, v, bias, layout, activation, dropout)
