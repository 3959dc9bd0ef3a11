"""What differs between the supported releases of transformers, 5.18 to 5.24. Each difference names its release.

The rest of the package speaks the language of the newest release.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from transformers import modeling_outputs
from transformers.generation import GenerationMixin

Function = TypeVar("Function", bound=Callable[..., Any])

OLD_CACHE_NAME = "past_key_values"

_STEP_ARGUMENTS = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
CACHE_NAME = "cache" if "cache" in _STEP_ARGUMENTS else OLD_CACHE_NAME
"""What transformers calls a cache in arguments and outputs: "cache" from 5.24 on, "past_key_values" before."""


def rename_cache(kwargs: dict[str, Any], name: str = "cache") -> None:
    """Renames the cache among keyword arguments, in place, from its old or new name.

    From 5.24 on the old name is deprecated, as in transformers; before, transformers itself uses it.

    Args:
        kwargs: The arguments.
        name: The new name.

    Raises:
        ValueError: if both names are there.
    """
    other = OLD_CACHE_NAME if name == "cache" else "cache"
    if other not in kwargs:
        return
    given = kwargs.pop(other)
    if given is None:
        return
    if kwargs.get(name) is not None:
        raise ValueError(
            "cache and past_key_values are both given, but are two names of the same argument; give only cache"
        )
    kwargs[name] = given
    if other == OLD_CACHE_NAME and CACHE_NAME == "cache" and not torch.compiler.is_compiling():
        warnings.warn("`past_key_values` is deprecated; use `cache` instead", FutureWarning, stacklevel=4)


def takes_either_name(function: Function, unread: Iterable[str] = ()) -> Function:
    """A function of transformers that accepts the cache under either name.

    Arguments named in `unread` are dropped.
    """

    @functools.wraps(function)
    def renamed(*args: Any, **kwargs: Any) -> Any:
        rename_cache(kwargs, CACHE_NAME)
        for name in unread:
            kwargs.pop(name, None)
        return function(*args, **kwargs)

    return renamed  # type: ignore[return-value]


def cache_argument(model: Any) -> str:
    """The argument name of any causal language model's cache.

    Raises:
        ValueError: if it does not take a cache.
    """
    known = inspect.signature(model.forward).parameters
    for name in ("cache", OLD_CACHE_NAME):
        if name in known:
            return name
    raise ValueError(f"{type(model).__name__} takes no cache")


if CACHE_NAME == "cache":
    MegaModelOutput = modeling_outputs.BaseModelOutputWithPoolingAndCrossAttentions
    MegaCausalLMOutput = modeling_outputs.CausalLMOutputWithCrossAttentions
    MegaSeq2SeqModelOutput = modeling_outputs.Seq2SeqModelOutput
    MegaSeq2SeqLMOutput = modeling_outputs.Seq2SeqLMOutput
else:  # before 5.24: outputs have the field `past_key_values` only

    class _HasCache:
        """Outputs with a `cache`, which these releases read under its old name."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            rename_cache(kwargs, OLD_CACHE_NAME)
            super().__init__(*args, **kwargs)

        @property
        def cache(self) -> Any:
            """The cache, or None."""
            return self.past_key_values  # type: ignore[attr-defined]

        def __getitem__(self, key: Any) -> Any:
            return super().__getitem__(OLD_CACHE_NAME if key == "cache" else key)  # type: ignore[misc]

    class MegaModelOutput(  # type: ignore[no-redef, override]
        _HasCache, modeling_outputs.BaseModelOutputWithPoolingAndCrossAttentions
    ):
        """See transformers."""

    class MegaCausalLMOutput(_HasCache, modeling_outputs.CausalLMOutputWithCrossAttentions):  # type: ignore[no-redef, override]
        """See transformers."""

    class MegaSeq2SeqModelOutput(_HasCache, modeling_outputs.Seq2SeqModelOutput):  # type: ignore[no-redef, override]
        """See transformers."""

    class MegaSeq2SeqLMOutput(_HasCache, modeling_outputs.Seq2SeqLMOutput):  # type: ignore[no-redef, override]
        """See transformers."""
