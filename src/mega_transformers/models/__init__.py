"""Hugging Face models.

Importing any of them registers what transformers looks up by class, not by name (see `..registration`): the cache
layers and the tokenizer of a `MegaConfig`.
"""

from .mega import cache_mega, static_cache_mega  # noqa: F401  (cache layers enter themselves into transformers' tables)
from .mega.tokenization_mega import register_tokenizer

register_tokenizer()
