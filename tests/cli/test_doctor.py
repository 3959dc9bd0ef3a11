"""`mega doctor`: all is well here, and a planted defect is found."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from mega_transformers import doctor as checks
from mega_transformers.cli import app
from mega_transformers.models.mega.cache_mega import MegaCacheLayer

CPU = torch.device("cpu")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["doctor", *arguments], terminal_width=120)


def checks_devices(name: str) -> str:
    """What the remedy names: a device of the same kind if there is one, or else the CPU."""
    return "cuda:0" if name.startswith("cuda") and torch.cuda.is_available() else "cpu"


def failed(findings: list[checks.Finding]) -> dict[str, checks.Finding]:
    return {finding.check: finding for finding in findings if not finding.passed}


def test_all_checks_pass_here() -> None:
    result = run("--device", "cpu")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("✓") == checks.number_of_checks()
    assert "✗" not in result.stdout
    assert f"All {checks.number_of_checks()} checks passed" in result.stdout
    assert torch.__version__ in result.stdout


def test_json_for_bug_reports() -> None:
    result = run("--device", "cpu", "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["passed"] is True
    assert report["torch"] == torch.__version__
    assert list(report["devices"]) == ["cpu"]
    assert "accelerate" in report["libraries"]
    assert len(report["checks"]) == checks.number_of_checks()
    assert all(check["passed"] and check["deviation"] <= check["limit"] for check in report["checks"])


def test_a_cache_that_forgets_its_last_token_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    update = MegaCacheLayer.update

    def forgetful(self: Any, *args: Any, **kwargs: Any) -> Any:
        window = update(self, *args, **kwargs)
        self.keys[:, :, -1:] = 0
        self.values[:, :, -1:] = 0
        return window

    monkeypatch.setattr(MegaCacheLayer, "update", forgetful)
    found = failed(list(checks.examine(CPU)))
    assert {"cached decoding = uncached (softmax)", "generate, greedy = the model's own logits"} <= found.keys()
    assert all(finding.deviation is not None and finding.deviation > finding.limit for finding in found.values())
    assert "EMA and its gradients = the definition" not in found


def test_a_state_that_forgets_its_last_token_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    advance = MegaCacheLayer.advance

    def forgetful(self: Any, x: Any, state: Any, *args: Any) -> None:
        advance(self, x, state if self.state is None else self.state, *args)

    monkeypatch.setattr(MegaCacheLayer, "advance", forgetful)
    result = run("--device", "cpu")
    assert result.exit_code == 1
    assert "✗" in result.stdout
    assert "mega doctor --json" in result.stdout
    report = json.loads(run("--device", "cpu", "--json").stdout)
    assert report["passed"] is False


def test_gradients_that_are_wrong_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = checks.ema

    def wrong(x: torch.Tensor, *parameters: torch.Tensor, **options: Any) -> torch.Tensor:
        scaled = x if "backend" in options else x.detach() * 0.1 + x * 0.9  # right values, wrong gradients
        return right(scaled, *parameters, **options)

    monkeypatch.setattr(checks, "ema", wrong)
    assert failed(list(checks.examine(CPU))).keys() == {"EMA and its gradients = the definition"}


def test_what_raises_is_a_failure_with_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.setattr(checks, "attention", broken)
    result = run("--device", "cpu")
    assert result.exit_code == 1
    assert "RuntimeError: no kernel image is available" in result.stdout


def test_nan_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        checks, "ema", lambda x, *parameters, **options: x * sum(p.sum() for p in parameters) * torch.nan
    )
    found = failed(list(checks.examine(CPU)))["EMA and its gradients = the definition"]
    assert found.deviation is None
    assert found.error is not None


def test_threads_are_as_before() -> None:
    before = torch.get_num_threads()
    list(checks.examine(CPU))
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("name", ["cuda:7", "tpu"])
def test_a_device_that_is_not_there(name: str) -> None:
    result = run("--device", name)
    assert result.exit_code == 1
    assert f"--device {name}" in result.stderr
    assert checks_devices(name) in result.stderr
