"""Cross entropy of a linear layer's outputs without keeping their log-probabilities or gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .autocast import no_autocast
from .second_derivatives import gradients_with_graph

CPU_BUDGET = 1 << 21
GPU_BUDGET = 1 << 27


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, labels, ignore_index):
        logits = F.linear(hidden, weight, bias)
        counted = labels != ignore_index
        rows = counted.nonzero().squeeze(1)
        dense = rows.numel() == labels.numel()
        wide = torch.promote_types(logits.dtype, torch.float32)
        normalizer = torch.empty(rows.numel(), dtype=wide, device=logits.device)
        total = torch.zeros((), dtype=wide, device=logits.device)
        for start, some in _row_blocks(logits, rows, dense):
            scores = logits[some].to(wide)
            block = torch.logsumexp(scores, dim=-1)
            normalizer[start : start + block.numel()] = block
            total += (block - scores.gather(1, labels[some].unsqueeze(1)).squeeze(1)).sum()
        ctx.save_for_backward(hidden, weight, bias, labels, logits, rows, normalizer)
        ctx.dense, ctx.ignore_index = dense, ignore_index
        ctx.set_materialize_grads(False)
        return total, logits

    @staticmethod
    def backward(ctx, dtotal, dlogits):
        hidden, weight, bias, labels, logits, rows, normalizer = ctx.saved_tensors
        if torch.is_grad_enabled():  # for second derivatives

            def plain(hidden, weight, bias):
                logits = F.linear(hidden, weight, bias)
                wide = logits.to(normalizer.dtype)
                return F.cross_entropy(wide, labels, ignore_index=ctx.ignore_index, reduction="sum"), logits

            return *gradients_with_graph(plain, (hidden, weight, bias), (dtotal, dlogits)), None, None
        dhidden = torch.zeros_like(hidden)
        dweight = torch.zeros_like(weight)
        dbias = None if bias is None else torch.zeros_like(bias)
        if dlogits is not None:
            dhidden += dlogits @ weight
            dweight += dlogits.t() @ hidden
            if dbias is not None:
                dbias += dlogits.sum(0)
        if dtotal is not None:
            for start, some in _row_blocks(logits, rows, ctx.dense):
                block = logits[some].to(normalizer.dtype)
                grad = (block - normalizer[start : start + block.shape[0]].unsqueeze(1)).exp_()
                grad.scatter_add_(1, labels[some].unsqueeze(1), torch.full_like(grad[:, :1], -1.0))
                grad = grad.mul_(dtotal).to(hidden.dtype)
                dhidden[some] += grad @ weight
                dweight.addmm_(grad.t(), hidden[some])
                if dbias is not None:
                    dbias += grad.sum(0)
        return dhidden, dweight, dbias, None, None


def _row_blocks(logits, rows, dense):
    """Pieces of the rows that count: where each starts among them, and its rows as a slice or as indices."""
    budget = CPU_BUDGET if logits.device.type == "cpu" else GPU_BUDGET
    size = max(1, budget // logits.shape[-1])
    for start in range(0, rows.numel(), size):
        yield start, slice(start, min(start + size, rows.numel())) if dense else rows[start : start + size]


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    ignore_index: int = -100,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of cross entropies of `F.linear(hidden, weight, bias)`, and these logits.

    Equal to `F.cross_entropy(logits, labels, reduction="sum")` with its gradients, for the logits too; but the
    log-probabilities and the logits' gradient only ever exist for a few rows, and not at all for ignored ones.

    Args:
        hidden: (T, d).
        weight: (V, d).
        bias: (V,) or None.
        labels: (T,) int64 below V; `ignore_index` does not count.
        ignore_index: The label to ignore.

    Returns:
        The sum (a scalar, float32 at least), and the logits (T, V).
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    with no_autocast(device):
        return _LinearCrossEntropy.apply(hidden, weight, bias, labels, ignore_index)
