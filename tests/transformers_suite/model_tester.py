"""The tiny models and inputs that transformers' mixins run on."""

from __future__ import annotations

from typing import Any

import torch
from transformers.testing_utils import torch_device
from transformers_tests.test_modeling_common import floats_tensor, ids_tensor, random_attention_mask

from mega_transformers import MegaConfig, MegaSeq2SeqConfig


class MegaModelTester:
    """What the mixins ask of a `model_tester`: sizes as attributes, a configuration, and a batch for it."""

    def __init__(self, **config_fields: Any) -> None:
        self.batch_size = 13
        self.seq_length = 7
        self.num_choices = 4
        self.num_labels = 3
        self.is_training = True
        self.vocab_size = 99
        self.hidden_size = 32
        self.num_hidden_layers = 2
        self.num_attention_heads = 1
        self.config_fields = config_fields

    def get_config(self) -> MegaConfig:
        fields = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "intermediate_size": 64,
            "nffn_hidden_size": 48,
            "shared_representation_size": 16,
            "ema_projection_size": 4,
            "max_positions": 64,
            "add_token_type_embeddings": True,
        }
        return MegaConfig(**(fields | self.config_fields))

    def prepare_config_and_inputs_for_common(self) -> tuple[MegaConfig, dict[str, torch.Tensor]]:
        config = self.get_config()
        shape = [self.batch_size, self.seq_length]
        inputs = {
            "input_ids": ids_tensor(shape, self.vocab_size),
            "token_type_ids": ids_tensor(shape, config.type_vocab_size),
            "attention_mask": random_attention_mask(shape).to(torch_device),
        }
        return config, inputs


class MegaValuesModelTester(MegaModelTester):
    """The same for models that read values."""

    def prepare_config_and_inputs_for_common(self) -> tuple[MegaConfig, dict[str, torch.Tensor]]:
        shape = [self.batch_size, self.seq_length]
        inputs = {
            "input_values": floats_tensor(shape),
            "attention_mask": random_attention_mask(shape).to(torch_device),
        }
        return self.get_config(), inputs


class MegaPairModelTester(MegaModelTester):
    """The same for models that read pairs of sequences."""

    def __init__(self, **config_fields: Any) -> None:
        super().__init__(**config_fields)
        self.num_hidden_states_types = 2  # of the first and of the second sequence

    def prepare_config_and_inputs_for_common(self) -> tuple[MegaConfig, dict[str, torch.Tensor]]:
        config, inputs = super().prepare_config_and_inputs_for_common()
        # views, so that what a test changes in the first sequences it changes in these
        return config, inputs | {f"pair_{name}": tensor.view_as(tensor) for name, tensor in inputs.items()}


class MegaSeq2SeqModelTester(MegaModelTester):
    """The same for encoder-decoders, whose sides both have the fields of `MegaModelTester`."""

    def __init__(self, **config_fields: Any) -> None:
        super().__init__(**config_fields)
        self.is_encoder_decoder = True
        self.encoder_seq_length = self.key_length = self.decoder_seq_length = self.seq_length

    def get_config(self) -> MegaSeq2SeqConfig:
        side = super().get_config().to_dict()
        return MegaSeq2SeqConfig(
            encoder={**side, "add_token_type_embeddings": False}, decoder={**side, "add_token_type_embeddings": False}
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[MegaSeq2SeqConfig, dict[str, torch.Tensor]]:
        source, target = [self.batch_size, self.seq_length], [self.batch_size, self.decoder_seq_length]
        inputs = {
            "input_ids": ids_tensor(source, self.vocab_size),
            "attention_mask": random_attention_mask(source).to(torch_device),
            "decoder_input_ids": ids_tensor(target, self.vocab_size),
            "decoder_attention_mask": random_attention_mask(target).to(torch_device),
        }
        return self.get_config(), inputs
