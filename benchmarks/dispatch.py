"""The measurements that `mega_transformers.ops.dispatch` stands on: every form of an operator, by length.

    python -m benchmarks.dispatch [--output FILE]

Processor time on one thread, the least of several rounds in which all forms take turns.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import machine, now
from mega_transformers.ops import few_rows
from mega_transformers.ops.attention import attention
from mega_transformers.ops.ema import ema, ema_coefficients
from mega_transformers.ops.layout import self_attention_layout
from mega_transformers.ops.relative_bias import RotaryBias

CHANNELS, STATES, WIDTH, VALUES = 256, 16, 64, 512
LENGTHS = (16, 32, 64, 128, 256, 512)
ROUNDS, BURST = 5, 0.01

Forms = dict[str, Callable[[], Any]]


def ema_forms(length: int, train: bool, rows: int) -> Forms:
    """Both directions."""
    shapes = [(2 * CHANNELS, STATES, 1)] * 3 + [(2 * CHANNELS, STATES)]
    parameters = [torch.randn(shape, requires_grad=train) for shape in shapes]
    x = torch.randn(rows, length, CHANNELS, requires_grad=train)

    def run(form: str) -> Any:
        y, _ = ema(x, ema_coefficients(*parameters), bidirectional=True, backend=form)
        return y.sum().backward() if train else y

    names = ("fft", "chunked", *(("direct",) if length <= 64 else ()))
    return {form: lambda form=form: run(form) for form in names}  # type: ignore[misc]


def attention_forms(length: int, train: bool, activation: str) -> Forms:
    """One row, with rotary bias."""
    bias = RotaryBias(*(torch.randn(WIDTH, requires_grad=train) for _ in range(2)))
    q, k, v = (torch.randn(1, length, width, requires_grad=train) for width in (WIDTH, WIDTH, VALUES))
    layout = self_attention_layout(None, length)

    def run(form: str) -> Any:
        y, _ = attention(q, k, v, bias, layout, activation=activation, backend=form)
        return y.sum().backward() if train else y

    return {form: lambda form=form: run(form) for form in ("reference", "tiled")}  # type: ignore[misc]


def linear_forms(rows: int, outputs: int) -> Forms:
    """Rows times weights that are in no cache."""
    weights = [torch.randn(outputs, CHANNELS) for _ in range(max(1, (32 << 20) // (4 * outputs * CHANNELS)))]
    bias, x, turn = torch.randn(outputs), torch.randn(rows, 1, CHANNELS), [0]

    def run(form: str) -> Any:
        turn[0] = (turn[0] + 1) % len(weights)
        return few_rows.in_form(form, x, weights[turn[0]], bias)

    names = ("linear", "parts", *(("vector",) if rows == 1 else ()))
    return {form: lambda form=form: run(form) for form in names}  # type: ignore[misc]


def microseconds(forms: Forms) -> dict[str, float]:
    """Processor time a call."""
    best = dict.fromkeys(forms, float("inf"))
    for _ in range(ROUNDS):
        for name, call in forms.items():
            call()
            calls, start = 0, time.process_time()
            while calls < 3 or time.process_time() - start < BURST:
                call()
                calls += 1
            best[name] = min(best[name], (time.process_time() - start) / calls)
    return {name: round(1e6 * seconds, 1) for name, seconds in best.items()}


def measure() -> dict[str, Any]:
    """All tables: case -> length or rows -> form -> microseconds."""
    tables: dict[str, Any] = {}
    for train in (False, True):
        what = "training" if train else "inference"
        for rows in (1, 32):
            tables[f"ema, {what}, {rows} rows"] = {length: ema_forms(length, train, rows) for length in LENGTHS[:4]}
        for activation in ("softmax", "laplace"):
            tables[f"attention, {activation}, {what}"] = {
                length: attention_forms(length, train, activation) for length in LENGTHS
            }
    for outputs in (64, 512, 1344, 8192):
        tables[f"linear {outputs} x {CHANNELS}"] = {rows: linear_forms(rows, outputs) for rows in (1, 2, 4, 8, 16)}
    results = {}
    for name, cases in tables.items():
        print(name)
        results[name] = {}
        for size, forms in cases.items():
            with torch.set_grad_enabled("training" in name):
                results[name][size] = microseconds(forms)
            print(
                f"  {size:5d}  " + "  ".join(f"{form} {t:9.1f}" for form, t in results[name][size].items()), flush=True
            )
    return results


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file to write; default: none")
    output = parser.parse_args().output
    torch.set_num_threads(1)
    torch.manual_seed(0)
    facts = {"machine": machine(), "date": now(), "torch": torch.__version__, "threads": 1, "unit": "microseconds"}
    print(facts)
    results = {**facts, "tables": measure()}
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
