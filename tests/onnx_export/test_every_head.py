"""Graphs of every head with every activation, bias, and chunks or none; `MEGA_SLOW=1`, since each takes seconds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tiny import CAUSAL, tiny_config

import mega_transformers
from mega_transformers import MegaForConditionalGeneration, MegaSeq2SeqConfig

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from mega_transformers.onnx_export.check import check, refuse_deviations
from mega_transformers.onnx_export.exporting import write_graph
from mega_transformers.onnx_export.graphs import graphs_of, refuse

pytestmark = pytest.mark.skipif(not os.environ.get("MEGA_SLOW"), reason="MEGA_SLOW=1 exports every head")

CHUNKS = {"use_chunking": True, "chunk_size": 8}
SIMPLE = {"relative_positional_bias": "simple", "max_positions": 100}
LAPLACE, RELU2 = {"attention_activation": "laplace"}, {"attention_activation": "relu2"}
BANDS = {
    "adaptive_input": True,
    "adaptive_softmax": True,
    "adaptive_cutoffs": [10],
    "adaptive_input_factor": 2,
    "adaptive_softmax_factor": 2,
}
# every pair of an activation, a bias and chunks is among encoders, and among decoders
CASES = {
    "MegaForMaskedLM": {**SIMPLE, **CHUNKS},
    "MegaModel": {**LAPLACE, "normalization_type": "batchnorm", "normalize_before_mega": False},
    "MegaForSequenceClassification": {**RELU2, **SIMPLE, "truncation": 6},
    "MegaForTokenClassification": {**LAPLACE, **SIMPLE, **CHUNKS, "truncation": 70},
    "MegaForQuestionAnswering": {**RELU2, **CHUNKS, "add_token_type_embeddings": True},
    "MegaForMultipleChoice": {"final_norm": True, "scale_embeddings": True, "embedding_size": 4},
    "MegaForSequencePairClassification": {**SIMPLE, "classifier_head": "blocks", "classifier_pooling": "mean"},
    "MegaForAudioClassification": {**LAPLACE, **CHUNKS, "input_type": "values", "classifier_pooling": "mean"},
    "MegaForCausalLM": {**CAUSAL, **LAPLACE, **SIMPLE, **CHUNKS},
    "MegaForCausalLM open": {**CAUSAL, **LAPLACE, "truncation": 7},
    "MegaForCausalLM simple": {**CAUSAL, **RELU2, **SIMPLE},
    "MegaForCausalLM squared": {**CAUSAL, **RELU2, **CHUNKS},
    "MegaForCausalLM clusters": {**CAUSAL, **BANDS},
    "MegaForSequenceClassification causal": {**CAUSAL, **CHUNKS},
}


def assert_exports(model: torch.nn.Module, folder: Path) -> None:
    refuse(type(model), model.config)
    for graph in graphs_of(model.eval()):
        write_graph(graph, folder / f"{graph.name}.onnx", 18)
    refuse_deviations(check(model, folder))


@pytest.mark.parametrize("name", CASES)
def test_exports(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "initializer_range": 0.3, "tie_word_embeddings": False}
    config = tiny_config(**{**sizes, **CASES[name]})
    assert_exports(getattr(mega_transformers, name.split()[0])(config), tmp_path)


@pytest.mark.parametrize("fields", [{**CHUNKS, **RELU2}, {"truncation": 6}], ids=["chunks", "rotary"])
def test_exports_an_encoder_decoder(fields: dict, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "initializer_range": 0.3, **fields}
    sides = tiny_config(**sizes), tiny_config(**sizes, **CAUSAL, add_cross_attention=True)
    encoder, decoder = (side.to_dict() for side in sides)
    config = MegaSeq2SeqConfig(encoder=encoder, decoder=decoder, decoder_start_token_id=2)
    assert_exports(MegaForConditionalGeneration(config), tmp_path)
