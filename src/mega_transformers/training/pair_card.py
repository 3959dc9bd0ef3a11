"""What a model card says of a text-to-text model."""

from __future__ import annotations

import json
import re
from typing import Any

from . import seq2seq_config
from .recipe import Recipe

# metric -> title of its column, format
COLUMNS = {
    "bleu": ("BLEU", ".1f"),
    "chrf": ("chrF", ".1f"),
    "exact_match": ("exact match", ".2%"),
    "sequence_error_rate": ("outputs unlike any reference", ".2%"),
    "symbol_error_rate": ("symbol error rate", ".2%"),
}


def columns_of(recipe: Recipe) -> dict[str, tuple[str, str]]:
    """The recipe's metrics -> title of the column, format."""
    assert recipe.generation is not None
    titles = recipe.card.metric_titles
    return {name: (titles.get(name, COLUMNS[name][0]), COLUMNS[name][1]) for name in recipe.generation.metrics}


def use(recipe: Recipe) -> str:
    """How to use the model, on a command line and in Python."""
    quoted = json.dumps(recipe.card.examples[0] if recipe.card.examples else "A text.", ensure_ascii=False)
    source = f"{quoted}.lower()" if recipe.tokenizer.kind == "symbols" else quoted
    return (
        f"```bash\nmega text2text {quoted} --model path/to/{recipe.name}\n```\n\n"
        "```python\n"
        "import mega_transformers  # registers the model with transformers\n"
        "from transformers import AutoModelForSeq2SeqLM, AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("path/to/{recipe.name}")\n'
        f'model = AutoModelForSeq2SeqLM.from_pretrained("path/to/{recipe.name}")\n'
        f'inputs = tokenizer({source}, return_tensors="pt")\n'
        "print(tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True))\n"
        "```"
    )


def results_of(recipe: Recipe, results: dict[str, Any]) -> str:
    """Tables of scores beside baselines, models trained alike and published ones, and outputs of the model."""
    parts = [_explanation(recipe, results), _table(recipe, results)]
    if results.get("compared"):
        parts.append(_differences(recipe, results))
    if recipe.card.published:
        parts.append(_published(recipe))
    if results["samples"]:
        parts.append(_samples(results["samples"]))
    return "\n\n".join(parts)


def _explanation(recipe: Recipe, results: dict[str, Any]) -> str:
    generation, split = recipe.generation, recipe.split
    assert generation is not None and split is not None
    parts = [
        f"Pairs are divided by source text (split seed {split.seed}): two sources that differ only in case, "
        "punctuation or white space are in the same part. There are "
        f"{results['train_sources']:,} different sources to train on, "
        f"{results['validation_sources']:,} for validation and {results['test_sources']:,} for the test; all targets "
        "of a source are its references. The checkpoint is the one with the best "
        f"{columns_of(recipe)[generation.best_by][0]} of greedy outputs for validation sources."
    ]
    for name, text in _MEANINGS.items():
        if name in generation.metrics:
            parts.append(text.format(title=columns_of(recipe)[name][0]))
    if recipe.training.get("label_smoothing_factor"):
        parts.append("The training loss is that with label smoothing, the validation loss that without.")
    if results["signatures"]:
        signatures = ", ".join(f"`{value}` ({COLUMNS[name][0]})" for name, value in results["signatures"].items())
        parts.append(f"sacrebleu's signatures: {signatures}.")
    parts.append(
        '"Nearest neighbour" is the target of the training source that shares most three-character pieces with the '
        "source (Dice's coefficient, rare pieces weighing more)."
    )
    return " ".join(parts)


_MEANINGS = {
    "exact_match": "An output is an exact match if it equals one of the references.",
    "sequence_error_rate": 'The "{title}" is the part of the sources whose output equals none of the references.',
    "symbol_error_rate": (
        'The "{title}" is the number of insertions, deletions and replacements that turn the outputs into the closest '
        "reference each, over the length of these references."
    ),
}


def _table(recipe: Recipe, results: dict[str, Any]) -> str:
    columns = columns_of(recipe)
    rows = [
        "| part | system | parameters | " + " | ".join(title for title, _ in columns.values()) + " | sources |",
        "|---|---|---:|" + "---:|" * (len(columns) + 1),
    ]
    for role, scores in results["scores"].items():
        systems = [(re.sub("^model\\b", recipe.name, name), name, results, score) for name, score in scores.items()]
        for other in results.get("compared", []):
            for name, score in other["scores"].get(role, {}).items():
                if name.startswith("model"):
                    systems.append((re.sub("^model\\b", other["name"], name), name, other, score))
        for shown, name, owner, score in systems:
            size = f"{owner['parameters']:,}" if name.startswith("model") else ""
            numbers = " | ".join(format(score[key], form) for key, (_, form) in columns.items())
            rows.append(f"| {role} | {shown} | {size} | {numbers} | {score['sources']:,} |")
    return "\n".join(rows)


def _differences(recipe: Recipe, results: dict[str, Any]) -> str:
    architecture, rate = _architecture(recipe)
    lines = [
        "Trained with the same recipe, that is the same pairs, tokenizer, order, seed, batch size, steps, schedule, "
        "label smoothing and choice of checkpoint; what differs is the architecture and its peak learning rate:",
        "",
        "| model | architecture | parameters | learning rate | steps | hours |",
        "|---|---|---:|---:|---:|---:|",
    ]
    own = {"name": recipe.name, "architecture": architecture, "learning_rate": rate, **results}
    for row in [own, *results["compared"]]:
        lines.append(
            f"| {row['name']} | {row['architecture']} | {row['parameters']:,} | {row['learning_rate']:g} | "
            f"{row['steps']:,} | {row['hours']:.2f} |"
        )
    return "\n".join(lines)


def _architecture(recipe: Recipe) -> tuple[str, float]:
    architecture, _ = seq2seq_config.section_of(recipe)
    return architecture, seq2seq_config.learning_rate_of(recipe).get(
        "learning_rate", recipe.training.get("learning_rate", 5e-5)
    )


def comparison(recipe: Recipe, results: dict[str, Any]) -> dict[str, Any]:
    """What the card of another model needs of a finished one that was trained with the same recipe."""
    architecture, rate = _architecture(recipe)
    kept = {key: results[key] for key in ("parameters", "steps", "hours", "scores")}
    return {"name": recipe.name, "architecture": architecture, "learning_rate": rate, **kept}


def _published(recipe: Recipe) -> str:
    columns = columns_of(recipe)
    rows = [
        "| published system | " + " | ".join(title for title, _ in columns.values()) + " | source |",
        "|---|" + "---:|" * len(columns) + "---|",
    ]
    for entry in recipe.card.published:
        numbers = " | ".join(
            format(entry.scores[key], form) if key in entry.scores else "" for key, (_, form) in columns.items()
        )
        rows.append(f"| {entry.system} | {numbers} | {entry.citation} |")
    return "\n\n".join(part for part in (recipe.card.published_note.strip(), "\n".join(rows)) if part)


def _samples(samples: list[dict[str, Any]]) -> str:
    lines = [
        "Outputs of this model, with the beams of the table: the examples of the recipe, then the first sources of "
        "the test (in an order that does not depend on the outputs).",
        "",
        "| source | output | references |",
        "|---|---|---|",
    ]
    for sample in samples:
        cells = (sample["source"], sample["output"], " / ".join(sample["references"]))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def model_of(recipe: Recipe) -> dict[str, Any]:
    """The part of the recipe's `model` that was built."""
    architecture, section = seq2seq_config.section_of(recipe)
    return {"architecture": architecture, architecture: section}
