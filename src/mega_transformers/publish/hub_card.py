"""The model card of a published folder: keeps the existing card and adds what the hub needs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index

from ..convert.conversion_card import AUTO
from ..convert.transformers_folder import KINDS
from .errors import PublishError
from .metadata import check_fields, check_masks
from .standalone import PACKAGE, PAIRS, flat

FRONT_MATTER = re.compile(r"\A(?:\ufeff)?\s*---[ \t]*\n(.*?\n)?---[ \t]*(?:\n|\Z)", flags=re.DOTALL)
STANDALONE_HEADING = "## Without mega-transformers"

PIPELINE_TAGS = {name: kind.tag for name, kind in KINDS.items()} | {
    "MegaForAudioClassification": "audio-classification",
    "MegaForConditionalGeneration": "text2text-generation",
    "MegaForSequencePairClassification": "text-classification",
    "MegaSeq2SeqModel": "feature-extraction",
    "EncoderDecoderModel": "text2text-generation",
}
PIPELINES = ("fill-mask", "text-generation")
MASKED_EXAMPLES = ("The president of the {mask} gave a speech.", "The {mask} of the ship gave an order.")
# scores of results.json -> the hub's type of metric
METRICS = {
    "accuracy": "accuracy",
    "bleu": "bleu",
    "chrf": "chrf",
    "exact_match": "exact_match",
    "perplexity": "perplexity",
    "bits_per_character": "bits_per_character",
    "symbol_error_rate": "symbol_error_rate",
}


@dataclass(frozen=True)
class Facts:
    """The facts about a model for its card.

    Args:
        name: Its name, for the title: "mega-prose-5m".
        location: The argument of `from_pretrained`: a hub id, or a path to fill in.
        architecture: Name of its class.
        mask_token: Its tokenizer's mask token, or None.
        has_tokenizer: Whether it has a tokenizer.
        standalone: Whether the folder includes the modelling code.
        license: The user's licence id, or None.
        language: The user's language code, or None.
        base_model: The model it was trained from, if known.
        scores: results.json's "scores": text -> model -> metric -> value; "model" is this one.
    """

    name: str
    location: str
    architecture: str
    mask_token: str | None = None
    has_tokenizer: bool = True
    standalone: bool = False
    license: str | None = None
    base_model: str | None = None
    scores: dict[str, Any] | None = None
    language: str | None = None

    @property
    def task(self) -> str:
        """The hub's name of the model's task."""
        return PIPELINE_TAGS[self.architecture]


def complete(text: str | None, facts: Facts) -> tuple[str, list[str]]:
    """The README.md: `text`, or a new one for None, with complete front matter.

    Args:
        text: The existing README.md. Everything in it is kept.
        facts: The facts about the model.

    Returns:
        The text, and the names of the fields that were added to its front matter.

    Raises:
        PublishError: for front matter that the hub cannot read, or that contradicts the facts.
    """
    front, body = _parts(text or "")
    given = front_matter(text or "")
    for name in ("license", "language"):
        asked = getattr(facts, name)
        if asked is not None and given.get(name) not in (None, asked):
            raise PublishError(
                f"--{name} says {asked!r}, but README.md says {name}: {given[name]!r}; change one of them"
            )
    wanted = _fields(facts)
    missing = {key: value for key, value in wanted.items() if given.get(key) is None and value not in (None, [])}
    # an existing empty field would otherwise occur twice
    front = "".join(line for line in front.splitlines(keepends=True) if line.split(":")[0] not in missing)
    if missing:
        front += yaml.safe_dump(missing, sort_keys=False, allow_unicode=True)
    if not body.strip():
        body = _body(facts)
    if facts.standalone and STANDALONE_HEADING not in body:
        body = f"{body.rstrip()}\n\n{_without_package(facts)}\n"
    card = f"---\n{front}---\n{body}"
    fields = {**given, **missing}
    _check(card, fields)
    check_fields(fields)
    if facts.mask_token is not None and fields["pipeline_tag"] == facts.task == "fill-mask":
        check_masks(fields, facts.mask_token)
    return card, list(missing)


def _parts(text: str) -> tuple[str, str]:
    """The front matter without its delimiters, and the text after it."""
    found = FRONT_MATTER.match(text)
    if found is None:
        return "", f"\n{text}" if text else ""
    return found.group(1) or "", text[found.end() :]


def front_matter(text: str) -> dict[str, Any]:
    """The fields of a card.

    Raises:
        PublishError: if they cannot be read.
    """
    front, _ = _parts(text)
    try:
        given = yaml.safe_load(front) or {}
    except yaml.YAMLError as error:
        raise PublishError(f"README.md: its front matter is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(given, dict):
        raise PublishError(f"README.md: its front matter must be a mapping of fields, but is a {type(given).__name__}")
    return given


def _fields(facts: Facts) -> dict[str, Any]:
    """The front matter of a card without any; None for unknown values."""
    tag = facts.task
    mask = facts.mask_token if tag == "fill-mask" else None
    widget = [] if mask is None else [{"text": example.format(mask=mask)} for example in MASKED_EXAMPLES]
    return {
        "library_name": "transformers",
        "pipeline_tag": tag,
        "license": facts.license,
        "language": facts.language,
        "base_model": facts.base_model,
        "tags": ["mega", "mega-transformers"],
        "mask_token": mask,
        "widget": widget,
        "model-index": _model_index(facts, tag),
    }


def _model_index(facts: Facts, tag: str) -> list[dict[str, Any]]:
    """The model's own scores in the hub's format."""
    results = [
        EvalResult(
            task_type=tag,
            dataset_type="text",
            dataset_name=f"{role} texts named in this card",
            dataset_split=role,
            metric_type=METRICS[metric],
            metric_value=value,
        )
        for role, models in (facts.scores or {}).items()
        for metric, value in models.get("model", {}).items()
        if metric in METRICS
    ]
    return eval_results_to_model_index(facts.name, results) if results else []


def _check(card: str, expected: dict[str, Any]) -> None:
    """Reads the card with the hub's own library.

    Raises:
        PublishError: if the library cannot read it, or reads other values.
    """
    try:
        read = ModelCard(card).data.to_dict()
    except Exception as error:  # KeyError and others for an invalid model-index
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PublishError(f"README.md: the hub's library cannot read its front matter: {reason}") from error
    lost = sorted(key for key, value in expected.items() if value not in (None, [], "") and key not in read)
    if lost:
        raise PublishError(f"README.md: the hub's library does not find {', '.join(lost)} in its front matter")


def _body(facts: Facts) -> str:
    return (
        f"\n# {facts.name}\n\n"
        f"A `{facts.architecture}` of the Mega architecture (moving average equipped gated attention, "
        "arXiv 2209.10655).\n\n" + _code(_loading(facts, trusted=False)) + "\n"
    )


def _without_package(facts: Facts) -> str:
    needs = _requirements()
    condition = f" ({', '.join(needs)})" if needs else ""
    return (
        f"{STANDALONE_HEADING}\n\n"
        f"The modelling code is in this folder too: PyTorch, transformers and safetensors{condition} are enough. "
        "`trust_remote_code=True` runs that code; if mega-transformers is installed and imported, its own code runs "
        "instead.\n\n" + _code(_loading(facts, trusted=True))
    )


def _requirements() -> list[str]:
    """The package's requirements of PyTorch and transformers."""
    try:
        stated = requires(PACKAGE.replace("_", "-")) or []
    except PackageNotFoundError:
        return []
    return [need for need in stated if re.match(r"(torch|transformers)\b", need) and ";" not in need]


def _loading(facts: Facts, trusted: bool) -> list[str]:
    """Python lines that load a model, with this package or with the code beside the model."""
    where = f'"{facts.location}"'
    ours = [] if trusted else ["import mega_transformers  # registers the model with transformers"]
    trust = ", trust_remote_code=True" if trusted else ""
    tag = facts.task
    if tag in PIPELINES and facts.has_tokenizer:
        text = MASKED_EXAMPLES[0].format(mask=facts.mask_token) if tag == "fill-mask" else "The door"
        return [
            *ours,
            "from transformers import pipeline",
            "",
            f'run = pipeline("{tag}", model={where}{trust})',
            f'run("{text}")',
        ]
    loader = AUTO.get(facts.architecture)
    if facts.architecture == "MegaSeq2SeqModel":
        loader = "AutoModel"
    names = ["AutoTokenizer"] if facts.has_tokenizer else []
    lines = [f"tokenizer = AutoTokenizer.from_pretrained({where})"] if facts.has_tokenizer else []
    if loader is not None:
        imports = [*ours, f"from transformers import {', '.join(sorted([loader, *names]))}"]
        return [*imports, "", *lines, f"model = {loader}.from_pretrained({where}{trust})"]
    # no Auto class loads it
    imports = [f"from transformers import {name}" for name in names]
    if not trusted:
        loading = f"model = {facts.architecture}.from_pretrained({where})"
        return [*imports, f"from {PACKAGE} import {facts.architecture}", "", *lines, loading]
    reference = f'"{flat(PAIRS)}.{facts.architecture}"'
    return [
        *imports,
        "from transformers.dynamic_module_utils import get_class_from_dynamic_module",
        "",
        *lines,
        f"model_class = get_class_from_dynamic_module({reference}, {where})",
        f"model = model_class.from_pretrained({where})",
    ]


def _code(lines: list[str]) -> str:
    return "```python\n" + "\n".join(lines) + "\n```"
