"""MEGA (Moving Average Equipped Gated Attention, arXiv 2209.10655) for current Transformers and PyTorch.

Importing this package registers its classes with transformers' Auto classes, so that `AutoModel*.from_pretrained` and
`pipeline` load Mega checkpoints.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from ._version import __version__
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
from .models.mega.tokenization_mega import register_tokenizer

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

AutoConfig.register("mega", MegaConfig, exist_ok=True)
for _auto, _model in (
    (AutoModel, MegaModel),
    (AutoModelForAudioClassification, MegaForAudioClassification),
    (AutoModelForCausalLM, MegaForCausalLM),
    (AutoModelForMaskedLM, MegaForMaskedLM),
    (AutoModelForMultipleChoice, MegaForMultipleChoice),
    (AutoModelForQuestionAnswering, MegaForQuestionAnswering),
    (AutoModelForSequenceClassification, MegaForSequenceClassification),
    (AutoModelForTokenClassification, MegaForTokenClassification),
):
    _auto.register(MegaConfig, _model, exist_ok=True)
AutoConfig.register("mega_seq2seq", MegaSeq2SeqConfig, exist_ok=True)
AutoModel.register(MegaSeq2SeqConfig, MegaSeq2SeqModel, exist_ok=True)
AutoModelForSeq2SeqLM.register(MegaSeq2SeqConfig, MegaForConditionalGeneration, exist_ok=True)
register_tokenizer()
