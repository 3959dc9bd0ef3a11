"""transformers' own tests of models, configurations and training, on every model of this package.

We skip one, which reads chunked attention weights of encoder-decoders as if they were not, and those about a table of
words where there is none. What the tests skip by themselves (no GPU, no FlashAttention or DeepSpeed installed, no
composite model, no RoPE, no experts) pytest lists with its reason at the end.
"""

from __future__ import annotations

import math
import unittest
import unittest.mock

from model_tester import MegaModelTester, MegaPairModelTester, MegaSeq2SeqModelTester, MegaValuesModelTester
from transformers.models.auto import modeling_auto
from transformers_tests.generation.test_utils import GenerationTesterMixin
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin
from transformers_tests.test_training_mixin import TrainingTesterMixin

from mega_transformers import (
    MegaConfig,
    MegaForAudioClassification,
    MegaForCausalLM,
    MegaForConditionalGeneration,
    MegaForMaskedLM,
    MegaForMultipleChoice,
    MegaForQuestionAnswering,
    MegaForSequenceClassification,
    MegaForSequencePairClassification,
    MegaForTokenClassification,
    MegaModel,
    MegaSeq2SeqConfig,
    MegaSeq2SeqModel,
)
from mega_transformers.layers import MegaAdaptiveEmbedding, MegaAdaptiveSoftmax
from mega_transformers.models.mega.inputs_mega import MegaValueEmbeddings

# By these names the mixins know which labels a class takes; models inside transformers are in them.
for _task, _class in {
    "MODEL_MAPPING_NAMES": MegaModel,
    "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES": MegaForAudioClassification,
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": MegaForCausalLM,
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES": MegaForMaskedLM,
    "MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES": MegaForMultipleChoice,
    "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES": MegaForQuestionAnswering,
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": MegaForSequenceClassification,
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES": MegaForTokenClassification,
}.items():
    getattr(modeling_auto, _task)["mega"] = _class.__name__
_pairs = MegaForSequencePairClassification.__name__
modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES["mega (pairs)"] = _pairs
modeling_auto.MODEL_MAPPING_NAMES["mega_seq2seq"] = MegaSeq2SeqModel.__name__
modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES["mega_seq2seq"] = MegaForConditionalGeneration.__name__

TRAINING_FIELDS = {
    "initializer_range": 0.2,  # the default of 0.02 leaves the head of so narrow a model on a plateau at first
    "dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "nffn_activation_dropout_prob": 0.0,
}


class MegaModelTest(ModelTesterMixin, unittest.TestCase):
    """Softmax, rotary bias, full attention."""

    all_model_classes = (
        MegaModel,
        MegaForMaskedLM,
        MegaForSequenceClassification,
        MegaForTokenClassification,
        MegaForMultipleChoice,
        MegaForQuestionAnswering,
    )
    test_can_init_all_missing_weights_before_2023 = True
    config_fields: dict = {}  # noqa: RUF012

    def setUp(self) -> None:
        self.model_tester = MegaModelTester(**self.config_fields)

    def test_causal_lm_loss_honors_shift_labels(self):
        """With weights that tell targets apart: at the usual size 2% of inputs have equal losses in float32."""
        self.model_tester.config_fields = {**self.model_tester.config_fields, "initializer_range": 0.2}
        super().test_causal_lm_loss_honors_shift_labels()


class MegaChunkedLaplaceModelTest(MegaModelTest):
    """Laplace attention in chunks of 4 with a ragged last one, simple bias, post-norm."""

    config_fields = {  # noqa: RUF012
        "use_chunking": True,
        "chunk_size": 4,
        "attention_activation": "laplace",
        "relative_positional_bias": "simple",
        "normalization_type": "layernorm",
        "normalize_before_mega": False,
        "normalize_before_ffn": False,
    }

    def test_attention_outputs(self) -> None:
        # weights are (batch, chunks, chunk, chunk), where the mixin looks for (batch, heads, length, length)
        chunk = self.config_fields["chunk_size"]
        self.model_tester.num_attention_heads = math.ceil(self.model_tester.seq_length / chunk)
        self.model_tester.encoder_seq_length = chunk
        super().test_attention_outputs()


class MegaDecoderModelTest(MegaModelTest, GenerationTesterMixin):
    """The causal base model and language model, with their cache.

    The mixin of generation tests is not distributed, and what stands in for it is empty:
    `tests/models/test_generation.py` does its work.
    """

    all_model_classes = (MegaModel, MegaForCausalLM)
    config_fields = {"is_decoder": True, "bidirectional": False}  # noqa: RUF012


class MegaChunkedLaplaceDecoderModelTest(MegaChunkedLaplaceModelTest, GenerationTesterMixin):
    all_model_classes = (MegaModel, MegaForCausalLM)
    config_fields = {  # noqa: RUF012
        **MegaChunkedLaplaceModelTest.config_fields,
        **MegaDecoderModelTest.config_fields,
    }


class MegaAdaptiveDecoderModelTest(MegaDecoderModelTest):
    """A causal language model whose adaptive input and softmax share words and projections."""

    test_resize_embeddings = False
    config_fields = {  # noqa: RUF012
        **MegaDecoderModelTest.config_fields,
        "adaptive_cutoffs": [20, 60],
        "adaptive_input": True,
        "adaptive_softmax": True,
        "tie_adaptive_weights": True,
        "tie_adaptive_projections": True,
    }

    def test_model_get_set_embeddings(self) -> None:
        # neither is the table or the linear layer that the mixin asks for
        config = self.model_tester.get_config()
        for model_class in self.all_model_classes:
            model = model_class(config)
            self.assertIsInstance(model.get_input_embeddings(), MegaAdaptiveEmbedding)
            other = MegaAdaptiveEmbedding(config)
            model.set_input_embeddings(other)
            self.assertIs(model.get_input_embeddings(), other)
        self.assertIsInstance(model.get_output_embeddings(), MegaAdaptiveSoftmax)


class MegaValuesModelTest(MegaModelTest):
    """Models of values with the authors' classifier."""

    all_model_classes = (MegaModel, MegaForSequenceClassification, MegaForAudioClassification)
    test_resize_embeddings = False
    test_mismatched_shapes = False  # of a trunk with another vocabulary
    config_fields = {  # noqa: RUF012
        "input_type": "values",
        "add_token_type_embeddings": False,
        "classifier_pooling": "mean",
        "classifier_head": "blocks",
        "final_norm": True,
    }

    def setUp(self) -> None:
        self.model_tester = MegaValuesModelTester(**self.config_fields)

    def test_model_get_set_embeddings(self) -> None:
        config = self.model_tester.get_config()
        for model_class in self.all_model_classes:
            model = model_class(config)
            self.assertIsInstance(model.get_input_embeddings(), MegaValueEmbeddings)
            other = MegaValueEmbeddings(config.hidden_size)
            model.set_input_embeddings(other)
            self.assertIs(model.get_input_embeddings(), other)

    def test_inputs_embeds(self) -> None:
        self.skipTest("embeds input_ids; tests/models/test_values_and_pairs.py embeds input_values")

    test_inputs_embeds_matches_input_ids = test_inputs_embeds


class MegaSequencePairModelTest(MegaModelTest):
    """Pairs of sequences."""

    all_model_classes = (MegaForSequencePairClassification,)
    additional_model_inputs = ("pair_input_ids", "pair_attention_mask")

    def setUp(self) -> None:
        self.model_tester = MegaPairModelTester(**self.config_fields)

    def test_load_with_mismatched_shapes(self) -> None:
        # runs what AutoModelForSequenceClassification makes of the folder, which reads no pairs
        self.model_tester = MegaModelTester(**self.config_fields)
        super().test_load_with_mismatched_shapes()


class MegaSeq2SeqModelTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    """Encoder-decoders: softmax, rotary bias, full attention."""

    all_model_classes = (MegaSeq2SeqModel, MegaForConditionalGeneration)
    test_can_init_all_missing_weights_before_2023 = True
    is_encoder_decoder = True
    config_fields: dict = {}  # noqa: RUF012

    def setUp(self) -> None:
        self.model_tester = MegaSeq2SeqModelTester(**self.config_fields)

    def test_config(self) -> None:
        tester = ConfigTester(self, config_class=MegaSeq2SeqConfig, has_text_modality=False)
        # loads one side from the folder of both by its class, which here is that of both sides
        tester.create_and_test_config_from_and_save_pretrained_composite = lambda: None
        tester.run_common_tests()

    def test_encoder_decoder_loss_no_double_shift(self) -> None:
        # asks for the gradient of the loss at the logits, of which the fused loss is no function
        with unittest.mock.patch.object(MegaForConditionalGeneration, "_has_plain_loss", lambda self, head: False):
            super().test_encoder_decoder_loss_no_double_shift()


class MegaChunkedLaplaceSeq2SeqModelTest(MegaSeq2SeqModelTest):
    """Laplace attention in chunks of 4, simple bias, post-norm, on both sides."""

    config_fields = MegaChunkedLaplaceModelTest.config_fields

    def test_attention_outputs(self) -> None:
        self.skipTest("weights are (batch, chunks, chunk, chunk); tests/models/test_seq2seq.py looks at them")


class MegaTrainingTest(TrainingTesterMixin, unittest.TestCase):
    """A masked language model learns one batch by heart."""

    all_model_classes = (MegaForMaskedLM,)
    model_tester = MegaModelTester(**TRAINING_FIELDS)


class MegaChunkedLaplaceTrainingTest(MegaTrainingTest):
    model_tester = MegaModelTester(**TRAINING_FIELDS, **MegaChunkedLaplaceModelTest.config_fields)


class MegaCausalTrainingTest(MegaTrainingTest):
    """A causal language model learns one batch by heart, and goes on from a prompt as it stands there."""

    all_model_classes = (MegaForCausalLM,)
    # its text is made of the ids 1 to 19, which therefore must be neither padding nor an end
    model_tester = MegaModelTester(
        **TRAINING_FIELDS, **MegaDecoderModelTest.config_fields, pad_token_id=0, eos_token_id=0
    )


class MegaAdaptiveTrainingTest(MegaCausalTrainingTest):
    model_tester = MegaModelTester(
        **TRAINING_FIELDS, **MegaAdaptiveDecoderModelTest.config_fields, pad_token_id=0, eos_token_id=0
    )


class MegaConfigTest(unittest.TestCase):
    def test_config(self) -> None:
        ConfigTester(self, config_class=MegaConfig, hidden_size=37).run_common_tests()
