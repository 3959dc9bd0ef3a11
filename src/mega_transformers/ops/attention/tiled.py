"""Attention in tiles of queries and keys, with memory linear in the length, forward and backward.

Each tile computes its weights against all keys that its queries may see, uses them and drops them; the backward pass
computes them again. On a CPU a tile stays in the processor's cache, which makes this the fastest form there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from ..activations import ELEMENTWISE
from ..dropout import keep_mask, kept_share
from ..layout import AttentionLayout, is_readable
from ..operators import graph_operator, operator
from ..relative_bias import BiasTable, sum_diagonals
from .reference import attention_reference

CPU_BUDGET = 1 << 20
"""Scores in a tile, about, on a CPU."""
DEVICE_BUDGET = 1 << 24
"""The same on other devices."""
TENSORS = 5
"""How many tensors follow q, k, v and the bias: start, stop, real, the offset, and the seed of the dropout."""


@dataclass(frozen=True)
class Call:
    """What is not differentiated. `zero` is that of the `BiasTable`, `seed` the dropout's, `plans` the layout's."""

    layout: AttentionLayout
    zero: int
    activation: str
    dropout: float
    seed: int
    plans: dict[Any, Any]

    @classmethod
    def of(cls, q: torch.Tensor, k: torch.Tensor, given: Sequence[Any]) -> Call:
        """From the plain tensors and values that the operator has: torch.func and graphs look into nothing else."""
        start, stop, real, offsets, seed, offset, chunk, causal, zero, activation, dropout, *known = given
        layout, plans = known or (AttentionLayout(q.shape[1], k.shape[1], causal, chunk), None)
        offset = offset if offsets is None else offsets
        layout = replace(layout, offset=offset, start=start, stop=stop, real=real)
        return cls(layout, zero, activation, dropout, 0 if seed is None else int(seed), {} if plans is None else plans)


class _Tile(NamedTuple):
    """Queries `start ... stop - 1` of the rows `first ... last - 1` over the key columns `low ... high - 1`."""

    first: int
    last: int
    start: int
    stop: int
    low: int
    high: int
    masked: bool

    @property
    def rows(self) -> slice:
        return slice(self.first, self.last)

    @property
    def queries(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def keys(self) -> slice:
        return slice(self.low, self.high)


def _tiles(layout: AttentionLayout, batch: int, budget: int) -> Iterator[_Tile]:
    """Tiles of at most about `budget` scores that cover whatever may be seen.

    Their key columns are as few as values that are on the host tell; elsewhere what causality and chunks leave.
    """
    n, keys = layout.queries, layout.keys
    ranged = layout.start is not None
    # rather twice the budget than products of a few rows
    height = max(1, min(n, max(budget // keys, min(256, 2 * budget // keys))))
    if layout.causal:
        height = min(height, max(64, -(-n // 4)))  # fewer keys for earlier queries
    if ranged:
        height = min(height, layout.chunk or 256)
    together = max(1, budget // (height * keys))
    for start in range(0, n, height):
        stop = min(start + height, n)
        for first in range(0, batch, together):
            last = min(first + together, batch)
            low, high, masked = columns_of(layout, slice(first, last), start, stop)
            if low < high:
                yield _Tile(first, last, start, stop, low, high, masked)


def columns_of(layout: AttentionLayout, rows: slice, start: int, stop: int) -> tuple[int, int, bool]:
    """The key columns that some query of a tile may see, and whether not all of its queries see all of them."""
    low, high, masked = 0, layout.keys, False
    offset = layout.offset
    if layout.causal and isinstance(offset, int):
        high = min(high, offset + stop)
        masked = offset + start + 1 < high
    elif layout.causal:
        masked = True
    if layout.start is not None and layout.stop is not None:
        starts, stops = ((x if x.shape[0] == 1 else x[rows])[:, start:stop] for x in (layout.start, layout.stop))
        if is_readable(starts):
            low, latest = (int(x) for x in starts.aminmax())
            earliest, high = (int(x) for x in stops.aminmax())
            masked = latest > low or earliest < high
        else:
            masked = True
            if layout.chunk is not None and isinstance(offset, int):
                low = max(low, offset + start - layout.chunk + 1)
                high = min(high, offset + stop + layout.chunk - 1)
    if layout.real is not None and not is_readable(layout.real):
        masked = True
    elif layout.real is not None and low < high:
        real = layout.real[rows, low:high]
        used = real.any(dim=0).nonzero()
        if not len(used):
            return 0, 0, True
        low, high = low + int(used[0]), low + int(used[-1]) + 1
        masked = masked or not bool(layout.real[rows, low:high].all())
    return low, high, masked


def _of_rows(x: torch.Tensor, tile: _Tile) -> torch.Tensor:
    return x if x.shape[0] == 1 else x[tile.rows]


class _Pass:
    """One pass over the tiles, forward or backward, of the same inputs."""

    def __init__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, values: torch.Tensor | None, call: Call):
        self.q, self.k, self.v, self.call, self.layout = q, k, v, call, call.layout
        self.softmax = call.activation == "softmax"
        self.slope, self.shift, self.factor = 1.0, 0.0, 1.0
        self.scale: float | torch.Tensor = q.shape[-1] ** -0.5
        if not self.softmax:
            self.activation = ELEMENTWISE[call.activation]
            self.slope, self.shift, self.factor = self.activation[1:4]
            counts = self.layout.counts(q.device)
            wide = torch.promote_types(q.dtype, torch.float32)
            if isinstance(counts, int):
                self.scale = 1.0 / counts
            else:
                self.scale = counts.clamp(min=1).to(wide).reciprocal().unsqueeze(2)
        # slope and shift of an element-wise activation are folded into the bias
        self.folded = values if values is None or self.softmax else (values - self.shift) * self.slope
        self.table = None if self.folded is None else BiasTable(self.folded, call.zero)
        if call.dropout:
            self.factor /= kept_share(call.dropout)
        self.generator = None
        if call.dropout and q.device.type != "meta":
            self.generator = torch.Generator(q.device).manual_seed(call.seed)

        self.memory: dict[str, torch.Tensor] = {}

    def scratch(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Memory that is used again for every tile: fresh pages cost as much as the work in them."""
        size = math.prod(shape)
        memory = self.memory.get(name)
        if memory is None or memory.numel() < size or memory.dtype != dtype:
            memory = self.memory[name] = torch.empty(size, dtype=dtype, device=self.q.device)
        return memory[:size].view(*shape)

    def tiles(self) -> list[_Tile]:
        budget = CPU_BUDGET if self.q.device.type == "cpu" else DEVICE_BUDGET
        plan, plans = (self.q.shape[0], budget), self.call.plans
        if plan not in plans:
            plans[plan] = list(_tiles(self.layout, *plan))
        return plans[plan]

    def distance(self, tile: _Tile) -> int | torch.Tensor:
        """Of the first key to the first query: a number, or (rows,)."""
        first = tile.low - tile.start
        offset = self.layout.offset
        return first - (offset if isinstance(offset, int) else _of_rows(offset, tile))

    def scores(self, tile: _Tile) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores in float32 at least, as the activation's core takes them, and the scaled queries used."""
        queries, keys = self.q[tile.rows, tile.queries], self.k[tile.rows, tile.keys].transpose(1, 2)
        alpha = self.slope
        if isinstance(self.scale, float):
            alpha *= self.scale
        else:
            scale = self.scale if self.scale.shape[0] == 1 else self.scale[tile.rows]
            queries = queries * (scale if scale.shape[1] == 1 else scale[:, tile.queries]).to(queries.dtype)
        if self.table is None:
            scores = torch.bmm(queries, keys).mul_(alpha)
        else:
            distance, rows, columns = self.distance(tile), tile.stop - tile.start, tile.high - tile.low
            if isinstance(distance, int):
                bias = self.table.tile(distance, rows, columns)
            else:
                bias = self.table.tiles(distance, rows, columns)
            if bias.shape[0] == queries.shape[0] and rows > 1 and bias.dtype == queries.dtype:
                scores = bias.baddbmm_(queries, keys, alpha=alpha)  # nobody else uses this part of the bias
            else:
                scores = torch.baddbmm(bias.to(queries.dtype), queries, keys, alpha=alpha)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if self.table is None and self.shift:
            scores.sub_(self.slope * self.shift)
        return scores, queries

    def weights(self, scores: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
        """Weights up to a factor, in the memory of the scores where possible; 0 where `hidden`."""
        if not self.softmax:
            weights = self.activation.core_(scores)
            return weights if hidden is None else weights.masked_fill_(hidden, 0.0)
        if hidden is not None:
            scores.masked_fill_(hidden, torch.finfo(scores.dtype).min)
        weights = torch.softmax(scores, -1, out=scores)
        if hidden is None:
            return weights
        return weights.masked_fill_(hidden, 0.0) if self.layout.has_gaps else weights

    def kept(self, weights: torch.Tensor) -> torch.Tensor:
        """A dropout mask for `weights`; forward and backward pass draw the same ones."""
        mask = self.scratch("kept", weights.shape, weights.dtype)
        return keep_mask(weights.shape, self.call.dropout, weights.dtype, weights.device, self.generator, mask)


def _hidden(layout: AttentionLayout, tile: _Tile, device: torch.device) -> torch.Tensor | None:
    """What the queries of a tile do not see; None if they see all."""
    visible = layout.visible(device, tile.rows, tile.queries, tile.keys) if tile.masked else None
    return None if visible is None else ~visible


def forward_pass(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, values: torch.Tensor | None, *given: Any
) -> tuple[torch.Tensor]:
    """The output (B, L, h), of what `attention_tiled` makes of a layout and the rest."""
    call = Call.of(q, k, given)
    work = _Pass(q, k, v, values, call)
    output = v.new_zeros(*q.shape[:2], v.shape[2]) if call.layout.has_gaps else v.new_empty(*q.shape[:2], v.shape[2])
    for tile in work.tiles():
        scores, _ = work.scores(tile)
        weights = work.weights(scores, _hidden(call.layout, tile, q.device)).to(v.dtype)
        if call.dropout:
            weights = weights.mul_(work.kept(weights))
        _assign(output[tile.rows, tile.queries], weights, v[tile.rows, tile.keys])
    return (output if work.factor == 1.0 else output.mul_(work.factor),)


def backward_pass(
    needs: Sequence[bool], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, values: torch.Tensor | None, *given: Any
) -> tuple[torch.Tensor | None, ...]:
    """The gradients of q, k, v and the bias' values, None where not needed; summed over tiles in float32 at least."""
    output, doutput = given[TENSORS : TENSORS + 2]
    call = Call.of(q, k, given[:TENSORS] + given[TENSORS + 2 :])
    work = _Pass(q, k, v, values, call)
    wide = torch.promote_types(q.dtype, torch.float32)
    covered = work.tiles()
    alone = len(covered) == 1 and covered[0][:2] == (0, q.shape[0]) and covered[0][4:6] == (0, k.shape[1])
    dq = torch.zeros_like(q) if call.layout.has_gaps else torch.empty_like(q)
    dk, dv = (torch.empty_like(x) if alone else torch.zeros(x.shape, dtype=wide, device=x.device) for x in (k, v))
    dvalues = None
    if values is not None and needs[3]:
        dvalues = torch.zeros(values.shape, dtype=wide, device=values.device)
    for tile in covered:
        rows, queries, keys = tile.rows, tile.queries, tile.keys
        hidden = _hidden(call.layout, tile, q.device)
        scores, scaled = work.scores(tile)
        derivative = scores if work.softmax else work.activation.core_derivative(scores)
        weights = work.weights(scores, hidden)
        grad = doutput[rows, queries]
        if work.factor != 1.0:
            grad = grad * work.factor
        dweights = work.scratch("dweights", weights.shape, grad.dtype)
        dweights = torch.bmm(grad, v[rows, keys].transpose(1, 2), out=dweights).to(wide)
        used = weights
        if call.dropout:
            kept = work.kept(weights)
            dweights, used = dweights.mul_(kept), kept.mul_(weights)
        if needs[2]:
            _accumulate(dv[rows, keys], used.to(v.dtype).transpose(1, 2), grad, alone)
        if not (needs[0] or needs[1] or dvalues is not None):
            continue
        if work.softmax:
            delta = (doutput[rows, queries] * output[rows, queries]).sum(-1, keepdim=True).to(wide)
            dscores = dweights.sub_(delta).mul_(weights)
        else:
            dscores = dweights.mul_(derivative)
            if hidden is not None:
                dscores = dscores.masked_fill_(hidden, 0.0)
        if dvalues is not None:
            _add_to_table(dvalues, dscores, work, tile)
        dscores = dscores.to(q.dtype)
        if needs[1]:
            _accumulate(dk[rows, keys], dscores.transpose(1, 2), scaled, alone)
        if needs[0]:
            _assign(dq[rows, queries], dscores, k[rows, keys])
    # a scale per query is in the scaled queries already
    dk.mul_(work.slope * (work.scale if isinstance(work.scale, float) else 1.0))
    dq.mul_(work.scale).mul_(work.slope)
    return (
        dq if needs[0] else None,
        dk.to(k.dtype) if needs[1] else None,
        dv.to(v.dtype) if needs[2] else None,
        None if dvalues is None or values is None else dvalues.to(values.dtype),
    )


def _add_to_table(dvalues: torch.Tensor, dscores: torch.Tensor, work: _Pass, tile: _Tile) -> None:
    """Adds the gradient of a tile's bias to that of the table."""
    distance, rows, columns = work.distance(tile), tile.stop - tile.start, tile.high - tile.low
    assert work.table is not None
    if isinstance(distance, int):
        first, stop = work.table.span(distance, rows, columns)
        low, high = max(first, 0), min(stop, dvalues.shape[0])
        dscores = dscores[0] if dscores.shape[0] == 1 else dscores.sum(0)
        skewed = work.scratch("skewed", (rows, rows + columns - 1), dscores.dtype)
        dvalues[low:high].add_(sum_diagonals(dscores, skewed)[low - first : high - first], alpha=work.slope)
        return
    index = work.table.window(distance, rows, columns)
    dscores = dscores if index.shape[0] == dscores.shape[0] else dscores.sum(0, keepdim=True)
    dvalues.index_add_(0, index.flatten(), sum_diagonals(dscores).flatten(), alpha=work.slope)


def _assign(target: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """target = a @ b, in place where the memory allows."""
    if target.is_contiguous() and target.dtype == a.dtype:
        torch.bmm(a, b, out=target)
    else:
        target.copy_(torch.bmm(a, b))


def _accumulate(target: torch.Tensor, a: torch.Tensor, b: torch.Tensor, first: bool) -> None:
    """target += a @ b, or target = a @ b if nothing is there yet."""
    if first:
        _assign(target, a, b)
    elif target.dtype == a.dtype:
        target.baddbmm_(a, b)
    else:
        target.add_(torch.bmm(a, b))


def definition(q: Any, k: Any, v: Any, values: Any, *given: Any) -> tuple[torch.Tensor]:
    """What is computed, in differentiable operations.

    Raises:
        RuntimeError: with dropout, whose mask is not that of the tiles.
    """
    call = Call.of(q, k, given)
    if call.dropout:
        raise RuntimeError(
            f"second derivatives through attention with dropout={call.dropout} are not available; set "
            "attention_probs_dropout_prob=0, or use attn_implementation='eager'"
        )
    table = None if values is None else BiasTable(values, call.zero)
    return attention_reference(q, k, v, table, call.layout, activation=call.activation)[:1]


SCHEMA = "SymInt offset, SymInt? chunk, bool causal, SymInt zero, str activation, float dropout"
_ATTENTION = operator(forward_pass, backward_pass, definition, inputs=4, keeps=(0,))
_IN_GRAPHS = graph_operator(
    "attention",
    SCHEMA,
    forward_pass,
    backward_pass,
    lambda q, k, v, *_: [v.new_empty(*q.shape[:2], v.shape[2])],
    inputs=4,
    keeps=(0,),
)


def apply(
    operators: tuple[Callable[..., Any], Callable[..., Any]],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: BiasTable | None,
    layout: AttentionLayout,
    activation: str,
    dropout: float,
) -> torch.Tensor:
    """The output of an operator, or in a graph of its node, which take what `Call.of` reads."""
    values, zero = (None, 0) if bias is None else bias
    # drawn on the CPU: no synchronisation, and gradient checkpointing replays it
    seed = torch.randint(2**62, ()) if dropout else None
    offset, offsets = (layout.offset, None) if isinstance(layout.offset, int) else (0, layout.offset)
    tensors = (q, k, v, values, layout.start, layout.stop, layout.real, offsets, seed)
    options = (offset, layout.chunk, layout.causal, zero, activation, dropout)
    if torch.compiler.is_compiling():
        return operators[1](*tensors, options=options)[0]
    # torch.vmap gives every element a layout of its own
    plans = None if torch._C._functorch.maybe_current_level() is not None else layout.plans
    return operators[0](*tensors, options=(*options, layout, plans))[0]


def attention_tiled(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: BiasTable | None,
    layout: AttentionLayout,
    *,
    activation: str = "softmax",
    dropout: float = 0.0,
) -> torch.Tensor:
    """`attention_reference`'s output for every activation and layout, a tile at a time."""
    return apply((_ATTENTION, _IN_GRAPHS), q, k, v, bias, layout, activation, dropout)
