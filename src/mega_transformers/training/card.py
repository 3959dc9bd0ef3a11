"""The model card of a trained model, through huggingface_hub."""

from __future__ import annotations

import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .export import Report
from .recipe import Recipe, plain


def render(report: Report, has_plot: bool) -> str:
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
        _published(recipe),
        _samples(results.get("samples", [])),
        "![Losses over the steps](loss.png)" if has_plot else "",
        "## Data\n\n" + "\n".join(_source(source) for source in recipe.data),
        "## Training\n\n" + _training(report),
    ]
    return str(ModelCard("\n\n".join(part for part in parts if part) + "\n"))


def _eval_results(report: Report) -> list[EvalResult]:
    recipe, found = report.task.recipe, []
    for system, values in report.results["scores"].get("test", {}).items():
        if system.startswith("model"):
            names = ", ".join(source.name for source in recipe.data if "test" in source.roles)
            found += [
                EvalResult(
                    task_type=report.task.pipeline_tag,
                    dataset_type=recipe.name,
                    dataset_name=f"{names}, test",
                    metric_type=key,
                    metric_name=f"{_title(report, key)} ({system})",
                    metric_value=round(values[key], 5),
                )
                for key in report.task.columns
                if key in values
            ]
    return found


def _title(report: Report, key: str) -> str:
    return report.task.recipe.card.metric_titles.get(key, report.task.columns[key][0])


def _scores(report: Report) -> str:
    """One row for each text and system: the model, those trained alike, and what is to be compared with."""
    recipe, results = report.task.recipe, report.results
    rows: list[tuple[str, str, str, dict[str, float]]] = []
    for role, systems in results["scores"].items():
        for name, values in systems.items():
            own = name.startswith("model")
            size = f"{results['parameters']:,}" if own else ""
            rows.append((role, re.sub(r"^model\b", recipe.name, name), size, values))
        for other in results.get("compared", []):
            rows += [
                (role, re.sub(r"^model\b", other["name"], name), f"{other['parameters']:,}", values)
                for name, values in other["scores"].get(role, {}).items()
                if name.startswith("model")
            ]
    columns = {key: form for key, (_, form) in report.task.columns.items() if any(key in row[3] for row in rows)}
    head = ["part", "system", "parameters", *(_title(report, key) for key in columns)]
    lines = [
        [*row[:3], *(format(row[3][key], form) if key in row[3] else "" for key, form in columns.items())]
        for row in rows
    ]
    return _table(head, lines, left=2) if rows else "The recipe names no texts to evaluate on."


def _table(head: list[str], rows: list[list[str]], left: int = 1) -> str:
    marks = ["---" if index < left else "---:" for index in range(len(head))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, marks, *rows])


def _compared(report: Report) -> str:
    others = report.results.get("compared", [])
    if not others:
        return ""
    own = {**report.results, "name": report.task.recipe.name, "model": report.task.recipe.model}
    rows = [
        [
            one["name"],
            str(one["model"].get("architecture", "mega")),
            f"{one['parameters']:,}",
            f"{one['steps']:,}",
            f"{one['hours']:.2f}",
        ]
        for one in (own, *others)
    ]
    return (
        "Trained with the same recipe: the same rows, tokenizer, order, seed, batch size, steps and schedule; what "
        "differs is the architecture and its peak learning rate:\n\n"
        + _table(["model", "architecture", "parameters", "steps", "hours"], rows, left=2)
    )


def _published(recipe: Recipe) -> str:
    if not recipe.card.published:
        return ""
    metrics = list(dict.fromkeys(key for one in recipe.card.published for key in one.scores))
    titles = [recipe.card.metric_titles.get(key, key) for key in metrics]
    rows = [
        [one.system, one.citation, *(f"{one.scores[key]:.4g}" if key in one.scores else "" for key in metrics)]
        for one in recipe.card.published
    ]
    return recipe.card.published_note.strip() + "\n\n" + _table(["system", "source", *titles], rows, left=2)


def _samples(samples: list[dict[str, Any]]) -> str:
    rows = [
        [_cell(one["source"]), _cell(one["output"]), _cell("; ".join(one["references"])) or "-"] for one in samples
    ]
    return "Outputs:\n\n" + _table(["source", "output", "references"], rows, left=3) if rows else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _source(source: Any) -> str:
    clean = getattr(source, "clean", [])
    cleaning = f"; cleaned: {', '.join(clean)}" if clean else ""
    credit = f" {source.attribution.strip()}" if source.attribution else ""
    return f"- **{source.name}** ({', '.join(source.roles)}{cleaning}). Licence: {source.license}.{credit}"


def _training(report: Report) -> str:
    recipe, results, args = report.task.recipe, report.results, report.arguments
    processes = f", {args.world_size} processes" if args.world_size > 1 else ""
    rows = {
        "command": f"`{report.command}`",
        "parameters": f"{results['parameters']:,}",
        "steps": f"{results['steps']:,}",
        "examples seen": f"{results['examples_seen']:,} ({results['epochs']:.2f} epochs)",
        "wall clock of the last run": f"{results['hours']:.2f} hours, evaluations while training included",
        "hardware": hardware(args.device) + processes,
        "precision": precision(args),
        "software": software(),
        "commit": commit(),
        "seed": str(recipe.seed),
        "date": results["date"],
    }
    values = {key: value for key, value in plain(recipe).items() if key not in ("card", "data", "name", "task")}
    return (
        _table(["", ""], [[name, value] for name, value in rows.items()], left=2)
        + "\n\nWeights are stored in float16, the EMA's parameters in float32; both load as float32. The losses over "
        f"time are in training_log.json.\n\n```yaml\n{yaml.safe_dump(values, sort_keys=False)}```"
    )


def hardware(device: torch.device) -> str:
    """The machine in words."""
    if device.type == "cuda":
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(device)}"
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"


def precision(args: Any) -> str:
    """What numbers the training computed with."""
    for option, name in (("bf16", "bfloat16"), ("fp16", "float16")):
        if getattr(args, option):
            return f"float32 weights, {name} autocast"
    return "float32"


def software() -> str:
    """Versions of what took part."""
    parts = [f"Python {platform.python_version()}"]
    for package in ("mega-transformers", "torch", "transformers", "datasets", "tokenizers", "accelerate"):
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(parts)


def commit() -> str:
    """The revision of this package where it is run from a clone; else "a release"."""
    try:
        found = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "a release"
    return found.stdout.strip() if found.returncode == 0 else "a release"
