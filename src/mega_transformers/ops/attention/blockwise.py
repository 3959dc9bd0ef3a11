"""Attention in blocks of queries, with memory linear in the length, forward and backward.

Each block computes its weights against all keys it may see, uses them and drops them; the backward pass computes them
again. On a CPU a block of weights stays in the cache, which makes this the fastest form there, for softmax too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from ..activations import ELEMENTWISE
from ..relative_bias import RelativeBias, sum_diagonals, toeplitz
from ..visibility import Visibility
from .reference import attention_scale

CPU_BUDGET = 1 << 21
GPU_BUDGET = 1 << 26


class _Problem(NamedTuple):
    """What stays the same over the blocks of one call."""

    scale: float | torch.Tensor
    slope: float
    shift: float
    factor: float
    visibility: Visibility
    group_mask: torch.Tensor | None
    group_state: list[str] | None
    activation: str
    dropout: float
    seed: int


def _problem(q: torch.Tensor, visibility: Visibility, activation: str, dropout: float) -> _Problem:
    mask = visibility.expanded_group_mask(q.shape[0])
    state = None
    if mask is not None and mask.device.type == "cpu":
        state = ["all" if full else "some" if some else "none" for full, some in zip(mask.all(1), mask.any(1))]
    # drawn on the CPU: no synchronisation, and gradient checkpointing replays it
    seed = int(torch.randint(2**62, ())) if dropout else 0
    scale = attention_scale(q, visibility, activation)
    slope, shift, factor = (1.0, 0.0, 1.0) if activation == "softmax" else ELEMENTWISE[activation][1:4]
    if mask is not None:
        mask = mask.to(q.device)
    return _Problem(scale, slope, shift, factor, visibility, mask, state, activation, dropout, seed)


def _folded(diagonals: torch.Tensor | None, problem: _Problem) -> torch.Tensor | None:
    """The bias as the activation's core takes it."""
    if diagonals is None or problem.activation == "softmax":
        return diagonals
    return (diagonals - problem.shift) * problem.slope


class _Block(NamedTuple):
    """Queries `rows` of `groups` against the keys before `end`."""

    groups: slice
    rows: slice
    end: int
    bias: torch.Tensor | None
    visible: torch.Tensor | None


def _blocks(problem: _Problem, q: torch.Tensor, diagonals: torch.Tensor | None) -> Iterator[_Block]:
    groups, n, _ = q.shape
    budget = CPU_BUDGET if q.device.type == "cpu" else GPU_BUDGET
    causal, spans = problem.visibility.causal, problem.visibility.spans
    height = max(1, min(n, budget // n))
    if causal:
        height = min(height, max(64, -(-n // 4)))  # fewer keys for earlier rows
    together = max(1, budget // (height * n))
    for start in range(0, n, height):
        rows = slice(start, min(start + height, n))
        end = rows.stop if causal else n
        bias = None
        if diagonals is not None:
            bias = toeplitz(diagonals, rows.stop - start, start)[:, :end].unsqueeze(0)
        triangle = None
        if causal:
            triangle = q.new_ones(1, rows.stop - start, end, dtype=torch.bool).tril_(start)
        for group in range(0, groups, together):
            some = slice(group, min(group + together, groups))
            visible = triangle
            if problem.group_mask is not None:
                states = {"some"} if problem.group_state is None else set(problem.group_state[some])
                if states == {"none"}:
                    continue
                if states != {"all"}:
                    real = problem.group_mask[some, None, :end]
                    visible = real if visible is None else visible & real
            if spans is not None:
                keys = torch.arange(end, device=q.device)
                first, last = (s.expand(groups, n)[some, rows].unsqueeze(-1) for s in spans)
                inside = (keys >= first) & (keys < last)
                visible = inside if visible is None else visible & inside
            yield _Block(some, rows, end, bias, visible)


def _scores(problem: _Problem, block: _Block, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (g, rows, end) in float32 at least, as the activation's core takes them, and the queries used."""
    queries, keys = q[block.groups, block.rows], k[block.groups, : block.end].transpose(1, 2)
    alpha = problem.slope
    if isinstance(problem.scale, float):
        alpha *= problem.scale
    else:
        scale = problem.scale.expand(q.shape[0], -1, -1)[block.groups, block.rows]
        queries = queries * scale.to(queries.dtype)
    if block.bias is None:
        scores = torch.bmm(queries, keys).mul_(alpha)
    elif q.shape[0] == 1 and block.bias.dtype == queries.dtype:
        scores = block.bias.baddbmm_(queries, keys, alpha=alpha)  # nobody else uses this block of the bias
    else:
        scores = torch.baddbmm(block.bias.to(queries.dtype), queries, keys, alpha=alpha)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if block.bias is None and problem.shift:
        scores.sub_(problem.slope * problem.shift)
    return scores, queries


def _weights(problem: _Problem, block: _Block, scores: torch.Tensor) -> torch.Tensor:
    """Weights but for the activation's factor, in the memory of the scores where possible."""
    if problem.activation != "softmax":
        weights = ELEMENTWISE[problem.activation].core_(scores)
        return weights if block.visible is None else weights.masked_fill_(~block.visible, 0.0)
    if block.visible is not None:
        scores = scores.masked_fill_(~block.visible, float("-inf"))
    weights = scores.softmax(-1)
    rows_without_keys = problem.group_mask is not None or problem.visibility.spans is not None
    if block.visible is not None and rows_without_keys:
        weights = weights.masked_fill_(~block.visible, 0.0)
    return weights


def _generator(problem: _Problem, device: torch.device) -> torch.Generator | None:
    if not problem.dropout:
        return None
    return torch.Generator(device).manual_seed(problem.seed)


def _drop(weights: torch.Tensor, problem: _Problem, generator: torch.Generator) -> torch.Tensor:
    """A dropout factor of the shape of `weights`: 0 or 1 / (1 - p)."""
    keep = 1.0 - problem.dropout
    return torch.empty_like(weights).bernoulli_(keep, generator=generator).div_(keep)


class _BlockwiseAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, diagonals, problem: _Problem):
        output = torch.zeros_like(v) if problem.group_mask is not None else torch.empty_like(v)
        generator = _generator(problem, q.device)
        for block in _blocks(problem, q, _folded(diagonals, problem)):
            scores, _ = _scores(problem, block, q, k)
            weights = _weights(problem, block, scores).to(v.dtype)
            if generator is not None:
                weights = weights * _drop(weights, problem, generator)
            _assign(output[block.groups, block.rows], weights, v[block.groups, : block.end])
        if problem.factor != 1.0:
            output.mul_(problem.factor)
        ctx.save_for_backward(q, k, v, diagonals, output)
        ctx.problem = problem
        return output

    @staticmethod
    def backward(ctx, doutput):
        if torch.is_grad_enabled():
            raise RuntimeError(
                'blockwise attention has no second derivatives; backend="reference" has, and models with '
                'attn_implementation="eager"'
            )
        q, k, v, diagonals, output = ctx.saved_tensors
        problem: _Problem = ctx.problem
        softmax = problem.activation == "softmax"
        n = q.shape[1]
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        ddiagonals = None if diagonals is None else torch.zeros_like(diagonals)
        generator = _generator(problem, q.device)
        for block in _blocks(problem, q, _folded(diagonals, problem)):
            groups, rows, end = block.groups, block.rows, block.end
            scores, queries = _scores(problem, block, q, k)
            derivative = scores if softmax else ELEMENTWISE[problem.activation].core_derivative(scores)
            weights = _weights(problem, block, scores)
            grad = doutput[groups, rows]
            if problem.factor != 1.0:
                grad = grad * problem.factor
            dweights = torch.bmm(grad, v[groups, :end].transpose(1, 2)).to(weights.dtype)
            used = weights
            if generator is not None:
                drop = _drop(weights.to(v.dtype), problem, generator).to(weights.dtype)
                used = weights * drop
                dweights = dweights.mul_(drop)
            whole = rows.stop - rows.start == n  # no other block adds to these keys
            _accumulate(dv[groups, :end], used.to(v.dtype).transpose(1, 2), grad, whole)
            if softmax:
                delta = (grad * output[groups, rows]).sum(-1, keepdim=True).to(weights.dtype)
                dscores = dweights.sub_(delta).mul_(weights)
            else:
                dscores = dweights.mul_(derivative)
                if block.visible is not None:
                    dscores = dscores.masked_fill_(~block.visible, 0.0)
            if ddiagonals is not None:
                low = n - rows.stop
                band = sum_diagonals(dscores.sum(0))
                ddiagonals[low : low + band.numel()] += problem.slope * band
            dscores = dscores.to(q.dtype)
            _accumulate(dk[groups, :end], dscores.transpose(1, 2), queries, whole)
            _assign(dq[groups, rows], dscores, k[groups, :end])
        # a scale per query is in `queries` already
        dk.mul_(problem.slope * (problem.scale if isinstance(problem.scale, float) else 1.0))
        return dq.mul_(problem.scale).mul_(problem.slope), dk, dv, ddiagonals, None


def _assign(target: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """target = a @ b, in place where the memory allows."""
    if target.is_contiguous():
        torch.bmm(a, b, out=target)
    else:
        target.copy_(torch.bmm(a, b))


def _accumulate(target: torch.Tensor, a: torch.Tensor, b: torch.Tensor, first: bool) -> None:
    """target += a @ b, or target = a @ b if nothing is there yet."""
    if first:
        _assign(target, a, b)
    else:
        target.baddbmm_(a, b)


def attention_blockwise(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: RelativeBias | None,
    visibility: Visibility,
    *,
    activation: str = "softmax",
    dropout: float = 0.0,
) -> torch.Tensor:
    """`attention_reference`'s output for every activation, a block of queries at a time."""
    diagonals = None if bias is None else bias.diagonals(q.shape[1])
    return _BlockwiseAttention.apply(q, k, v, diagonals, _problem(q, visibility, activation, dropout))
