"""The runs behind docs/results.md: `python -m benchmarks.training_results runs/a runs/b ...`.

Adds finished runs to docs/results.csv, each in place of an older one of the same command, and makes the page's tables
anew. Runs that differ in their seed alone are one row of a table, with mean and standard deviation.
"""

from __future__ import annotations

import csv
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"
PAGE, RECORDS = DOCS / "results.md", DOCS / "results.csv"
TITLES = {"bert": "bert (a Transformer with learned positions)"}
# what the model card of a run says of how it was made
MADE = ("command", "commit", "hardware", "software", "date")

Record = dict[str, Any]


def read(folder: Path) -> Record:
    """What a finished run says.

    Raises:
        ValueError: if the folder is not that of a finished run.
    """
    try:
        recipe, results = (
            json.loads((folder / name).read_text(encoding="utf-8")) for name in ("recipe.json", "results.json")
        )
        card = (folder / "model" / "README.md").read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is not the output folder of a finished run: {error}") from None
    made = dict(re.findall(r"^\| ([a-z]+) \| (.*) \|$", card, re.MULTILINE))
    architecture = recipe["model"].get("architecture", "mega")
    fields = recipe["model"].get(architecture, recipe["model"])
    chunk = f", chunks of {fields['chunk_size']}" if fields.get("use_chunking") else ""
    score = "cross_entropy" if recipe["task"].endswith("lm") else "accuracy"
    return {
        "recipe": recipe["name"],
        "system": f"{architecture}{chunk}",
        "seed": recipe["seed"],
        "parameters": results["parameters"],
        "rate": fields.get("learning_rate", recipe["training"].get("learning_rate")),
        "steps": results["steps"],
        "score": score,
        **{role: round(systems["model"][score], 5) for role, systems in results["scores"].items()},
        "processor_seconds_per_step": results["processor_seconds_per_step"],
        "memory_gb": round(results["memory"] / 1e9, 3),
        "hours": results["hours"],
        **{key: made[key].strip("`") for key in MADE},
    }


def recorded(records: list[Record], new: list[Record]) -> list[Record]:
    """The records with new ones, in the order of recipes, systems and seeds."""
    by_run = {record["command"]: record for record in [*records, *new]}
    return sorted(by_run.values(), key=lambda record: (record["recipe"], record["system"], int(record["seed"])))


def spread(records: list[Record], key: str, form: str) -> str:
    """A mean, and with several values their standard deviation."""
    values = [float(record[key]) for record in records]
    mean = format(statistics.fmean(values), form)
    return mean if len(values) < 2 else f"{mean} ± {format(statistics.stdev(values), form)}"


def table(records: list[Record]) -> str:
    """A table in Markdown of the runs of one recipe; Mega first."""
    rows: dict[str, list[Record]] = {}
    for record in records:
        rows.setdefault(re.sub(r" --set seed=\d+", "", record["command"]), []).append(record)
    form, title = (".1%", "accuracy") if records[0]["score"] == "accuracy" else (".3f", "nats per token")
    head = ["system", "parameters", "peak rate", "steps", "seeds", f"validation, {title}", f"test, {title}"]
    head += ["processor seconds a step", "memory (GB)"]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for some in sorted(rows.values(), key=lambda some: not some[0]["system"].startswith("mega")):
        lines.append(
            [
                TITLES.get(some[0]["system"], some[0]["system"]),
                f"{int(some[0]['parameters']):,}",
                f"{float(some[0]['rate']):g}",
                f"{int(some[0]['steps']):,}",
                ", ".join(str(record["seed"]) for record in some),
                *(spread(some, role, form) for role in ("validation", "test")),
                spread(some, "processor_seconds_per_step", ".3f"),
                spread(some, "memory_gb", ".2f"),
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def with_tables(page: str, records: list[Record]) -> str:
    """The page, with each table after a line such as `<!-- compare-listops -->` made anew."""
    for recipe in dict.fromkeys(record["recipe"] for record in records):
        mark = f"<!-- {recipe} -->\n"
        if page.count(mark) != 1:
            raise ValueError(f"{PAGE} must have the line {mark.strip()} once, and has it {page.count(mark)} times")
        made = table([record for record in records if record["recipe"] == recipe])
        before, after = page.split(mark)
        page = f"{before}{mark}\n{made}\n\n" + re.sub(r"\A\n(\|.*\n)*\n?", "", after)
    return page


def stored() -> list[Record]:
    """The records of docs/results.csv."""
    if not RECORDS.exists():
        return []
    with RECORDS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def main(folders: list[str]) -> None:
    """Adds the runs in folders."""
    records = recorded(stored(), [read(Path(folder)) for folder in folders])
    page = with_tables(PAGE.read_text(encoding="utf-8"), records)
    with RECORDS.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as wrong:
        sys.exit(f"Error: {wrong}")
