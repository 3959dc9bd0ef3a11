"""Tokenizers as transformers 4.40.2, with the tokenizers library of its time, reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..convert.reading import read_json
from .errors import PublishError
from .folder import save_tokenizer

NEW_NAMES = {"TokenizersBackend": "PreTrainedTokenizerFast"}
# what transformers 5 keeps for itself
DROPPED = ("backend", "is_local", "local_files_only", "extra_special_tokens")


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Saves a tokenizer.

    Raises:
        PublishError: for one whose merges cannot be told apart in the older format.
    """
    save_tokenizer(tokenizer, folder)
    path = folder / "tokenizer_config.json"
    config = read_json(path)
    config["tokenizer_class"] = NEW_NAMES.get(config["tokenizer_class"], config["tokenizer_class"])
    extra = config.get("extra_special_tokens")
    if isinstance(extra, list) and extra:
        config["additional_special_tokens"] = extra
    _write(path, {name: value for name, value in config.items() if name not in DROPPED})
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    content = json.loads(path.read_text(encoding="utf-8"))
    merges = content["model"].get("merges")
    if merges:
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
        if any(" " in part for pair in pairs for part in pair):
            raise PublishError("the tokenizer merges pieces with spaces, which transformers 4.40.2 cannot read")
        content["model"]["merges"] = [" ".join(pair) for pair in pairs]
        _write(path, content)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
