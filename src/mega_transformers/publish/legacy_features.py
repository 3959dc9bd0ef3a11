"""What transformers 4.40.2 has of a model: the fields of its configuration, and what a model may not have."""

from __future__ import annotations

from typing import Any

from ..models.mega.configuration_mega import MegaConfig

VERSION = "4.40.2"

FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "ema_projection_size",
    "bidirectional",
    "shared_representation_size",
    "use_chunking",
    "chunk_size",
    "truncation",
    "normalize_before_mega",
    "normalization_type",
    "norm_affine",
    "activation",
    "attention_activation",
    "dropout_prob",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "use_feature_dropout",
    "use_normalized_ffn",
    "nffn_hidden_size",
    "normalize_before_ffn",
    "nffn_activation_dropout_prob",
    "max_positions",
    "add_token_type_embeddings",
    "type_vocab_size",
    "initializer_range",
    "ema_delta_alpha_range",
    "ema_beta_range",
    "ema_gamma_omega_range",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "relative_positional_bias",
    "classifier_dropout",
    "use_cache",
    "add_lm_hidden_dense_layer",
    # of the class that all configurations derive from
    "tie_word_embeddings",
    "is_decoder",
    "add_cross_attention",
    "id2label",
    "label2id",
    "problem_type",
)
GENERATION_FIELDS = {
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
    "early_stopping",
    "do_sample",
    "num_beams",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "repetition_penalty",
    "length_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "num_return_sequences",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "decoder_start_token_id",
}
ACTIVATIONS = {
    "gelu",
    "gelu_10",
    "gelu_fast",
    "gelu_new",
    "gelu_python",
    "gelu_pytorch_tanh",
    "gelu_accurate",
    "laplace",
    "leaky_relu",
    "linear",
    "mish",
    "quick_gelu",
    "relu",
    "relu2",
    "relu6",
    "sigmoid",
    "silu",
    "swish",
    "tanh",
}
# classes that it has nothing for -> what they are
UNKNOWN = {
    "MegaForAudioClassification": "a model of values",
    "MegaForSequencePairClassification": "a model of pairs of sequences",
    "MegaSeq2SeqModel": "an encoder-decoder without a head",
}


def lacking(architecture: str, config: Any) -> list[str]:
    """What 4.40.2 lacks for a model and nothing can stand for: each with the fields and what they mean.

    Args:
        architecture: Name of the model's class.
        config: Its configuration.
    """
    if architecture in UNKNOWN:
        return [f"{architecture}: {UNKNOWN[architecture]}"]
    if not isinstance(config, MegaConfig):
        sides = {"encoder.": config.encoder, "decoder.": config.decoder}
        found = [where + each for where, side in sides.items() for each in _of_trunk(side)]
        return found + [f"decoder.{each}" for each in _of_crossing(config.decoder, projected=True)]
    found = _of_trunk(config)
    if architecture == "MegaForSequenceClassification":
        if config.classifier_pooling != "cls":
            found.append(f"classifier_pooling={config.classifier_pooling!r}: it reads the first token")
        if config.classifier_head != "tanh":
            found.append(f"classifier_head={config.classifier_head!r}: its head is a tanh layer and a projection")
    if architecture == "MegaForCausalLM" and config.adaptive_softmax:
        found.append("adaptive_softmax=True: its output is one matrix")
    return found + _of_crossing(config, projected=False)


def _of_trunk(config: MegaConfig) -> list[str]:
    found = []
    if config.input_type != "tokens":
        found.append(f"input_type={config.input_type!r}: it reads tokens")
    if config.final_norm:
        found.append("final_norm=True: it has no norm behind the last block")
    if config.normalize_embeddings and config.add_token_type_embeddings:
        found.append(
            "normalize_embeddings=True with add_token_type_embeddings=True: it has no norm behind embeddings, and "
            "where types are added the norm cannot be put into the table of words"
        )
    if needs_norm(config) and not folds_norm(config):
        post = [name for name in ("normalize_before_mega", "normalize_before_ffn") if not getattr(config, name)]
        found.append(
            f"normalization_type='rmsnorm' with legacy_unnormalized_rmsnorm={config.legacy_unnormalized_rmsnorm} and "
            f"{', '.join(f'{name}=False' for name in post)}: its rmsnorm does not normalise, and scales behind a "
            "sub-layer have no other place"
        )
    if config.activation not in ACTIVATIONS:
        found.append(f"activation={config.activation!r}: it has no such function")
    if config.relative_positional_bias == "rotary" and config.hidden_size % 2:
        found.append(f"hidden_size={config.hidden_size} with relative_positional_bias='rotary': its width is even")
    return found


def _of_crossing(config: MegaConfig, projected: bool) -> list[str]:
    """The same of cross-attention; `projected` says whether the encoder's states may be projected first."""
    if not config.add_cross_attention:
        return []
    found = []
    source = config.cross_attention_hidden_size or config.hidden_size
    if source != config.hidden_size and not (projected and source < config.hidden_size):
        found.append(
            f"cross_attention_hidden_size={source} with hidden_size={config.hidden_size}: it reads an encoder as wide "
            "as the decoder, or projects a narrower one to that"
        )
    served = config.positions_of_simple_bias(crossing=True)
    if config.relative_positional_bias == "simple" and config.use_chunking and served > config.chunk_size:
        found.append(
            f"cross_attention_max_positions={served} with chunk_size={config.chunk_size} and "
            "relative_positional_bias='simple': its bias serves a chunk"
        )
    return found


def needs_norm(config: MegaConfig) -> bool:
    """Whether a model has a true rmsnorm, which 4.40.2 does not compute."""
    return config.normalization_type == "rmsnorm" and not config.legacy_unnormalized_rmsnorm


def folds_norm(config: MegaConfig) -> bool:
    """Whether the scales of all norms can be multiplied into what reads them."""
    return not config.norm_affine or (
        config.normalize_before_mega and (config.normalize_before_ffn or not config.use_normalized_ffn)
    )


def decodes_wrongly(config: MegaConfig) -> list[str]:
    """The fields with which 4.40.2's cached decoding gives other numbers than reading the whole text at once."""
    if not config.is_decoder:
        return []
    fields = []
    if config.attention_activation != "softmax":
        fields.append(f"attention_activation={config.attention_activation!r}")
    if config.truncation is not None:
        fields.append(f"truncation={config.truncation}")
    if config.add_cross_attention:
        fields.append("add_cross_attention=True")
    return fields


def restrictions(config: MegaConfig) -> list[str]:
    """Where 4.40.2 takes less than this package does, or computes something else, though the model is the same."""
    found = []
    if config.use_chunking:
        lengths = "multiples of" if config.is_decoder else "lengths below and multiples of"
        end = ", and cannot generate" if config.is_decoder else ""
        found.append(f"chunks: it takes {lengths} chunk_size={config.chunk_size} only{end}")
    if config.add_cross_attention and not config.cross_attention_counts_padding:
        found.append("cross-attention: it gives other numbers for a source that is padded on the left")
    if config.embedding_dropout_prob:
        found.append(f"embedding_dropout_prob={config.embedding_dropout_prob}: it has no such dropout in training")
    return found
