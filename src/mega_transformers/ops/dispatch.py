"""Which implementation of an operator runs: the first row of its table that fits.

Every row but the last of a table stands on a measurement, which `python -m benchmarks.dispatch` repeats; what it found
is in benchmarks/results/dispatch.
"""

from __future__ import annotations

import importlib.util
import os
from typing import NamedTuple

import torch

from .layout import is_open


class Row(NamedTuple):
    """An implementation, and when it is taken; None fits everything.

    Attributes:
        form: The implementation.
        device: `"cpu"`, `"cuda"`, ...
        longest: Tokens in a row (of attention: key columns), at most; not in a graph that is to serve any length.
        stateful: Whether a state goes in or out of the EMA.
        packed: Whether rows hold several documents.
        compiled: Whether a graph is being made, by torch.compile or torch.export.
        exported: Whether that is by torch.export.
        open: Whether it is to serve any length.
        activation: `"softmax"`, `"laplace"` or `"relu2"`.
        fusable: Whether PyTorch's fused kernels have what is asked: bias, dtype, layout.
        queries: The queries of a row; 1 in a decoding step.
        batch: The rows.
        vendor: Who made the processor.
        weights: Least number of weights.
        triton: Whether Triton's kernels are wanted, and can do what is asked.
    """

    form: str
    device: str | None = None
    longest: int | None = None
    stateful: bool | None = None
    packed: bool | None = None
    compiled: bool | None = None
    exported: bool | None = None
    open: bool | None = None
    activation: str | None = None
    fusable: bool | None = None
    queries: int | None = None
    batch: int | None = None
    vendor: str | None = None
    weights: int = 0
    triton: bool | None = None

    def fits(self, length: int, **asked: object) -> bool:
        """Whether the row is for that length and everything else asked."""
        if not all(getattr(self, name) in (None, value) for name, value in asked.items()):
            return False
        return self.longest is None or (not is_open(length) and length <= self.longest)


EMA = (
    Row("step", longest=1, stateful=True),
    Row("triton", triton=True, exported=False),
    # a graph that does not depend on the length; outside of PyTorch, transforms are slow and inexact
    Row("fft", open=True, exported=False, stateful=False, packed=False),
    Row("direct", device="cpu", compiled=False, stateful=False, packed=False, longest=32),
    Row("fft", device="cpu", compiled=False, stateful=False, packed=False, longest=64, batch=1),
    Row("direct", device="cpu", compiled=False, stateful=False, packed=False, longest=64),
    Row("chunked"),
)

ATTENTION = (
    # an exported graph must load without operators of ours
    Row("reference", exported=True),
    Row("reference", queries=1),
    Row("triton", triton=True),
    Row("reference", device="cpu", longest=128),
    Row("fused", activation="softmax", fusable=True),
    Row("tiled"),
)


# a linear layer for `longest` rows: PyTorch's product of a matrix and a vector is far below an AMD processor's memory
LINEAR = (
    Row("parts", vendor="AuthenticAMD", weights=1 << 14, longest=8),
    Row("vector", longest=1),
    Row("linear"),
)


TRITON = "MEGA_TRITON"
"""The environment variable that asks for Triton's kernels, which no row chooses until a GPU has measured them."""


def wants_triton(device: str) -> bool:
    """Whether Triton's kernels are asked for by `MEGA_TRITON=1`, and can run on a type of device."""
    return os.environ.get(TRITON) == "1" and runs_triton(device)


def runs_triton(device: str) -> bool:
    """Whether Triton's kernels can run on a type of device."""
    if importlib.util.find_spec("triton") is None:
        return False
    return device == "cuda" or (device == "cpu" and is_interpreted())


def is_interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU: very slowly, to test them."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def linear_form(vendor: str, rows: int, weights: int) -> str:
    """The form of a linear layer for few rows on a processor."""
    return next(row.form for row in LINEAR if weights >= row.weights and row.fits(rows, vendor=vendor))


def ema_form(device: str, length: int, batch: int, stateful: bool, packed: bool, triton: bool = False) -> str:
    """The form of the EMA for (batch, length) tokens on a type of device."""
    asked = {"device": device, "batch": batch, "stateful": stateful, "packed": packed, "triton": triton}
    return _first(EMA, length, **asked)


def attention_form(device: str, keys: int, queries: int, activation: str, fusable: bool, triton: bool = False) -> str:
    """The form of attention over this number of key columns on a type of device."""
    asked = {"device": device, "queries": queries, "activation": activation, "fusable": fusable, "triton": triton}
    return _first(ATTENTION, keys, **asked)


def _first(table: tuple[Row, ...], length: int, **asked: object) -> str:
    asked |= {"compiled": torch.compiler.is_compiling(), "exported": torch.compiler.is_exporting()}
    return next(row.form for row in table if row.fits(length, open=is_open(length), **asked))
