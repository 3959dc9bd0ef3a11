"""The models of the page, each loaded once by the loader of its command."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..cli.classify import load_classifier
from ..cli.fill_mask import load_filler
from ..cli.generate import GenerationSettings, load_generator
from ..cli.loading import CAUSAL, CLASSIFIER, MASKED, PAIRS, Kind, kind_of, locate
from ..cli.runtime import UserError, load_libraries
from ..cli.text2text import load_transducer
from ..evaluation.streaming import input_limit

MAX_TOKENS = 2048  # of a text, except on the tab that reads long texts


@dataclass(frozen=True)
class Served:
    """A model that serves visitors.

    Args:
        name: The name as given.
        kind: The kind of model.
        ready: The result of the command's loader: `Filler`, `Generator`, `Transducer` or `Classifier`.
    """

    name: str
    kind: Kind
    ready: Any
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held during each short answer, since two threads must not use a tokenizer at once."""

    @property
    def model(self) -> Any:
        """The model itself."""
        return self.ready.pipeline.model if self.kind == MASKED else self.ready.model

    @property
    def limit(self) -> int | None:
        """The most tokens that the model takes at once, or is made for, or None."""
        config = self.model.config
        own = self.ready.limit if self.kind == MASKED else input_limit(getattr(config, "encoder", config))
        whole = config.model_type == "mega" and not config.use_chunking
        limits = [own, config.max_positions if whole else None]
        return min((limit for limit in limits if limit is not None), default=None)

    def check_tokens(self, tokens: int, subject: str = "the text has") -> None:
        """Refuses more tokens than the model takes or the page allows; the message begins with `subject`.

        Raises:
            UserError: names the limit.
        """
        limit = min(self.limit or MAX_TOKENS, MAX_TOKENS)
        if tokens > limit:
            raise UserError(f"{subject} {tokens:,} tokens, but {self.name} takes at most {limit:,}; shorten it")


def load_models(names: list[str], device: str, dtype: str) -> list[Served]:
    """Loads the models of these names, each once, in order.

    Args:
        names: Bundled models, folders and hub ids.
        device, dtype: The values of `--device` and `--dtype`.

    Raises:
        UserError: for an unknown name, before any model is loaded, and for a model that no tab can use.
    """
    places = [locate(name) for name in dict.fromkeys(names)]
    load_libraries()
    loaders: dict[Kind, Callable[[str], Any]] = {
        MASKED: lambda name: load_filler(name, device, dtype),
        CAUSAL: lambda name: load_generator(
            name, GenerationSettings(max_new_tokens=1, do_sample=False), device, dtype
        ),
        PAIRS: lambda name: load_transducer(name, {"num_return_sequences": 1}, device, dtype),
        CLASSIFIER: lambda name: _classifier(name, device, dtype),
    }
    kinds = [kind_of(place, *loaders) for place in places]
    return [Served(place.name, kind, loaders[kind](place.name)) for place, kind in zip(places, kinds)]


def _classifier(name: str, device: str, dtype: str) -> Any:
    reader = load_classifier(name, device=device, dtype=dtype)
    if reader.problem == "regression":
        raise UserError(f"the model {name} predicts a number; the page shows classifiers, which predict labels")
    return reader
