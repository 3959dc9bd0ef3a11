"""MEGA (Moving Average Equipped Gated Attention, arXiv 2209.10655) for current Transformers and PyTorch.

Importing this package registers its classes with transformers' Auto classes, so that `AutoModel*.from_pretrained` and
`pipeline` load Mega checkpoints. It imports neither PyTorch nor transformers: the classes are imported when they are
first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import registration
from ._version import __version__
from .releases import warn_of_untested_release

if TYPE_CHECKING:
    from .models.mega.configuration_mega import MegaConfig
    from .models.mega.configuration_mega_seq2seq import MegaSeq2SeqConfig
    from .models.mega.modeling_mega import MegaForCausalLM, MegaForMaskedLM, MegaModel, MegaPreTrainedModel
    from .models.mega.modeling_mega_classification import (
        MegaForAudioClassification,
        MegaForMultipleChoice,
        MegaForQuestionAnswering,
        MegaForSequenceClassification,
        MegaForTokenClassification,
    )
    from .models.mega.modeling_mega_pairs import MegaForSequencePairClassification
    from .models.mega.modeling_mega_seq2seq import MegaForConditionalGeneration, MegaSeq2SeqModel

__all__ = [
    "MegaConfig",
    "MegaForAudioClassification",
    "MegaForCausalLM",
    "MegaForConditionalGeneration",
    "MegaForMaskedLM",
    "MegaForMultipleChoice",
    "MegaForQuestionAnswering",
    "MegaForSequenceClassification",
    "MegaForSequencePairClassification",
    "MegaForTokenClassification",
    "MegaModel",
    "MegaPreTrainedModel",
    "MegaSeq2SeqConfig",
    "MegaSeq2SeqModel",
    "__version__",
]

# module of models.mega -> the classes it defines
_CLASSES = {
    "configuration_mega": ["MegaConfig"],
    "configuration_mega_seq2seq": ["MegaSeq2SeqConfig"],
    "modeling_mega": ["MegaForCausalLM", "MegaForMaskedLM", "MegaModel", "MegaPreTrainedModel"],
    "modeling_mega_classification": [
        "MegaForAudioClassification",
        "MegaForMultipleChoice",
        "MegaForQuestionAnswering",
        "MegaForSequenceClassification",
        "MegaForTokenClassification",
    ],
    "modeling_mega_pairs": ["MegaForSequencePairClassification"],
    "modeling_mega_seq2seq": ["MegaForConditionalGeneration", "MegaSeq2SeqModel"],
}
_MODULES = {name: f"{__name__}.models.mega.{module}" for module, names in _CLASSES.items() for name in names}
_SUBPACKAGES = ("layers", "models", "ops")


def __getattr__(name: str) -> Any:
    """Imports a class or subpackage when it is first used."""
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    """All names, including those that are not imported yet."""
    return sorted({*globals(), *_MODULES, *_SUBPACKAGES})


warn_of_untested_release()
registration.register()
