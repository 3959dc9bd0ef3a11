"""Cross entropy of a linear layer's outputs without keeping their log-probabilities or gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from .autocast import autocast_dtype, no_autocast
from .layout import is_readable
from .operators import graph_operator, operator

CPU_BUDGET = 1 << 21
DEVICE_BUDGET = 1 << 25


def forward_pass(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The sum, the logits (T, V), and the normalisers (T,) of the log-probabilities."""
    logits = F.linear(hidden, weight, bias)
    wide = torch.promote_types(logits.dtype, torch.float32)
    normalizer = torch.zeros(labels.shape, dtype=wide, device=logits.device)
    total = torch.zeros((), dtype=wide, device=logits.device)
    for rows in _rows(logits, labels, ignore_index):
        scores, wanted = logits[rows].to(wide), labels[rows]
        some = torch.logsumexp(scores, dim=-1)
        normalizer[rows] = some
        losses = some - scores.gather(1, wanted.clamp(min=0).unsqueeze(1)).squeeze(1)
        total += losses.masked_fill(wanted == ignore_index, 0.0).sum()
    return total, logits, normalizer


def backward_pass(
    needs: Sequence[bool],
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    logits: torch.Tensor,
    normalizer: torch.Tensor,
    dtotal: torch.Tensor | None,
    dlogits: torch.Tensor | None,
    ignore_index: int,
) -> list[torch.Tensor | None]:
    """The gradients of hidden, weight and bias, None where not needed; those of weight and bias summed in float32."""
    wide = normalizer.dtype
    dhidden = torch.zeros_like(hidden) if needs[0] else None
    dweight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if needs[1] else None
    dbias = torch.zeros(bias.shape, dtype=wide, device=bias.device) if bias is not None and needs[2] else None

    def add(rows: Any, grad: torch.Tensor) -> None:
        grad_in = grad.to(hidden.dtype)
        if dhidden is not None:
            dhidden[rows] += grad_in @ weight
        if dweight is not None:
            if dweight.dtype == grad_in.dtype:
                dweight.addmm_(grad_in.t(), hidden[rows])
            else:
                dweight.add_(grad_in.t() @ hidden[rows])
        if dbias is not None:
            dbias.add_(grad.sum(0, dtype=wide))

    if dlogits is not None:
        add(slice(None), dlogits)
    if dtotal is not None:
        for rows in _rows(logits, labels, ignore_index):
            wanted = labels[rows]
            grad = (logits[rows].to(wide) - normalizer[rows].unsqueeze(1)).exp_()
            grad.scatter_add_(1, wanted.clamp(min=0).unsqueeze(1), torch.full_like(grad[:, :1], -1.0))
            add(rows, grad.mul_((wanted != ignore_index).to(wide).unsqueeze(1) * dtotal))
    return [
        dhidden,
        None if dweight is None else dweight.to(weight.dtype),
        None if dbias is None or bias is None else dbias.to(bias.dtype),
    ]


def _rows(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> Iterator[slice | torch.Tensor]:
    """Pieces of the rows with a label, or of all rows if finding them would need a synchronisation."""
    size = max(1, (CPU_BUDGET if logits.device.type == "cpu" else DEVICE_BUDGET) // logits.shape[-1])
    if is_readable(labels):
        counted = (labels != ignore_index).nonzero().squeeze(1)
        if counted.numel() < labels.numel():
            yield from (counted.split(size) if counted.numel() else ())
            return
    for start in range(0, labels.shape[0], size):
        yield slice(start, min(start + size, labels.shape[0]))


def _plain(hidden: Any, weight: Any, bias: Any, labels: Any, ignore_index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition, in differentiable operations."""
    logits = F.linear(hidden, weight, bias)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide, labels, ignore_index=ignore_index, reduction="sum"), logits


def _like_results(hidden: Any, weight: Any, bias: Any, labels: Any, ignore_index: int) -> list[torch.Tensor]:
    wide = torch.promote_types(hidden.dtype, torch.float32)
    total, normalizer = (hidden.new_empty(shape, dtype=wide) for shape in ((), labels.shape))
    return [total, hidden.new_empty(hidden.shape[0], weight.shape[0]), normalizer]


_PLACES: Any = {"inputs": 3, "outputs": 2, "keeps": (1, 2)}
_LOSS = operator(forward_pass, backward_pass, _plain, **_PLACES)
_IN_GRAPHS = graph_operator(
    "linear_cross_entropy", "int ignore_index", forward_pass, backward_pass, _like_results, **_PLACES
)


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    ignore_index: int = -100,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of cross entropies of `F.linear(hidden, weight, bias)`, and these logits.

    Equal to `F.cross_entropy(logits, labels, reduction="sum")` and its gradients, including those of the logits. But
    log-probabilities and the logits' gradient exist for only a few rows at a time, and on a CPU not for ignored rows.

    Args:
        hidden: (T, d).
        weight: (V, d).
        bias: (V,) or None.
        labels: (T,) int64 below V; `ignore_index` is skipped.
        ignore_index: The label to ignore.

    Returns:
        The sum (a scalar, float32 at least), and the logits (T, V).
    """
    device = hidden.device.type
    dtype = autocast_dtype(device)
    if dtype is not None:
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    with no_autocast(device):
        run = _IN_GRAPHS if torch.compiler.is_compiling() else _LOSS
        total, logits, _ = run(hidden, weight, bias, labels, options=(ignore_index,))
    return total, logits
