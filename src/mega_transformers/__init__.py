"""MEGA (Moving Average Equipped Gated Attention, arXiv 2209.10655) for current Transformers and PyTorch.

Importing this package registers its classes with transformers' Auto classes, so that `AutoModel*.from_pretrained` and
`pipeline` load Mega checkpoints.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from ._version import __version__
from .models.mega.configuration_mega import MegaConfig
from .models.mega.modeling_mega import MegaForCausalLM, MegaForMaskedLM, MegaModel, MegaPreTrainedModel
from .models.mega.modeling_mega_classification import (
    MegaForMultipleChoice,
    MegaForQuestionAnswering,
    MegaForSequenceClassification,
    MegaForTokenClassification,
)
from .models.mega.tokenization_mega import register_tokenizer

__all__ = [
    "MegaConfig",
    "MegaForCausalLM",
    "MegaForMaskedLM",
    "MegaForMultipleChoice",
    "MegaForQuestionAnswering",
    "MegaForSequenceClassification",
    "MegaForTokenClassification",
    "MegaModel",
    "MegaPreTrainedModel",
    "__version__",
]

AutoConfig.register("mega", MegaConfig, exist_ok=True)
for _auto, _model in (
    (AutoModel, MegaModel),
    (AutoModelForCausalLM, MegaForCausalLM),
    (AutoModelForMaskedLM, MegaForMaskedLM),
    (AutoModelForMultipleChoice, MegaForMultipleChoice),
    (AutoModelForQuestionAnswering, MegaForQuestionAnswering),
    (AutoModelForSequenceClassification, MegaForSequenceClassification),
    (AutoModelForTokenClassification, MegaForTokenClassification),
):
    _auto.register(MegaConfig, _model, exist_ok=True)
register_tokenizer()
