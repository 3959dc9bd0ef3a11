"""A linear layer for a few rows, as in decoding steps, whose only cost is reading the weights."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from .dispatch import linear_form
from .layout import is_open

MOST_ROWS = 8
PARTS = 4


def are_few_rows(x: torch.Tensor) -> bool:
    """Whether `linear_few_rows` may be faster for x (..., d): a few rows on a CPU, without a gradient."""
    return (
        x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.compiler.is_exporting()
        and not is_open(x.numel())
        and 0 < x.numel() <= MOST_ROWS * x.shape[-1]
        and not torch.is_autocast_enabled("cpu")
    )


def _vendor() -> str:
    """Who made the processor, as /proc/cpuinfo names it; "" if that cannot be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


VENDOR = _vendor()  # read at import, since a graph may be under construction later


def linear_few_rows(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`F.linear`, in the form that `ops.dispatch` chooses for few rows on this processor.

    Args:
        x: (..., d).
        weight: (V, d).
        bias: (V,) or None.

    Returns:
        (..., V).
    """
    outputs, width = weight.shape
    if not are_few_rows(x) or weight.dtype not in (torch.float32, torch.float64) or not weight.is_contiguous():
        return F.linear(x, weight, bias)
    return in_form(linear_form(VENDOR, x.numel() // width, outputs * width), x, weight, bias)


def in_form(form: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`F.linear` as `"linear"`, as `"vector"` (one row), or as `"parts"` (a number of outputs that can be divided)."""
    outputs, width = weight.shape
    if form == "vector":
        vector = x.reshape(width)
        product = torch.mv(weight, vector) if bias is None else torch.addmv(bias, weight, vector)
        return product.view(*x.shape[:-1], outputs)
    if form == "parts" and outputs % PARTS == 0:
        return _in_parts(x, weight, bias, x.numel() // width).view(*x.shape[:-1], outputs)
    return F.linear(x, weight, bias)


def _in_parts(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, rows: int) -> torch.Tensor:
    """A batched product of parts of the weights."""
    outputs, width = weight.shape
    # the transposed rows for each part; strides that say so make the product several times as fast
    columns = x.contiguous().as_strided((PARTS, width, rows), (0, 1, width))
    matrices = weight.view(PARTS, -1, width)
    if bias is None:
        product = torch.bmm(matrices, columns)
    else:
        product = torch.baddbmm(bias.view(PARTS, -1, 1), matrices, columns)
    return product if rows == 1 else product.view(outputs, rows).t().contiguous()
