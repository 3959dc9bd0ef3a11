"""Models that transformers 4.40.2 can compute, whose folders need no change or some: name -> what makes one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import transformers
from folders import make, randomise
from tiny import CAUSAL, SIZES

MASKED, CAUSAL_LM, PAIR = "MegaForMaskedLM", "MegaForCausalLM", "MegaForConditionalGeneration"
SIMPLE = {"relative_positional_bias": "simple", "max_positions": 16}
POST = {"normalize_before_mega": False, "normalize_before_ffn": False}


def encoder_decoder() -> Any:
    """transformers' own wrapper, with an encoder narrower than the decoder."""
    sides = {
        "encoder": {**SIZES, "hidden_size": 6, "model_type": "mega"},
        "decoder": {**SIZES, **CAUSAL, "add_cross_attention": True, "model_type": "mega"},
    }
    config = transformers.EncoderDecoderConfig(**sides, decoder_start_token_id=2, pad_token_id=1, eos_token_id=2)
    model = transformers.EncoderDecoderModel(config).eval()
    randomise(model)
    return model


CASES: dict[str, Callable[[], Any]] = {
    "plain": partial(make, MASKED),
    "scaled": partial(make, MASKED, scale_embeddings=True),
    "scaled and untied": partial(make, MASKED, scale_embeddings=True, tie_word_embeddings=False),
    "scaled with types": partial(make, MASKED, scale_embeddings=True, add_token_type_embeddings=True),
    "normalised": partial(make, MASKED, normalize_embeddings=True, normalization_type="layernorm"),
    "normalised by batches": partial(make, MASKED, normalize_embeddings=True, normalization_type="batchnorm"),
    "projected": partial(make, MASKED, embedding_size=5, scale_embeddings=True, tie_word_embeddings=False),
    "adaptive input": partial(make, CAUSAL_LM, adaptive_input=True, adaptive_cutoffs=[9], tie_word_embeddings=False),
    "rmsnorm": partial(make, MASKED, normalization_type="rmsnorm"),
    "rmsnorm in one direction": partial(make, CAUSAL_LM, normalization_type="rmsnorm"),
    "rmsnorm without scales": partial(make, MASKED, normalization_type="rmsnorm", norm_affine=False, **POST),
    "rmsnorm of transformers 4": partial(
        make, MASKED, normalization_type="rmsnorm", legacy_unnormalized_rmsnorm=True, **POST
    ),
    "layernorm without scales": partial(make, MASKED, normalization_type="layernorm", norm_affine=False),
    "batchnorm without scales": partial(make, MASKED, normalization_type="batchnorm", norm_affine=False),
    "simple, no chunk": partial(make, MASKED, chunk_size=0, **SIMPLE),
    "chunks": partial(make, MASKED, use_chunking=True, chunk_size=4, **SIMPLE),
    "causal": partial(make, CAUSAL_LM, scale_embeddings=True, add_lm_hidden_dense_layer=False),
    "causal laplace": partial(make, CAUSAL_LM, attention_activation="laplace", truncation=3),
    "trunk": partial(make, "MegaModel", scale_embeddings=True),
    "sequence": partial(make, "MegaForSequenceClassification", num_labels=3, normalize_embeddings=True),
    "token": partial(make, "MegaForTokenClassification", num_labels=3, classifier_pooling="mean"),
    "choice": partial(make, "MegaForMultipleChoice"),
    "answer": partial(make, "MegaForQuestionAnswering", embedding_size=4),
    "pair": partial(make, PAIR, scale_embeddings=True),
    "pair, untied and unequal": partial(
        make,
        PAIR,
        share_embeddings=False,
        tie_word_embeddings=False,
        encoder={"hidden_size": 6, "vocab_size": 29},
        decoder={"embedding_size": 5, "normalization_type": "rmsnorm"},
    ),
    "pair, simple": partial(make, PAIR, decoder={**SIMPLE, "cross_attention_max_positions": 11}),
    "pair, simple, farther than it writes": partial(
        make, PAIR, decoder={**SIMPLE, "cross_attention_max_positions": 21}
    ),
    "pair, simple in chunks": partial(
        make,
        PAIR,
        decoder={**SIMPLE, "use_chunking": True, "chunk_size": 8, "cross_attention_max_positions": 8},
    ),
    "wrapper": encoder_decoder,
}
