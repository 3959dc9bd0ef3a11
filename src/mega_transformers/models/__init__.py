"""Hugging Face models.

Importing any of them makes transformers know what it looks up by class, and not by name as in `..registration`: the
layers that a cache of a `MegaConfig` consists of, and the tokenizer of a `MegaConfig`.
"""

from .mega import cache_mega, static_cache_mega  # noqa: F401  (cache layers enter themselves into transformers' tables)
from .mega.tokenization_mega import register_tokenizer

register_tokenizer()
