"""Reads fairseq's checkpoints: one file or several parts, with the arguments of the training."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .arguments import Arguments
from .errors import ConversionError
from .reading import Inert, Progress, read_state, read_torch

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
PART = re.compile(r"(?P<start>.*?)[-_.]?(?P<kind>model[-_]part|part|shard|rank)[-_]?(?P<number>\d+)(?P<end>.*)")
AVERAGES = ("model_ema", "ema", "ema_model")
"""The keys of a moving average of the weights, beside `model`, in its place or within `extra_state`."""


@dataclass
class Checkpoint:
    """The contents of a file.

    Args:
        arguments: The arguments of the training, without defaults.
        tensors: The state dict.
        files: Their files.
        facts: Other facts: architecture, number of updates.
        notes: Notes for the user.
    """

    arguments: Arguments
    tensors: dict[str, Tensor]
    files: list[Path]
    facts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def find_files(path: Path) -> list[Path]:
    """The file and the other parts of its checkpoint; for a folder, the files of its checkpoint.

    Raises:
        ConversionError: for a folder with no checkpoint or several, and for a missing part.
    """
    if path.is_file():
        parts = _parts(path)
        return parts if len(parts) > 1 else [path]
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
    if not files:
        raise ConversionError(
            f"{path} holds no checkpoint: neither config.json of a transformers model, nor model_args.pkl of a masked "
            "language model, nor a .pt file of fairseq"
        )
    groups = {tuple(_parts(file)) for file in files}
    if len(groups) > 1:
        shown = ", ".join(file.name for file in files[:4]) + (", …" if len(files) > 4 else "")
        raise ConversionError(f"{path} holds several checkpoints ({shown}); give the file to convert")
    return list(groups.pop())


def _parts(path: Path) -> list[Path]:
    """All parts of the checkpoint that `path` belongs to, by number."""
    match = PART.fullmatch(path.name)
    if match is None:
        return [path]
    parts = {}
    for file in path.parent.iterdir():
        other = PART.fullmatch(file.name)
        if other is not None and other.group("start", "kind", "end") == match.group("start", "kind", "end"):
            parts[int(other.group("number"))] = file
    first = min(parts)
    expected = range(first, first + len(parts))
    if first > 1 or sorted(parts) != list(expected) or (first, len(parts)) == (1, 1):
        raise ConversionError(
            f"{path} is one of several parts, and some are missing: only these were found: {sorted(parts)}"
        )
    return [parts[number] for number in expected]


def read_checkpoint(path: Path, averaged: bool, progress: Progress) -> Checkpoint:
    """Reads a file or all its parts.

    Args:
        path: A file or a folder.
        averaged: Whether to read the moving average of the weights, which a file may also hold.
        progress: Called with the progress.

    Raises:
        ConversionError: for files that are damaged or hold something else.
    """
    files = find_files(path)
    result: Checkpoint | None = None
    for file in files:
        part = _read_file(file, averaged, progress)
        if result is None:
            result = part
            continue
        for name, tensor in part.tensors.items():
            known = result.tensors.setdefault(name, tensor)
            if known is not tensor and (known.shape != tensor.shape or not torch.equal(known, tensor)):
                raise ConversionError(
                    f"{name} differs between {files[0].name} and {file.name}: parts of one tensor cannot be joined"
                )
    assert result is not None
    result.files = files
    return result


def _read_file(path: Path, averaged: bool, progress: Progress) -> Checkpoint:
    content = read_torch(path, progress)
    if not isinstance(content, dict):
        raise ConversionError(f"{path} holds {type(content).__name__}, which is not a checkpoint of fairseq")
    if content.get("args") is not None:
        values, where = _attributes(content["args"], path, "args"), "args"
    elif content.get("cfg") is not None:
        values, where = _flattened(_attributes(content["cfg"], path, "cfg"), path), "cfg"
    else:
        raise ConversionError(
            f"{path} is a PyTorch file, but not a checkpoint of fairseq: it holds neither args nor cfg"
            + (f", only {', '.join(str(name) for name in list(content)[:4])}" if content else "")
        )
    states = _states(content)
    averages = [name for name in states if name != "model"]
    if averaged and not averages:
        raise ConversionError(f"{path} holds no moving average of its weights; leave --weights out")
    if not states:
        raise ConversionError(f"{path} holds arguments, but no weights (model)")
    name = averages[0] if averaged or "model" not in states else "model"
    checkpoint = Checkpoint(Arguments(values, where), read_state(states[name], f"{path}: {name}"), [path])
    if name != "model":
        checkpoint.facts["weights"] = f"moving average ({name})"
    elif averages:
        checkpoint.notes.append(
            f"the file also holds a moving average of the weights ({averages[0]}); --weights ema converts that"
        )
    for name in ("arch", "task"):
        if isinstance(values.get(name), str):
            checkpoint.facts[name] = values[name][:60]
    history = content.get("optimizer_history")
    if isinstance(history, list) and history and isinstance(history[-1], dict):
        updates = history[-1].get("num_updates")
        if isinstance(updates, int):
            checkpoint.facts["updates"] = f"{updates:,}"
    return checkpoint


def _states(content: dict[Any, Any]) -> dict[str, Any]:
    """State dicts by their place in the file."""
    found = {name: content.get(name) for name in ("model", *AVERAGES)}
    extra = content.get("extra_state")
    if isinstance(extra, dict):
        found |= {f"extra_state.{name}": extra.get(name) for name in AVERAGES}
    return {name: state for name, state in found.items() if isinstance(state, dict) and state}


def _attributes(value: Any, path: Path, name: str) -> dict[str, Any]:
    if isinstance(value, argparse.Namespace):
        return dict(vars(value))
    if isinstance(value, Mapping):
        return dict(value)
    kind = "an unknown class" if isinstance(value, Inert) else type(value).__name__
    raise ConversionError(f"{path}: {name} must be a Namespace or a dict, but is {kind}")


def _flattened(sections: dict[str, Any], path: Path) -> dict[str, Any]:
    """The arguments in the sections of a `cfg`; those of the model override others of the same name."""
    if "model" not in sections or sections["model"] is None:
        raise ConversionError(f"{path}: cfg has no section model")
    values: dict[str, Any] = {}
    for name in [*(name for name in sections if name != "model"), "model"]:
        if isinstance(sections[name], (argparse.Namespace, Mapping)):
            values |= _attributes(sections[name], path, f"cfg.{name}")
    return values
