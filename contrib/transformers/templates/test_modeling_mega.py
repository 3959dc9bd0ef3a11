# {{LICENSE}}
"""Testing suite for the PyTorch MEGA model."""

import math
import unittest

from transformers import AutoTokenizer, DynamicCache, MegaConfig, is_torch_available
from transformers.testing_utils import require_torch, slow, torch_device

from ...generation.test_utils import GenerationTesterMixin
from ...test_configuration_common import ConfigTester
from ...test_modeling_common import ModelTesterMixin, ids_tensor, random_attention_mask
from ...test_pipeline_mixin import PipelineTesterMixin


if is_torch_available():
    import torch

    from transformers import (
        MegaForCausalLM,
        MegaForMaskedLM,
        MegaForMultipleChoice,
        MegaForQuestionAnswering,
        MegaForSequenceClassification,
        MegaForTokenClassification,
        MegaModel,
    )
    from transformers.models.mega.modeling_mega import (
        MegaMultiDimensionDampedEma,
        ema_chunked,
        ema_coefficients,
        ema_step,
    )


class MegaModelTester:
    def __init__(
        self,
        parent,
        batch_size=13,
        seq_length=7,
        is_training=True,
        vocab_size=99,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=1,
        intermediate_size=64,
        ema_projection_size=4,
        shared_representation_size=16,
        nffn_hidden_size=48,
        max_positions=64,
        num_labels=3,
        num_choices=4,
        **config_fields,
    ):
        self.parent = parent
        self.batch_size = batch_size
        self.seq_length = seq_length
        self.is_training = is_training
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.ema_projection_size = ema_projection_size
        self.shared_representation_size = shared_representation_size
        self.nffn_hidden_size = nffn_hidden_size
        self.max_positions = max_positions
        self.num_labels = num_labels
        self.num_choices = num_choices
        self.config_fields = config_fields

    def get_config(self, **fields):
        defaults = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "intermediate_size": self.intermediate_size,
            "ema_projection_size": self.ema_projection_size,
            "shared_representation_size": self.shared_representation_size,
            "nffn_hidden_size": self.nffn_hidden_size,
            "max_positions": self.max_positions,
            "add_token_type_embeddings": True,
            # wide enough that no two outputs are equal by chance
            "initializer_range": 0.2,
        }
        return MegaConfig(**{**defaults, **self.config_fields, **fields})

    def expect_chunked_attentions(self):
        """The weights are (batch, chunks, chunk, chunk), where the mixin looks for (batch, heads, length, length)."""
        chunk_size = self.config_fields["chunk_size"]
        self.num_attention_heads = math.ceil(self.seq_length / chunk_size)
        self.encoder_seq_length = chunk_size

    def prepare_config_and_inputs(self):
        input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size)
        input_mask = random_attention_mask([self.batch_size, self.seq_length]).to(torch_device)
        token_type_ids = ids_tensor([self.batch_size, self.seq_length], 2)
        sequence_labels = ids_tensor([self.batch_size], self.num_labels)
        token_labels = ids_tensor([self.batch_size, self.seq_length], self.num_labels)
        choice_labels = ids_tensor([self.batch_size], self.num_choices)
        return self.get_config(), input_ids, token_type_ids, input_mask, sequence_labels, token_labels, choice_labels

    def prepare_config_and_inputs_for_common(self):
        config, input_ids, token_type_ids, input_mask, *_ = self.prepare_config_and_inputs()
        return config, {"input_ids": input_ids, "token_type_ids": token_type_ids, "attention_mask": input_mask}

    def create_model(self, model_class, config):
        return model_class(config).to(torch_device).eval()

    def check_shape(self, tensor, *shape):
        self.parent.assertEqual(tensor.shape, shape)

    def create_and_check_model(self, config, input_ids, token_type_ids, input_mask, *labels):
        model = self.create_model(MegaModel, config)
        result = model(input_ids, attention_mask=input_mask, token_type_ids=token_type_ids)
        self.check_shape(result.last_hidden_state, self.batch_size, self.seq_length, self.hidden_size)
        self.check_shape(result.pooler_output, self.batch_size, self.hidden_size)

    def create_and_check_for_masked_lm(
        self, config, input_ids, token_type_ids, input_mask, sequence_labels, token_labels, choice_labels
    ):
        model = self.create_model(MegaForMaskedLM, config)
        result = model(input_ids, attention_mask=input_mask, token_type_ids=token_type_ids, labels=token_labels)
        self.check_shape(result.logits, self.batch_size, self.seq_length, self.vocab_size)

    def create_and_check_for_sequence_classification(
        self, config, input_ids, token_type_ids, input_mask, sequence_labels, token_labels, choice_labels
    ):
        for fields in ({}, {"classifier_pooling": "mean", "classifier_head": "blocks"}):
            config = self.get_config(num_labels=self.num_labels, **fields)
            model = self.create_model(MegaForSequenceClassification, config)
            result = model(input_ids, attention_mask=input_mask, token_type_ids=token_type_ids, labels=sequence_labels)
            self.check_shape(result.logits, self.batch_size, self.num_labels)

    def create_and_check_for_token_classification(
        self, config, input_ids, token_type_ids, input_mask, sequence_labels, token_labels, choice_labels
    ):
        model = self.create_model(MegaForTokenClassification, self.get_config(num_labels=self.num_labels))
        result = model(input_ids, attention_mask=input_mask, token_type_ids=token_type_ids, labels=token_labels)
        self.check_shape(result.logits, self.batch_size, self.seq_length, self.num_labels)

    def create_and_check_for_question_answering(
        self, config, input_ids, token_type_ids, input_mask, sequence_labels, token_labels, choice_labels
    ):
        model = self.create_model(MegaForQuestionAnswering, config)
        result = model(
            input_ids,
            attention_mask=input_mask,
            token_type_ids=token_type_ids,
            start_positions=sequence_labels,
            end_positions=sequence_labels,
        )
        self.check_shape(result.start_logits, self.batch_size, self.seq_length)
        self.check_shape(result.end_logits, self.batch_size, self.seq_length)

    def create_and_check_for_multiple_choice(
        self, config, input_ids, token_type_ids, input_mask, sequence_labels, token_labels, choice_labels
    ):
        model = self.create_model(MegaForMultipleChoice, config)
        inputs = {"input_ids": input_ids, "token_type_ids": token_type_ids, "attention_mask": input_mask}
        inputs = {name: x.unsqueeze(1).repeat(1, self.num_choices, 1) for name, x in inputs.items()}
        result = model(**inputs, labels=choice_labels)
        self.check_shape(result.logits, self.batch_size, self.num_choices)


@require_torch
class MegaModelTest(ModelTesterMixin, PipelineTesterMixin, unittest.TestCase):
    all_model_classes = (
        (
            MegaModel,
            MegaForMaskedLM,
            MegaForSequenceClassification,
            MegaForTokenClassification,
            MegaForMultipleChoice,
            MegaForQuestionAnswering,
        )
        if is_torch_available()
        else ()
    )
    pipeline_model_mapping = (
        {
            "feature-extraction": MegaModel,
            "fill-mask": MegaForMaskedLM,
            "question-answering": MegaForQuestionAnswering,
            "text-classification": MegaForSequenceClassification,
            "token-classification": MegaForTokenClassification,
            "zero-shot": MegaForSequenceClassification,
        }
        if is_torch_available()
        else {}
    )
    config_fields = {}

    def setUp(self):
        self.model_tester = MegaModelTester(self, **self.config_fields)
        self.config_tester = ConfigTester(self, config_class=MegaConfig, hidden_size=37)

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_model(self):
        self.model_tester.create_and_check_model(*self.model_tester.prepare_config_and_inputs())

    def test_for_masked_lm(self):
        self.model_tester.create_and_check_for_masked_lm(*self.model_tester.prepare_config_and_inputs())

    def test_for_sequence_classification(self):
        inputs = self.model_tester.prepare_config_and_inputs()
        self.model_tester.create_and_check_for_sequence_classification(*inputs)

    def test_for_token_classification(self):
        self.model_tester.create_and_check_for_token_classification(*self.model_tester.prepare_config_and_inputs())

    def test_for_question_answering(self):
        self.model_tester.create_and_check_for_question_answering(*self.model_tester.prepare_config_and_inputs())

    def test_for_multiple_choice(self):
        self.model_tester.create_and_check_for_multiple_choice(*self.model_tester.prepare_config_and_inputs())

    def test_padding_changes_nothing(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        input_ids = inputs["input_ids"]
        padding = torch.full_like(input_ids[:, :3], config.pad_token_id)
        ones, zeros = torch.ones_like(input_ids), torch.zeros_like(padding)
        model = self.model_tester.create_model(MegaModel, config)
        with torch.no_grad():
            expected = model(input_ids).last_hidden_state
            left = model(torch.cat([padding, input_ids], dim=1), torch.cat([zeros, ones], dim=1)).last_hidden_state
            right = model(torch.cat([input_ids, padding], dim=1), torch.cat([ones, zeros], dim=1)).last_hidden_state
        torch.testing.assert_close(left[:, 3:], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(right[:, :-3], expected, rtol=1e-4, atol=1e-4)

    @slow
    def test_model_from_pretrained(self):
        self.assertIsNotNone(MegaModel.from_pretrained("mnaylor/mega-base-wikitext"))


@require_torch
class MegaChunkedModelTest(MegaModelTest):
    """Laplace attention in chunks of 4 tokens, simple bias and layer norm after each sub-layer."""

    config_fields = {
        "use_chunking": True,
        "chunk_size": 4,
        "attention_activation": "laplace",
        "relative_positional_bias": "simple",
        "normalization_type": "layernorm",
        "normalize_before_mega": False,
        "normalize_before_ffn": False,
    }

    def test_attention_outputs(self):
        self.model_tester.expect_chunked_attentions()
        super().test_attention_outputs()


@require_torch
class MegaDecoderModelTest(ModelTesterMixin, GenerationTesterMixin, PipelineTesterMixin, unittest.TestCase):
    all_model_classes = (MegaModel, MegaForCausalLM) if is_torch_available() else ()
    pipeline_model_mapping = {"text-generation": MegaForCausalLM} if is_torch_available() else {}
    config_fields = {"is_decoder": True, "bidirectional": False}

    def setUp(self):
        self.model_tester = MegaModelTester(self, **self.config_fields)

    def get_model_and_prompt(self, length=11):
        config = self.model_tester.get_config(add_token_type_embeddings=False)
        config.eos_token_id = None
        model = self.model_tester.create_model(MegaForCausalLM, config)
        return model, ids_tensor([3, length], config.vocab_size - 3) + 3

    def test_bidirectional_is_refused(self):
        with self.assertRaisesRegex(ValueError, "sees the future"):
            MegaForCausalLM(self.model_tester.get_config(is_decoder=False, bidirectional=True))

    def test_continuing_a_cache(self):
        model, input_ids = self.get_model_and_prompt()
        with torch.no_grad():
            expected = model(input_ids, use_cache=False).logits
            cache, parts = None, []
            for part in input_ids.split([5, 1, 1, 4], dim=1):
                output = model(part, cache=cache)
                cache = output.cache
                parts.append(output.logits)
        torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=1e-4, atol=1e-4)

    def test_going_back(self):
        model, input_ids = self.get_model_and_prompt()
        with torch.no_grad():
            expected = model(input_ids, use_cache=False).logits[:, 8:]
            cache = DynamicCache(config=model.config)
            model(input_ids[:, :6], cache=cache)
            for layer in cache.layers:
                layer.activate_past_recording()
            model(torch.cat([input_ids[:, 6:8], input_ids[:, :4]], dim=1), cache=cache)
            for layer in cache.layers:
                layer.crop(-4)
            found = model(input_ids[:, 8:], cache=cache).logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    def test_generate_with_and_without_cache(self):
        model, input_ids = self.get_model_and_prompt()
        padding = torch.full_like(input_ids[:, :3], model.config.pad_token_id)
        mask = torch.cat([torch.zeros_like(padding), torch.ones_like(input_ids)], dim=1)
        for options in ({"do_sample": False}, {"do_sample": False, "num_beams": 3}):
            options |= {"max_new_tokens": 9, "min_new_tokens": 9}
            expected = model.generate(input_ids, **options, use_cache=False)
            torch.testing.assert_close(model.generate(input_ids, **options), expected)
            padded = model.generate(torch.cat([padding, input_ids], dim=1), attention_mask=mask, **options)
            torch.testing.assert_close(padded[:, 3:], expected)

    def test_prompt_lookup(self):
        model, input_ids = self.get_model_and_prompt()
        options = {"max_new_tokens": 9, "min_new_tokens": 9, "do_sample": False}
        expected = model.generate(input_ids[:1], **options)
        found = model.generate(input_ids[:1], **options, prompt_lookup_num_tokens=3)
        torch.testing.assert_close(found, expected)


@require_torch
class MegaChunkedDecoderModelTest(MegaDecoderModelTest):
    config_fields = {**MegaChunkedModelTest.config_fields, **MegaDecoderModelTest.config_fields}

    def test_attention_outputs(self):
        self.model_tester.expect_chunked_attentions()
        super().test_attention_outputs()


@require_torch
class MegaEmaTest(unittest.TestCase):
    def test_chunks_equal_steps(self):
        for truncation in (None, 3):
            config = MegaConfig(hidden_size=4, ema_projection_size=3, bidirectional=False)
            layer = MegaMultiDimensionDampedEma(config)
            for parameter in layer.parameters():
                torch.nn.init.normal_(parameter)
            coefficients = ema_coefficients(
                layer.damping_factor, layer.decay_factor, layer.ema_expansion_matrix, layer.kernel_projection_matrix
            )
            x = torch.randn(2, 37, 4)
            state, history, outputs = None, torch.zeros(2, truncation or 1, 4), []
            for token in x.split(1, dim=1):
                lags = {"truncation": truncation, "history": history} if truncation else {}
                y, state = ema_step(token, coefficients, state=state, **lags)
                history = torch.cat([history, token], dim=1)[:, 1:]
                outputs.append(y)
            found, last = ema_chunked(x, coefficients, truncation=truncation)
            torch.testing.assert_close(found, torch.cat(outputs, dim=1), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(last, state, rtol=1e-4, atol=1e-5)


@require_torch
class MegaModelIntegrationTest(unittest.TestCase):
    @slow
    def test_fill_mask(self):
        tokenizer = AutoTokenizer.from_pretrained("mnaylor/mega-base-wikitext")
        model = MegaForMaskedLM.from_pretrained("mnaylor/mega-base-wikitext").to(torch_device).eval()
        inputs = tokenizer("The <mask> of the United States gave a speech.", return_tensors="pt").to(torch_device)
        with torch.no_grad():
            logits = model(**inputs).logits
        best = logits[inputs["input_ids"] == tokenizer.mask_token_id].argmax(dim=-1)
        self.assertEqual(tokenizer.decode(best).strip(), "president")
