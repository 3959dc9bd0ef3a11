"""Writes a model's folder tensor by tensor, and moves it to its place when it is complete."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import ConversionError
from .plan import Plan
from .reading import Progress
from .reference import AVERAGE

WEIGHTS = "model.safetensors"
NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
SPARE = 1 << 24
"""Bytes for everything except the weights."""


def check_output(output: Path, source: Path, force: bool) -> None:
    """Refuses an output that exists already or cannot be written.

    Raises:
        ConversionError: for such a place; with `force`, only for a folder that does not hold a model.
    """
    if not output.parent.is_dir():
        raise ConversionError(f"there is no folder {output.parent} to write {output.name} to")
    if not output.exists() and not output.is_symlink():
        return
    if not output.is_dir():
        raise ConversionError(f"{output} is a file; name a folder that does not exist yet")
    if not force:
        raise ConversionError(f"{output} exists already; name another folder, or replace this one with --force")
    resolved = output.resolve()
    if resolved == source.resolve() or resolved in source.resolve().parents:
        raise ConversionError(f"{output} holds the source, {source}, and is not replaced")
    if output.is_symlink():
        raise ConversionError(f"{output} is a link to {resolved} and is not replaced")
    if any(output.iterdir()) and not (output / "config.json").is_file():
        raise ConversionError(f"{output} does not hold a model (it has no config.json) and is not replaced")


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `output` at the end; after an error it is removed and `output` is
    unchanged.

    Raises:
        ConversionError: if the disk is full.
    """
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    previous = output.with_name(f".{output.name}.{os.getpid()}.previous")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        if output.exists():
            output.rename(previous)
        partial.rename(output)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ConversionError(f"{output.parent} has no space left for the model; nothing was written") from error
        raise ConversionError(f"{output} cannot be written: {error.strerror or error}") from error
    finally:
        if previous.exists() and not output.exists():
            previous.rename(output)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(previous, ignore_errors=True)


def stored_dtype(name: str, tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The dtype that a tensor of our `name` is stored in; the moving average's decays need float32."""
    if not tensor.is_floating_point():
        return tensor.dtype
    return torch.float32 if any(part in name for part in AVERAGE) else dtype


def write_weights(
    plan: Plan, shapes: dict[str, torch.Size], dtype: torch.dtype, folder: Path, progress: Progress
) -> int:
    """Writes model.safetensors, with one tensor at a time in memory; returns its bytes.

    Raises:
        ConversionError: for numbers that are not finite, or not in `dtype`.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(shapes):
        kind = stored_dtype(name, _source(plan, name), dtype)
        if kind not in NAMES:
            raise ConversionError(f"{plan.names[name]} has the dtype {kind}, which no Mega weight has")
        begin, end = end, end + shapes[name].numel() * kind.itemsize
        header[name] = {"dtype": NAMES[kind], "shape": list(shapes[name]), "data_offsets": [begin, end]}
    _check_space(folder, end)
    start = json.dumps(header, separators=(",", ":")).encode()
    start += b" " * (-len(start) % 8)
    with (folder / WEIGHTS).open("wb") as file:
        file.write(len(start).to_bytes(8, "little"))
        file.write(start)
        for name in sorted(shapes):
            tensor = _final(plan, name, shapes[name], dtype)
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
            progress("Writing weights", header[name]["data_offsets"][1], end)
        file.flush()
        os.fsync(file.fileno())
    return end


def _source(plan: Plan, name: str) -> Tensor:
    """The source's tensor for our name, or a zero."""
    theirs = plan.names[name]
    return torch.zeros(()) if theirs is None else plan.tensors[theirs]


def _final(plan: Plan, name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The tensor in its stored form."""
    tensor = _source(plan, name)
    final = tensor.to(stored_dtype(name, tensor, dtype))
    if final.is_floating_point() and not bool(torch.isfinite(final).all()):
        what = "does not fit" if bool(torch.isfinite(tensor).all()) else "holds inf or nan, which is not valid in"
        raise ConversionError(f"{plan.names[name]} {what} {final.dtype}".replace("torch.", ""))
    if final.shape != shape:
        # zeros for a whole tensor, or to fill up a shorter bias
        longer = final.new_zeros(shape)
        longer.view(-1)[: final.numel()] = final.view(-1)
        final = longer
    return final.contiguous()


def _check_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size + SPARE > free:
        raise ConversionError(
            f"{folder.parent} has no space left for the model: it takes {(size + SPARE) / 1e9:.2f} GB, and "
            f"{free / 1e9:.2f} GB are free"
        )
