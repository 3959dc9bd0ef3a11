"""`--device` and `--dtype`: the device and the number format of a command's model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from .runtime import UserError

if TYPE_CHECKING:
    import torch

AUTO = "auto"
DTYPES = ("float32", "bfloat16", "float16")
DEVICE_PATTERN = re.compile(r"cpu|mps|cuda(:\d+)?")

DeviceOption = Annotated[
    str,
    typer.Option(
        help="Device to run the model on: auto, cpu, cuda, cuda:N or mps. auto is an accelerator if there is one, "
        "else the CPU. Example: --device cuda:1",
        autocompletion=lambda incomplete: [
            name for name in (AUTO, "cpu", "cuda", "mps") if name.startswith(incomplete)
        ],
    ),
]
DTypeOption = Annotated[
    str,
    typer.Option(
        "--dtype",
        help="Number format of the model: auto, float32, bfloat16 or float16. auto is float32, the most exact. "
        "Example: --dtype bfloat16",
        autocompletion=lambda incomplete: [name for name in (AUTO, *DTYPES) if name.startswith(incomplete)],
    ),
]


@dataclass(frozen=True)
class Placement:
    """The device of a model and the number format of its weights."""

    device: torch.device
    dtype: torch.dtype


def check_names(device: str = AUTO, dtype: str = AUTO) -> None:
    """Refuses values of `--device` and `--dtype` that are never valid, without importing torch.

    Raises:
        UserError: names the option, its value and what would be right.
    """
    if device != AUTO and not DEVICE_PATTERN.fullmatch(device):
        raise UserError(f"--device {device}: expected auto, cpu, cuda, cuda:N or mps")
    if dtype not in (AUTO, *DTYPES):
        raise UserError(f"--dtype {dtype}: expected auto, {_or(DTYPES)}")


def resolve_placement(device: str = AUTO, dtype: str = AUTO) -> Placement:
    """The device and dtype for the values of `--device` and `--dtype`. Imports torch.

    Raises:
        UserError: see `resolve_device` and `resolve_dtype`.
    """
    place = resolve_device(device)
    return Placement(place, resolve_dtype(dtype, place))


def resolve_device(name: str = AUTO) -> torch.device:
    """The device for a value of `--device`. "auto" is the first of cuda, mps and cpu that is available.

    Raises:
        UserError: for an unknown name or a device that is not available.
    """
    import torch

    found = available_devices()
    if name == AUTO:
        return torch.device(found[-1].partition(":")[0])
    check_names(device=name)
    kind = name.partition(":")[0]
    same = [device for device in found if device.partition(":")[0] == kind]
    if not same:
        raise UserError(
            f"--device {name}: this PyTorch finds no {'CUDA' if kind == 'cuda' else 'MPS'} device; it has "
            f"{_or(found)}; leave out --device, or give --device {found[-1]}"
        )
    if ":" in name and name not in same:
        raise UserError(f"--device {name}: there is no such device; give {_or(sorted(same))}")
    return torch.device(name)


def available_devices() -> list[str]:
    """The devices that this PyTorch finds, from "cpu" to the preferred one: ["cpu", "cuda:1", "cuda:0"]."""
    import torch

    mps = ["mps"] if torch.backends.mps.is_available() else []
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return ["cpu", *mps, *(f"cuda:{index}" for index in reversed(range(count)))]


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype for a value of `--dtype`. "auto" is float32.

    Raises:
        UserError: for an unknown name or a format that the device cannot compute in.
    """
    import torch

    if name == AUTO:
        return torch.float32
    check_names(dtype=name)
    dtype: torch.dtype = getattr(torch, name)
    try:
        _try_operators(device, dtype)
    except (RuntimeError, TypeError) as error:  # PyTorch raises either one for a missing operator
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"--dtype {name}: the device {device} cannot compute in it ({reason}); leave out --dtype, or give "
            "--dtype float32"
        ) from None
    return dtype


def _try_operators(device: torch.device, dtype: torch.dtype) -> None:
    """Runs the operators that every model needs."""
    import torch
    import torch.nn.functional as F

    numbers = torch.ones(2, 2, device=device, dtype=dtype)
    F.layer_norm(F.softmax(numbers @ numbers, dim=-1), (2,)).sum().item()


def _or(names: list[str] | tuple[str, ...]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
