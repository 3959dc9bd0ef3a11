"""The tokenizer that `AutoTokenizer` gives for a Mega folder without a named one: RoBERTa's, as in transformers 4."""

from __future__ import annotations

import json
import os
from typing import Any

from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerBase, RobertaTokenizer
from transformers.tokenization_utils_tokenizers import TokenizersBackend
from transformers.utils import cached_file

from .configuration_mega import MegaConfig

ROBERTA_SPECIAL_TOKENS = {"<s>", "<pad>", "</s>", "<unk>", "<mask>"}
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


class MegaTokenizer(RobertaTokenizer):
    """Loads Mega tokenizers as a `RobertaTokenizer`, which also works without this package once saved.

    Without this class, transformers 5 makes two mistakes with a folder that does not name its tokenizer's class: if
    files are missing, it builds a vocabulary of five entries; and from vocab.json and merges.txt, it keeps the space
    before `<mask>` as a separate token, unlike transformers 4.
    """

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *inputs: Any, **kwargs: Any
    ) -> PreTrainedTokenizerBase:
        """Loads a folder or hub id that holds tokenizer.json, or vocab.json and merges.txt.

        A tokenizer.json without RoBERTa's special tokens is another kind of tokenizer, and is loaded as it is.

        Raises:
            OSError: if the files are missing; the message names them.
        """
        name = str(pretrained_model_name_or_path)

        def find(file: str) -> str | None:
            hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
            return cached_file(name, file, _raise_exceptions_for_missing_entries=False, **hub)

        kind: type[TokenizersBackend] = RobertaTokenizer
        tokenizer_json = find("tokenizer.json")
        if tokenizer_json is not None:
            if not _vocabulary(tokenizer_json) >= ROBERTA_SPECIAL_TOKENS:
                kind = TokenizersBackend
        else:
            missing = [file for file in ("vocab.json", "merges.txt") if find(file) is None]
            if missing:
                raise OSError(
                    f"{name} holds no tokenizer: {' and '.join(missing)} missing. A Mega model's tokenizer is either "
                    "tokenizer.json, or vocab.json and merges.txt; copy these files from the model's source, or save "
                    "a tokenizer there with tokenizer.save_pretrained(...)."
                )
            if not any(_names_mask(find(file)) for file in ("tokenizer_config.json", "special_tokens_map.json")):
                kwargs.setdefault("mask_token", AddedToken("<mask>", lstrip=True, special=True))
        return kind.from_pretrained(pretrained_model_name_or_path, *inputs, **kwargs)


def _vocabulary(tokenizer_json: str) -> set[str]:
    """The tokens of a tokenizer.json, whose vocabulary is a dict, or a list of (token, score) for unigram models."""
    with open(tokenizer_json, encoding="utf-8") as file:
        content = json.load(file)
    vocabulary = content.get("model", {}).get("vocab", {})
    tokens = vocabulary if isinstance(vocabulary, dict) else (token for token, _ in vocabulary)
    return {*tokens, *(token["content"] for token in content.get("added_tokens", []))}


def _names_mask(path: str | None) -> bool:
    if path is None:
        return False
    with open(path, encoding="utf-8") as file:
        return "mask_token" in json.load(file)


def register_tokenizer() -> None:
    """Registers `model_type: mega` with `AutoTokenizer`. A class named in tokenizer_config.json takes precedence."""
    AutoTokenizer.register(MegaConfig, tokenizer_class=MegaTokenizer, exist_ok=True)
