"""A finished model as a folder: half-precision weights, tokenizer, model card, training log."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .tasks import Task

FLOAT32_PARAMETERS = "ema_gate."


@dataclass
class TrainingReport:
    """The contents of the model card; see `card.render`."""

    task: Task
    results: dict[str, Any]
    log: list[dict[str, float]]
    command: str
    arguments: Any


def write_json(path: Path, value: Any) -> None:
    """Writes to a temporary name, then renames."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def export_model(model: Any, tokenizer: Any, folder: Path, report: TrainingReport) -> int:
    """Writes a model for publication, which replaces an older one in `folder`; returns the bytes written.

    Weights are stored in float16, except the EMA's parameters, whose decays are too close to 1 for it; the
    configuration names float32, so that loading gives float32.
    """
    from .card import render

    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        report.task.save(model, tokenizer, partial)
        _halve_weights(partial)
        for path in partial.rglob("tokenizer.json"):  # without white space
            value = json.loads(path.read_text(encoding="utf-8"))
            path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
        log = [entry for entry in report.log if "loss" in entry or "eval_loss" in entry]
        lines = ",\n".join(map(json.dumps, log))
        (partial / "training_log.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
        write_json(partial / "results.json", report.results)
        has_plot = _plot(log, partial / "loss.png")
        (partial / "README.md").write_text(render(report, has_plot), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _halve_weights(folder: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    for path in folder.rglob("model.safetensors"):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        weights = {
            name: weight.float() if FLOAT32_PARAMETERS in name else weight.half()
            for name, weight in load_file(path).items()
        }
        save_file(weights, path, metadata=metadata)
        config = path.with_name("config.json")
        if config.is_file():
            write_json(config, {**json.loads(config.read_text(encoding="utf-8")), "dtype": "float32"})


def _plot(log: list[dict[str, float]], path: Path) -> bool:
    """Draws the losses over the steps, if matplotlib is installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for key, name, marker in (("loss", "training", None), ("eval_loss", "validation", "o")):
        points = [(entry["step"], entry[key]) for entry in log if key in entry]
        if points:
            axes.plot(*zip(*points), label=name, marker=marker, markersize=3)
    axes.set(xlabel="step", ylabel="loss")
    axes.legend()
    figure.savefig(path)
    return True
