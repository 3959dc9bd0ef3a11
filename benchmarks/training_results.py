"""A table in Markdown of finished training runs: `python -m benchmarks.training_results runs/a runs/b ...`.

Runs whose recipe and command differ in their seed alone are one row, with mean and standard deviation.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any


def read(folder: Path) -> dict[str, Any]:
    """What a finished run says: its recipe and results."""
    recipe, results = (
        json.loads((folder / name).read_text(encoding="utf-8")) for name in ("recipe.json", "results.json")
    )
    architecture = recipe["model"].get("architecture", "mega")
    fields = recipe["model"].get(architecture, recipe["model"])
    chunk = f", chunks of {fields['chunk_size']}" if fields.get("use_chunking") else ""
    rate = fields.get("learning_rate", recipe["training"].get("learning_rate"))
    return {
        **results,
        "system": f"{architecture}{chunk}",
        "rate": rate,
        "seed": recipe["seed"],
        "task": recipe["task"],
    }


def spread(values: list[float], form: str) -> str:
    """A mean, and with several values their standard deviation."""
    mean = format(statistics.fmean(values), form)
    return mean if len(values) < 2 else f"{mean} ± {format(statistics.stdev(values), form)}"


def table(runs: list[dict[str, Any]]) -> str:
    """One row for each system, in the order of their first runs."""
    rows: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for run in runs:
        rows.setdefault((run["system"], run["steps"]), []).append(run)
    score = "cross_entropy" if runs[0]["task"].endswith("lm") else "accuracy"
    form, title = (".3f", "nats per token") if score == "cross_entropy" else (".1%", "accuracy")
    head = ["system", "parameters", "peak rate", "steps", "seeds", f"validation, {title}", f"test, {title}"]
    head += ["processor seconds a step", "memory (GB)"]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for (system, steps), some in rows.items():
        scores = [
            spread([run["scores"][role]["model"][score] for run in some], form) for role in ("validation", "test")
        ]
        lines.append(
            [
                system,
                f"{some[0]['parameters']:,}",
                f"{some[0]['rate']:g}",
                f"{steps:,}",
                ", ".join(str(run["seed"]) for run in some),
                *scores,
                spread([run["processor_seconds_per_step"] for run in some], ".3f"),
                spread([run["memory"] / 1e9 for run in some], ".2f"),
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    print(table([read(Path(folder)) for folder in sys.argv[1:]]))
