"""What is measured on a GPU: `mega bench --device cuda`. Pure data, as cases.py.

Models have width 768 and 12 layers (Mega h = ffn = 1536, z 128, N 16), everything in bfloat16 but Mega's EMA. The most
telling cases come first, since a run may end when its time is up.
"""

from __future__ import annotations

from dataclasses import replace

from .cases import (
    GLA,
    GPT2,
    MAMBA2,
    MODERNBERT,
    MODERNBERT_FLASH,
    OLD,
    TRITON,
    UNCOMPILED,
    Case,
    Comparison,
    Series,
    Target,
    Workload,
)

CHUNK = 1024
TOKENS = 2**17  # of an EMA: its inputs are larger than a card's cache
SMALL_WIDTH, SMALL_LAYERS = 64, 2  # of a quick run

_MODEL = Workload("train", 0, device="cuda", dtype="bfloat16", width=768, layers=12)
_DECODE = replace(_MODEL, task="decode", head="causal-lm", new_tokens=16, compiled=True)
_NONE = Target()


def _train(rows: int, length: int, chunk: int | None = None) -> Comparison:
    chunks = f", Mega in chunks of {chunk}" if chunk else ""
    return Comparison(
        f"gpu-train-{rows}x{length}" + (f"-chunk{chunk}" if chunk else ""),
        f"training step of masked language models, {rows} x {length} tokens{chunks}, softmax, 15% labels",
        replace(_MODEL, batch=rows, length=length, chunk=chunk),
        {TRITON: _NONE, MODERNBERT: _NONE, MODERNBERT_FLASH: _NONE, OLD: _NONE},
    )


def _train_causal(rows: int, length: int, chunk: int | None = None) -> Comparison:
    case = _train(rows, length, chunk)
    return Comparison(
        case.name.replace("train", "train-causal"),
        case.title.replace("masked", "causal").replace("15% labels", "a label at every position"),
        replace(case.workload, head="causal-lm", labelled=1.0),
        {TRITON: _NONE, GPT2: _NONE, MAMBA2: _NONE, GLA: _NONE},
    )


def _decode(rows: int, thousands: int, chunk: int | None = None) -> Comparison:
    chunks = f", Mega in chunks of {chunk}" if chunk else ""
    context = thousands * 1024 + (255 if chunk else 0)  # a step sees a part of its chunk
    return Comparison(
        f"gpu-decode-{rows}x{thousands}k" + (f"-chunk{chunk}" if chunk else ""),
        f"a decoding step of {rows} row{'s' if rows > 1 else ''} behind {context} tokens{chunks}, softmax; ours and "
        "GPT-2 with a static cache and a captured graph, the others with a dynamic cache",
        replace(_DECODE, batch=rows, length=context, chunk=chunk),
        {UNCOMPILED: _NONE, GPT2: _NONE, MAMBA2: _NONE},
    )


def _ema(task: str, what: str) -> Series:
    workload = replace(_MODEL, task=task)
    lengths = (2048, 8192, 32768)
    return Series(
        f"gpu-{task}",
        f"our EMA back ends, {what}, 768 channels x 2 directions, N 16, {TOKENS} tokens in rows of each length",
        {
            backend: tuple(
                replace(workload, backend=backend, batch=TOKENS // length, length=length) for length in lengths
            )
            for backend in ("chunked", "triton")
        },
    )


def _attention(task: str, what: str) -> Series:
    def curve(activation: str, backend: str) -> tuple[Workload, ...]:
        return tuple(
            replace(_MODEL, task=task, attention=activation, backend=backend, batch=batch, length=length)
            for batch, length in ((8, 2048), (2, 8192))
        )

    forms = {"softmax": ("tiled", "fused", "triton"), "laplace": ("tiled", "triton")}
    return Series(
        f"gpu-{task}",
        f"our attention back ends, {what}, full attention, rotary bias, z 128, h 1536",
        {f"{name} {backend}": curve(name, backend) for name, backends in forms.items() for backend in backends},
    )


_ALL: tuple[Case, ...] = (
    _train(8, 2048),
    _attention("attention-forward", "forward"),
    _attention("attention-op", "forward and backward"),
    _ema("ema-forward", "forward"),
    _ema("ema-op", "forward and backward"),
    _decode(1, 1),
    _train_causal(8, 2048),
    _train(2, 8192, CHUNK),
    _train(2, 8192),
    _train(1, 32768, CHUNK),
    _train_causal(1, 32768, CHUNK),
    _decode(32, 16),
    _train(32, 512),
    _train_causal(2, 8192, CHUNK),
    _decode(32, 16, CHUNK),
    _decode(32, 1),
    _decode(1, 16),
)

GPU_CASES: dict[str, Case] = {case.name: case for case in _ALL}
