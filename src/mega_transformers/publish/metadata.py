"""Checks a card's front matter offline, as the hub checks it at an upload."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .errors import PublishError

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")
DATASET_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|code|multilingual")
TAG = re.compile(r"\S.*")
TASK = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")

# field -> pattern, whether several values are allowed, and what would be right
FIELDS: dict[str, tuple[re.Pattern[str], bool, str]] = {
    "base_model": (HUB_ID, True, "ids of models, NAME/MODEL"),
    "datasets": (DATASET_ID, True, "ids of datasets, NAME/DATASET"),
    "language": (LANGUAGE, True, "codes of ISO 639 such as en, or multilingual"),
    "library_name": (TASK, False, "the name of a library such as transformers"),
    "license": (LICENSE_ID, True, "the id of a licence such as apache-2.0, mit or other"),
    "pipeline_tag": (TASK, False, "the name of a task such as fill-mask"),
    "tags": (TAG, True, "words"),
}


def check_fields(fields: Mapping[str, Any]) -> None:
    """Checks the fields that the hub knows, if present.

    Raises:
        PublishError: names the field, its value and what would be right.
    """
    for name, (pattern, several, right) in FIELDS.items():
        value = fields.get(name)
        if value in (None, [], ""):
            continue
        values = value if isinstance(value, list) and several else [value]
        wrong = [each for each in values if not (isinstance(each, str) and pattern.fullmatch(each))]
        if wrong:
            raise PublishError(f"README.md: {name}: {wrong[0]!r} is not valid; the hub takes {right}")
    widget = fields.get("widget") or []
    if not isinstance(widget, list) or not all(isinstance(each, dict) for each in widget):
        raise PublishError("README.md: widget: must be a list of examples, each with fields such as text")


def check_masks(fields: Mapping[str, Any], mask: str) -> None:
    """Checks that the hub's widget can fill the examples of a masked language model with the mask token `mask`.

    Raises:
        PublishError: for another mask token, and for an example with no mask or several.
    """
    if fields.get("mask_token") not in (None, mask):
        raise PublishError(
            f"README.md: mask_token: {fields['mask_token']!r} is not the tokenizer's mask token {mask!r}; change it, "
            "or leave it out"
        )
    for example in fields.get("widget") or []:
        text = example.get("text")
        if not isinstance(text, str) or text.count(mask) != 1:
            raise PublishError(
                f"README.md: widget: {text!r} must contain the tokenizer's mask token {mask!r} exactly once"
            )


def remarks(fields: Mapping[str, Any], task: str, reads_text: bool) -> list[str]:
    """The gaps of a card, as notes for the user.

    Args:
        fields: The front matter.
        task: The hub's name of the model's task.
        reads_text: Whether the model reads text, which has a language.
    """
    found = []
    if not fields.get("license"):
        found.append("the card names no licence, and without a licence nobody may use the model; give --license")
    if reads_text and not fields.get("language"):
        found.append("the card names no language, which people use to find models; give --language")
    if fields.get("pipeline_tag") not in (None, task):
        found.append(
            f"the card says pipeline_tag: {fields['pipeline_tag']}, but the model is made for {task}; the hub's page "
            "will show the wrong widget"
        )
    return found
