"""A finished model as a folder: half-precision weights, tokenizer, model card, course of the training."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .pair_recipe import METRICS
from .recipe import Recipe

FLOAT32_PARAMETERS = "ema_gate."
LOGGED = ("step", "epoch", "loss", "grad_norm", "learning_rate", "eval_loss", *(f"eval_{name}" for name in METRICS))


@dataclass
class Report:
    """What the model card tells: see `card.render`."""

    recipe: Recipe
    results: dict[str, Any]
    log: list[dict[str, float]]
    command: str
    pipeline_tag: str
    device: torch.device


def write_json(path: Path, value: Any) -> None:
    """Writes beside, then renames."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def export_model(model: Any, tokenizer: Any, folder: Path, report: Report) -> int:
    """Writes a model to be published, in place of an older one in `folder`.

    Weights are stored in float16, but for the EMA's parameters, whose decays are too close to 1 for it; the
    configuration says float32, so that loading gives float32.

    Args:
        model: The model; it is not changed.
        tokenizer: Its tokenizer.
        folder: Where to.
        report: What the model card and the log of the training say.

    Returns:
        Bytes written.
    """
    from .card import render

    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        tokenizer.save_pretrained(partial)
        _compact(partial / "tokenizer.json")
        _save_weights(model, partial)
        log = [{key: entry[key] for key in LOGGED if key in entry} for entry in report.log]
        log = [entry for entry in log if "loss" in entry or "eval_loss" in entry]
        (partial / "training_log.json").write_text(_json_lines(log), encoding="utf-8")
        write_json(partial / "results.json", report.results)
        loss = "loss at masked tokens" if report.recipe.masking is not None else "loss per token"
        has_plot = _plot(log, partial / "loss.png", f"{loss} (nats)")
        (partial / "README.md").write_text(render(report, has_plot), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sum(path.stat().st_size for path in folder.iterdir())


def _save_weights(model: Any, folder: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    sparse = getattr(model.config, "sparse_prediction", None)
    if sparse is not None:
        model.config.sparse_prediction = False
    try:
        model.save_pretrained(folder, max_shard_size="1TB")
    finally:
        if sparse is not None:
            model.config.sparse_prediction = sparse
    path = folder / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    weights = {
        name: weight.float() if FLOAT32_PARAMETERS in name else weight.half()
        for name, weight in load_file(path).items()
    }
    save_file(weights, path, metadata=metadata)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = "float32"
    write_json(folder / "config.json", config)


def _compact(path: Path) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


def _json_lines(log: list[dict[str, float]]) -> str:
    rounded = [
        {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in entry.items()}
        for entry in log
    ]
    return "[\n" + ",\n".join(json.dumps(entry) for entry in rounded) + "\n]\n"


def _plot(log: list[dict[str, float]], path: Path, label: str) -> bool:
    """The course of the losses as a picture, if matplotlib is there."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for key, name, marker in (("loss", "training", None), ("eval_loss", "validation", "o")):
        points = [(entry["step"], entry[key]) for entry in log if key in entry]
        if points:
            axes.plot(*zip(*points), label=name, marker=marker, markersize=3)
    axes.set(xlabel="step", ylabel=label)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=100)
    return True
