"""The model card of a converted model: its source, what was converted, and how it was checked."""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from .._version import __version__
from .plan import Plan
from .verification import TOLERANCE, Deviation

BLOCK = 1 << 20

# class -> the Auto class of transformers that loads it
AUTO = {
    "MegaForCausalLM": "AutoModelForCausalLM",
    "MegaForMaskedLM": "AutoModelForMaskedLM",
    "MegaForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "EncoderDecoderModel": "EncoderDecoderModel",
    "MegaForSequenceClassification": "AutoModelForSequenceClassification",
    "MegaForAudioClassification": "AutoModelForAudioClassification",
    "MegaForTokenClassification": "AutoModelForTokenClassification",
    "MegaForQuestionAnswering": "AutoModelForQuestionAnswering",
    "MegaForMultipleChoice": "AutoModelForMultipleChoice",
    "MegaModel": "AutoModel",
}


def render(
    name: str, plan: Plan, files: Sequence[Path], dtype: str, deviations: Sequence[Deviation], has_tokenizer: bool
) -> str:
    """The README.md: front matter for the hub, then text.

    Args:
        name: Name of the folder.
        plan: The conversion.
        files: The source files.
        dtype: Number format of the stored weights.
        deviations: The measured deviations; empty without verification.
        has_tokenizer: Whether the model has a tokenizer.
    """
    front = {
        "library_name": "transformers",
        "pipeline_tag": plan.pipeline_tag,
        "tags": ["mega", "mega-transformers", "converted"],
    }
    parts = [
        "---\n" + yaml.safe_dump(front, sort_keys=False) + "---",
        f"# {name}",
        f"Converted by mega-transformers {__version__} from: {plan.source}. See the source for its training data, "
        "its intended use and its licence.",
        _use(name, plan, has_tokenizer),
        "## Source\n\n" + _source(plan, files),
        "## Conversion\n\n" + _conversion(plan, dtype),
        "## Check\n\n" + _check(deviations),
    ]
    return "\n\n".join(parts) + "\n"


def _use(name: str, plan: Plan, has_tokenizer: bool) -> str:
    loader, module = AUTO.get(plan.architecture), "transformers"
    if loader is None:
        loader, module = plan.architecture, "mega_transformers"
    names = f"{loader}, AutoTokenizer" if has_tokenizer and module == "transformers" else loader
    lines = ["import mega_transformers  # registers the model with transformers", f"from {module} import {names}", ""]
    if has_tokenizer:
        if module != "transformers":
            lines.insert(2, "from transformers import AutoTokenizer")
        lines.append(f'tokenizer = AutoTokenizer.from_pretrained("path/to/{name}")')
    lines.append(f'model = {loader}.from_pretrained("path/to/{name}")')
    return "```python\n" + "\n".join(lines) + "\n```"


def _source(plan: Plan, files: Sequence[Path]) -> str:
    rows = [f"| `{file.name}` | {file.stat().st_size:,} | `{digest(file)}` |" for file in files]
    facts = [f"- {fact}: {value}" for fact, value in plan.facts.items()]
    table = "| file | bytes | SHA-256 |\n|---|---:|---|\n" + "\n".join(rows)
    return table + ("\n\n" + "\n".join(facts) if facts else "")


def _conversion(plan: Plan, dtype: str) -> str:
    lines = [
        f"Class `{plan.architecture}`, weights in {dtype}, the moving average's in float32. "
        f"{len(plan.names)} tensors, {datetime.date.today().isoformat()}."
    ]
    if plan.dropped:
        lines.append("Left out:\n\n" + "\n".join(f"- `{pattern}`: {why}" for pattern, why in summary(plan.dropped)))
    if plan.notes:
        lines.append("To know:\n\n" + "\n".join(f"- {note}" for note in plan.notes))
    return "\n\n".join(lines)


def _check(deviations: Sequence[Deviation]) -> str:
    if not deviations:
        return "The conversion was not checked (`--no-verify`)."
    rows = "\n".join(f"| {each.case} | `{each.output}` | {each.relative:.1e} |" for each in deviations)
    return (
        "The source was evaluated independently in float64, and this model in float32, on the same random inputs. "
        f"Deviations are relative to 1 + the largest number; at most {TOLERANCE:.0e} is allowed.\n\n"
        f"| inputs | output | deviation |\n|---|---|---:|\n{rows}"
    )


def summary(dropped: dict[str, str]) -> list[tuple[str, str]]:
    """Names with their reasons; names that differ only in a number, such as a layer's, are merged."""
    return list({pattern(name): why for name, why in dropped.items()}.items())


def pattern(name: str) -> str:
    """A name with * in place of numbers."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    checksum = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            checksum.update(block)
    return checksum.hexdigest()
