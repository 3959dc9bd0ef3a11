"""The model card of a trained model."""

from __future__ import annotations

import json
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from . import pair_card
from .export import Report
from .recipe import PAIRS_TASK, Recipe


def render(report: Report, has_plot: bool) -> str:
    """The README.md of a model folder: front matter for the hub, then text."""
    recipe, results = report.recipe, report.results
    front = {
        "library_name": "transformers",
        "pipeline_tag": report.pipeline_tag,
        "license": recipe.card.license,
        "language": recipe.card.language,
        "tags": ["mega", "mega-transformers", recipe.task],
        "widget": [{"text": example} for example in recipe.card.examples],
    }
    parts = [
        "---\n" + yaml.safe_dump(front, sort_keys=False, allow_unicode=True) + "---",
        f"# {recipe.name}",
        recipe.card.summary.strip(),
        pair_card.use(recipe) if recipe.task == PAIRS_TASK else _use(recipe),
        "## Results\n\n"
        + (pair_card.results_of(recipe, results) if recipe.task == PAIRS_TASK else _results(recipe, results)),
    ]
    if has_plot:
        parts.append("![Losses over the steps](loss.png)")
    parts += ["## Data\n\n" + _data(recipe), "## Training\n\n" + _training(report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _use(recipe: Recipe) -> str:
    text = "The <mask> is open." if recipe.task == "masked-lm" else "The door"
    quoted = json.dumps(recipe.card.examples[0] if recipe.card.examples else text, ensure_ascii=False)
    if recipe.task == "masked-lm":
        make, call = 'fill = pipeline("fill-mask", ', f"fill({quoted})"
    else:
        make, call = 'write = pipeline("text-generation", ', f"write({quoted}, max_new_tokens=50, do_sample=True)"
    return (
        "```python\n"
        "import mega_transformers  # registers the model with transformers\n"
        "from transformers import pipeline\n\n"
        f'{make}model="path/to/{recipe.name}")\n'
        f"{call}\n"
        "```"
    )


def _results(recipe: Recipe, results: dict[str, Any]) -> str:
    lines = [_masked_explanation(recipe) if recipe.masking is not None else _causal_explanation(recipe)]
    cleaned = sorted({name for source in recipe.data if source.validation or source.test for name in source.clean})
    if cleaned:
        lines.append(f"The evaluation texts are cleaned as the training texts are: {', '.join(cleaned)}.")
    columns = _MASKED_COLUMNS if recipe.masking is not None else _CAUSAL_COLUMNS
    table = [
        "| text | model | " + " | ".join(title for title, _ in columns.values()) + " |",
        "|---|---|" + "---:|" * len(columns),
    ]
    for role, scores in results["scores"].items():
        names = ", ".join(source.name for source in recipe.data if getattr(source, role))
        for name, score in scores.items():
            numbers = " | ".join(format(score[key], form) for key, (_, form) in columns.items())
            table.append(f"| {names}, {role} | {_shown(name, recipe)} | {numbers} |")
    return "\n\n".join([*lines, "\n".join(table)])


def _shown(name: str, recipe: Recipe) -> str:
    """A model's name: "model" stands for the trained one."""
    return re.sub("^model\\b", recipe.name, name)


# key of a score -> title of its column, format
_MASKED_COLUMNS = {
    "cross_entropy": ("cross entropy", ".3f"),
    "perplexity": ("perplexity", ".1f"),
    "accuracy": ("accuracy", ".1%"),
    "tokens": ("tokens", ","),
}
_CAUSAL_COLUMNS = {
    "bits_per_character": ("bits per character", ".3f"),
    "word_perplexity": ("word perplexity", ".1f"),
    "raw_word_perplexity": ("per raw word", ".1f"),
    "cross_entropy": ("nats per token", ".3f"),
    "perplexity": ("token perplexity", ".1f"),
    "tokens": ("tokens", ","),
    "characters": ("characters", ","),
    "words": ("words", ","),
    "raw_words": ("raw words", ","),
}


def _masked_explanation(recipe: Recipe) -> str:
    masking = recipe.masking
    assert masking is not None
    kept = 1 - masking.mask - masking.random
    return (
        f"{masking.evaluation_probability:.0%} of the tokens are to be predicted (seed {recipe.seed}): of these "
        f"{masking.mask:.0%} are replaced by the mask token, {masking.random:.0%} by a random one, {kept:.0%} stay. "
        f"Texts are cut into blocks of {recipe.sequence_length} tokens of this model's own tokenizer. Cross entropies "
        "are in nats per predicted token, so they only compare with models of the same tokenizer and masks. The "
        "unigram and the bigram model (Witten-Bell, reading the left neighbour) are counted on the same training "
        "tokens and judged on the same masks."
    )


def _causal_explanation(recipe: Recipe) -> str:
    return (
        "Every token of the texts is predicted, the ends and starts of documents too, but for the very first start; "
        "the sum of these cross entropies is divided by the characters and by the words (parted by white space) of "
        f"the documents. The model reads pieces of {recipe.sequence_length} tokens: each without knowledge of those "
        "before, or with its state carried on from each to the next, as `mega perplexity` does. The trigram model "
        "(Witten-Bell, interpolated with bigram and unigram) is counted on the same training tokens and judged on the "
        "same ones, without cuts.\n\n"
        "The words are those of cleaned text, in which punctuation belongs to the word before it, so that word "
        'perplexities do not compare with those published for raw WikiText. The column "per raw word" divides the '
        "same sum by the words of the files before cleaning; the text predicted is still the cleaned one."
    )


def _data(recipe: Recipe) -> str:
    lines = []
    for source in recipe.sources:
        clean = getattr(source, "clean", [])
        cleaning = f"; cleaned: {', '.join(clean)}" if clean else ""
        credit = f" {source.attribution.strip()}" if source.attribution else ""
        lines.append(f"- **{source.name}** ({', '.join(source.roles)}{cleaning}). Licence: {source.license}.{credit}")
    return "\n".join(lines)


def _training(report: Report) -> str:
    recipe, results = report.recipe, report.results
    rows = {
        "command": f"`{report.command}`",
        "parameters": f"{results['parameters']:,}",
        "steps": f"{results['steps']:,}",
        **_seen(results),
        "wall clock": f"{results['hours']:.2f} hours, evaluations while training included",
        "hardware": hardware(report.device),
        "precision": precision(recipe),
        "software": software(),
        "seed": str(recipe.seed),
        "date": results["date"],
    }
    table = "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    settings = {
        "sequence_length": recipe.sequence_length,
        **{
            name: vars(value)
            for name, value in (
                ("masking", recipe.masking),
                ("split", recipe.split),
                ("generation", recipe.generation),
            )
            if value is not None
        },
        "model": pair_card.model_of(recipe) if recipe.task == PAIRS_TASK else recipe.model,
        "training": recipe.training,
        "schedule": vars(recipe.schedule),
    }
    return (
        f"{table}\n\nWeights are stored in float16, the EMA's parameters in float32; both load as float32. "
        "The losses over time are in training_log.json.\n\n"
        f"```yaml\n{yaml.safe_dump(settings, sort_keys=False)}```"
    )


def _seen(results: dict[str, Any]) -> dict[str, str]:
    what, unit = ("tokens", "tokens") if "tokens_seen" in results else ("examples", "pairs")
    seen, there = results[f"{what}_seen"], results[f"train_{what}"]
    return {f"{unit} seen": f"{seen:,} ({results['epochs']:.2f} epochs of {there:,})"}


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


def precision(recipe: Recipe) -> str:
    """What numbers the training computed with."""
    for option, name in (("bf16", "bfloat16"), ("fp16", "float16")):
        if recipe.training.get(option):
            return f"float32 weights, {name} autocast"
    return "float32"


def software() -> str:
    """Versions of what took part."""
    parts = [f"Python {platform.python_version()}"]
    for package in ("mega-transformers", "torch", "transformers", "tokenizers", "accelerate"):
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(parts)
