"""The model card of a trained model, made with huggingface_hub."""

from __future__ import annotations

import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .. import __version__
from .export import TrainingReport
from .recipe import plain

SOFTWARE = ("torch", "transformers", "datasets", "tokenizers", "accelerate")


def render(report: TrainingReport, has_plot: bool) -> str:
    """The README.md of a model folder: metadata for the hub, then text."""
    task, results = report.task, report.results
    recipe = task.recipe
    card = ModelCardData(
        library_name=task.library_name,
        pipeline_tag=task.pipeline_tag,
        license=recipe.card.license,
        language=recipe.card.language,
        tags=["mega", "mega-transformers", recipe.task],
        widget=[{"text": example} for example in recipe.card.examples] or None,
        model_name=recipe.name,
        eval_results=_eval_results(report) or None,
    )
    parts = [
        f"---\n{card.to_yaml()}\n---",
        f"# {recipe.name}",
        recipe.card.summary.strip(),
        task.usage(),
        "## Results",
        task.explanation(results),
        _scores(report),
        _compared(report),
        _published(recipe.card),
        _samples(results.get("samples", [])),
        "![Losses over the steps](loss.png)" if has_plot else "",
        "## Data\n\n" + "\n".join(map(_source, recipe.data)),
        "## Training\n\n" + _training(report),
    ]
    return str(ModelCard("\n\n".join(part for part in parts if part) + "\n"))


def _eval_results(report: TrainingReport) -> list[EvalResult]:
    recipe = report.task.recipe
    names = ", ".join(source.name for source in recipe.data if "test" in source.roles)
    return [
        EvalResult(
            task_type=report.task.pipeline_tag,
            dataset_type=recipe.name,
            dataset_name=f"{names}, test",
            metric_type=key,
            metric_name=f"{_title(report, key)} ({system})",
            metric_value=round(values[key], 5),
        )
        for system, values in report.results["scores"].get("test", {}).items()
        if system.startswith("model")
        for key in report.task.columns
        if key in values
    ]


def _title(report: TrainingReport, key: str) -> str:
    return report.task.recipe.card.metric_titles.get(key, report.task.columns[key][0])


def _scores(report: TrainingReport) -> str:
    """One row for each text and system: the model, the baselines, and models trained with the same recipe."""
    own = {**report.results, "name": report.task.recipe.name}
    rows: list[tuple[str, str, str, dict[str, float]]] = []
    for role in own["scores"]:
        for one in (own, *own.get("compared", [])):
            for system, values in one["scores"].get(role, {}).items():
                if system.startswith("model"):
                    rows.append((role, one["name"] + system[len("model") :], f"{one['parameters']:,}", values))
                elif one is own:
                    rows.append((role, system, "", values))
    columns = {key: form for key, (_, form) in report.task.columns.items() if any(key in row[3] for row in rows)}
    lines = [
        [*row[:3], *(format(row[3][key], form) if key in row[3] else "" for key, form in columns.items())]
        for row in rows
    ]
    head = ["part", "system", "parameters", *(_title(report, key) for key in columns)]
    return _table(head, lines) if rows else "The recipe names no texts to evaluate on."


def _table(head: list[str], rows: list[list[str]], left: int = 2) -> str:
    marks = ["---" if index < left else "---:" for index in range(len(head))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, marks, *rows])


def _compared(report: TrainingReport) -> str:
    others = report.results.get("compared", [])
    own = {**report.results, "name": report.task.recipe.name, "model": report.task.recipe.model}
    rows = []
    for one in (own, *others):
        architecture = str(one["model"].get("architecture", "mega"))
        numbers = [f"{one['parameters']:,}", f"{one['steps']:,}", f"{one['hours']:.2f}"]
        rows.append([one["name"], architecture, *numbers])
    text = "Trained with the same recipe; only the architecture and its peak learning rate differ:\n\n"
    return text + _table(["model", "architecture", "parameters", "steps", "hours"], rows) if others else ""


def _published(card: Any) -> str:
    metrics = list(dict.fromkeys(key for one in card.published for key in one.scores))
    titles = [card.metric_titles.get(key, key) for key in metrics]
    rows = [
        [one.system, one.citation, *(f"{one.scores[key]:.4g}" if key in one.scores else "" for key in metrics)]
        for one in card.published
    ]
    return f"{card.published_note.strip()}\n\n{_table(['system', 'source', *titles], rows)}" if rows else ""


def _samples(samples: list[dict[str, Any]]) -> str:
    texts = [(one["source"], one["output"], "; ".join(one["references"]) or "-") for one in samples]
    rows = [[text.replace("|", "\\|").replace("\n", " ") for text in row] for row in texts]
    return "Outputs:\n\n" + _table(["source", "output", "references"], rows, left=3) if rows else ""


def _source(source: Any) -> str:
    clean = getattr(source, "clean", [])
    cleaning = f"; cleaned: {', '.join(clean)}" if clean else ""
    credit = f" {source.attribution.strip()}" if source.attribution else ""
    return f"- **{source.name}** ({', '.join(source.roles)}{cleaning}). Licence: {source.license}.{credit}"


def _training(report: TrainingReport) -> str:
    recipe, results, args = report.task.recipe, report.results, report.arguments
    half = "bfloat16" if args.bf16 else "float16" if args.fp16 else None
    rows = {
        "command": f"`{report.command}`",
        "parameters": f"{results['parameters']:,}",
        "steps": f"{results['steps']:,}",
        "examples seen": f"{results['examples_seen']:,} ({results['epochs']:.2f} epochs)",
        "wall clock of the last run": f"{results['hours']:.2f} hours, including evaluations during training",
        "hardware": _hardware(args.device) + (f", {args.world_size} processes" if args.world_size > 1 else ""),
        "precision": f"float32 weights, {half} autocast" if half else "float32",
        "software": f"Python {platform.python_version()}, mega-transformers {__version__}, "
        + ", ".join(f"{name} {version(name)}" for name in SOFTWARE),
        "commit": _commit(),
        "seed": str(recipe.seed),
        "date": results["date"],
    }
    values = {key: value for key, value in plain(recipe).items() if key not in ("card", "data", "name", "task")}
    return (
        _table(["", ""], [[name, value] for name, value in rows.items()])
        + "\n\nWeights are stored in float16, the EMA's parameters in float32; both load as float32. "
        f"training_log.json holds the losses over time.\n\n```yaml\n{yaml.safe_dump(values, sort_keys=False)}```"
    )


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(device)}"
    file, threads = Path("/proc/cpuinfo"), torch.get_num_threads()
    found = re.search(r"^model name\s*: (.*)", file.read_text(encoding="utf-8") if file.exists() else "", re.MULTILINE)
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{name}, {threads} thread{'s' * (threads > 1)}"


def _commit() -> str:
    """The revision of this package if it runs from a clone, else "a release"."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "a release"
