"""`--device` and `--dtype` of every command that runs a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from mega_transformers.assets import bundled_model
from mega_transformers.cli import app, device
from mega_transformers.cli.device import available_devices, resolve_device, resolve_dtype, resolve_placement
from mega_transformers.cli.runtime import UserError

SAMPLE = Path(__file__).parents[2] / "recipes" / "sample" / "test.txt"
COMMANDS = [
    ["fill-mask", "The <mask> of the ship."],
    ["explain", "The <mask> of the ship."],
    ["generate", "The ship", "--greedy", "--max-new-tokens", "4"],
    ["text2text", "example"],
    ["perplexity", str(SAMPLE)],
    ["evaluate", str(bundled_model()), "--data", str(SAMPLE), "--sequence-length", "32"],
]
IDS = [command[0] for command in COMMANDS]


def mega(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Has PyTorch find so many CUDA devices, and an MPS device or not."""

    def pretend(cuda: int = 0, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


def test_auto_takes_an_accelerator_if_there_is_one(machine) -> None:
    machine()
    assert resolve_device() == torch.device("cpu")
    machine(mps=True)
    assert resolve_device("auto") == torch.device("mps")
    machine(cuda=2, mps=True)
    assert resolve_device() == torch.device("cuda")
    assert available_devices() == ["cpu", "mps", "cuda:1", "cuda:0"]
    for name in ("cpu", "mps", "cuda", "cuda:0", "cuda:1"):
        assert str(resolve_device(name)) == name


@pytest.mark.parametrize(
    "name, cuda, message",
    [
        ("cuda", 0, "--device cuda: this PyTorch finds no CUDA device; it has cpu; leave out --device, or give"),
        ("cuda:0", 0, "--device cuda:0: this PyTorch finds no CUDA device"),
        ("mps", 1, "--device mps: this PyTorch finds no MPS device; it has cpu or cuda:0; leave out --device, or"),
        ("cuda:2", 2, "--device cuda:2: there is no such device; give cuda:0 or cuda:1"),
        ("gpu", 0, "--device gpu: expected auto, cpu, cuda, cuda:N or mps"),
        ("cuda:x", 0, "--device cuda:x: expected auto"),
        ("cpu:1", 0, "--device cpu:1: expected auto"),
        ("meta", 0, "--device meta: expected auto"),
        ("", 0, "--device : expected auto"),
    ],
)  # fmt: skip
def test_a_device_that_is_not_there_is_refused(machine, name: str, cuda: int, message: str) -> None:
    machine(cuda)
    with pytest.raises(UserError) as error:
        resolve_device(name)
    assert message in str(error.value)


def test_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert resolve_dtype("auto", cpu) is torch.float32
    for name in ("float32", "bfloat16", "float16"):
        assert resolve_dtype(name, cpu) is getattr(torch, name)
    with pytest.raises(UserError, match="--dtype float64: expected auto, float32, bfloat16 or float16"):
        resolve_dtype("float64", cpu)

    def lacking(device: torch.device, dtype: torch.dtype) -> None:
        raise TypeError("BFloat16 is not supported on MPS\nmore")

    monkeypatch.setattr(device, "_try_operators", lacking)
    with pytest.raises(UserError) as error:
        resolve_dtype("bfloat16", torch.device("mps"))
    assert str(error.value) == (
        "--dtype bfloat16: the device mps cannot compute in it (BFloat16 is not supported on MPS); leave out --dtype, "
        "or give --dtype float32"
    )
    assert resolve_placement("cpu") == device.Placement(cpu, torch.float32)


@pytest.mark.parametrize("command", COMMANDS, ids=IDS)
def test_every_command_takes_both(command: list[str]) -> None:
    help_text = CliRunner().invoke(app, [command[0], "--help"], env={"COLUMNS": "200"}, color=False).stdout
    assert "--device" in help_text and "--dtype" in help_text
    for dtype in ("bfloat16", "float16"):
        result = mega(*command, "--device", "cpu", "--dtype", dtype)
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize("command", COMMANDS, ids=IDS)
@pytest.mark.parametrize("wrong", [("--device", "cuda:7"), ("--dtype", "int8")])
def test_mistakes_come_before_any_model_is_loaded(
    machine, monkeypatch: pytest.MonkeyPatch, command: list[str], wrong: tuple[str, str]
) -> None:
    machine(cuda=2)
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    result = mega(*command, *(wrong if wrong[0] == "--device" else ("--device", "cpu", *wrong)))
    assert result.exit_code == 1
    assert f"Error: {' '.join(wrong)}: " in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("command", COMMANDS, ids=IDS)
def test_models_run_where_and_as_they_are_told(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    """On this machine's only device: the inputs of every forward are where the model is, in the dtype asked for."""
    moved, seen = [], []
    to, call = torch.nn.Module.to, torch.nn.Module.__call__

    def record_to(self, *arguments, **keywords):
        moved.append(arguments[0] if arguments else None)
        return to(self, *arguments, **keywords)

    def record_call(self, *arguments, **keywords):
        if hasattr(self, "base_model_prefix"):
            seen.append(self.dtype)
            tensors = [value for value in (*arguments, *keywords.values()) if isinstance(value, torch.Tensor)]
            assert {tensor.device for tensor in tensors} <= {self.device}
        return call(self, *arguments, **keywords)

    monkeypatch.setattr(torch.nn.Module, "to", record_to)
    monkeypatch.setattr(torch.nn.Module, "__call__", record_call)
    result = mega(*command, "--device", "cpu", "--dtype", "bfloat16")
    assert result.exit_code == 0, result.output
    assert torch.device("cpu") in moved
    computed = torch.float32 if command[0] == "explain" else torch.bfloat16  # gradients, of rounded weights
    assert set(seen) == {computed}


def test_half_precision_is_near(tmp_path: Path) -> None:
    numbers = {}
    for dtype in ("float32", "bfloat16", "float16"):
        file = tmp_path / f"{dtype}.json"
        result = mega("perplexity", SAMPLE, "--dtype", dtype, "--json", file)
        assert result.exit_code == 0, result.output
        (numbers[dtype],) = (text["cross_entropy"] for text in json.loads(file.read_text())["texts"].values())
    assert numbers["float16"] == pytest.approx(numbers["float32"], rel=2e-3)
    assert numbers["bfloat16"] == pytest.approx(numbers["float32"], rel=2e-2)
