"""What the model inside transformers is made of: classes, features that are left out, and forms that are chosen."""

from __future__ import annotations

from simplify import Rules

CONFIGURATION = "models.mega.configuration_mega"
MODELING = "models.mega.modeling_mega"
CLASSIFICATION = "models.mega.modeling_mega_classification"

MODELS = (
    (MODELING, "MegaModel"),
    (MODELING, "MegaForMaskedLM"),
    (MODELING, "MegaForCausalLM"),
    (CLASSIFICATION, "MegaForSequenceClassification"),
    (CLASSIFICATION, "MegaForTokenClassification"),
    (CLASSIFICATION, "MegaForMultipleChoice"),
    (CLASSIFICATION, "MegaForQuestionAnswering"),
)
EXPORTED = (*(name for _, name in MODELS), "MegaPreTrainedModel")

# the order of modeling_mega.py
ORDER = (
    "ops.activations",
    "ops.layout",
    "ops.relative_bias",
    "ops.attention.reference",
    "ops.attention",
    "ops.ema.reference",
    "ops.ema.step",
    "ops.ema.chunked",
    "ops.ema",
    "models.mega.columns_mega",
    "models.mega.cache_mega",
    "models.mega.cache_preparation_mega",
    "layers.norms",
    "layers.dropout",
    "layers.position_bias",
    "layers.ema",
    "layers.gate",
    "layers.gated_attention",
    "layers.feed_forward",
    "layers.block",
    "models.mega.inputs_mega",
    "models.mega.validation_mega",
    MODELING,
    CLASSIFICATION,
)

OUTSIDE = {
    "MegaConfig": (".configuration_mega", "MegaConfig"),
    "GenerationMixin": ("transformers.generation", "GenerationMixin"),
    "BaseModelOutputWithPoolingAndCrossAttentions": (
        "transformers.modeling_outputs",
        "BaseModelOutputWithPoolingAndCrossAttentions",
    ),
    "CausalLMOutputWithPast": ("transformers.modeling_outputs", "CausalLMOutputWithPast"),
    "auto_docstring": ("transformers.utils", "auto_docstring"),
    "maybe_autocast": ("transformers.utils.generic", "maybe_autocast"),
    "slice_logits_to_keep": ("transformers.modeling_utils", "slice_logits_to_keep"),
}
"""Names that come from transformers, or from the other file, where this package has its own."""

ALWAYS = {
    "auto_docstring": OUTSIDE["auto_docstring"],
    "deprecate_kwarg": ("transformers.utils.deprecation", "deprecate_kwarg"),
}
"""Imports of every modeling file."""

WHOLE = ("Columns", "MegaLanguageModel")
"""Classes of plain.py that replace ours altogether."""

FIELDS = (
    "add_cross_attention",
    "sparse_prediction",
    "cross_attention_hidden_size",
    "cross_attention_max_positions",
    "cross_attention_counts_padding",
    "adaptive_cutoffs",
    "adaptive_input",
    "adaptive_input_factor",
    "adaptive_softmax",
    "adaptive_softmax_factor",
    "adaptive_softmax_dropout_prob",
    "tie_adaptive_weights",
    "tie_adaptive_projections",
    "input_type",
    "recompute_activations",
)
"""Fields of the configuration that are left out, with the features they belong to."""

CONFIGURATION_RULES = Rules(
    rewrites={
        "self.add_cross_attention": "False",
        "self.input_type == 'values'": "False",
    },
    facts={"MegaConfig.positions_of_simple_bias": {"cross_attention": "False"}},
    dropped=("raising_value_errors", "_validate_adaptive"),
    members=(
        *(f"MegaConfig.{name}" for name in FIELDS),
        "MegaConfig.adaptive_clusters",
        "MegaConfig._validate_values",
        "MegaConfig._validate_adaptive",
    ),
    words=FIELDS,
)

MODELING_RULES = Rules(
    rewrites={
        # for the type checker
        "cast(__, _1)": "_1",
        # graphs of open length, values that may be looked at for free
        "is_open(__)": "False",
        "is_open_export(__)": "False",
        "is_readable(__)": "False",
        "first_tokens(_1, _2)": "_1[:, :_2]",
        # faster forms of what PyTorch has
        "are_few_rows(__)": "False",
        "linear(_1, _2)": "_1(_2)",
        "dropout(x, _1)": "F.dropout(x, _1)",
        "takes_pieces(__)": "False",
        "recomputed(__, _1, _2)": "_1(_2)",
        "recomputed(__, _1, _2, _3, _4, _5, _6)": "_1(_2, _3, _4, _5, _6)",
        "self.recompute = __": "pass",
        "F.silu(_1, inplace=not torch.is_grad_enabled())": "F.silu(_1)",
        "no_autocast(_1)": "maybe_autocast(device_type=_1, enabled=False)",
        # features that are left out
        "config.add_cross_attention": "False",
        "config.adaptive_softmax": "False",
        "config.adaptive_input": "False",
        "self.config.sparse_prediction": "False",
        "isinstance(module, (MegaMatrix, MegaValueEmbeddings))": "False",
        "isinstance(layout.offset, int)": "True",
        "isinstance(self.offset, int)": "True",
        "layout.reset": "None",
        "layout.exchange": "None",
        "kept_positions(_1, _2)": "slice_logits_to_keep(_1, _2)",
        "MegaGenerationMixin": "GenerationMixin",
        "MegaCausalLMOutput": "CausalLMOutputWithPast",
        "ELEMENTWISE[_1].function(_2)": "ELEMENTWISE[_1](_2)",
        "config.positions_of_simple_bias(cross_attention)": "config.positions_of_simple_bias()",
        "MegaSimpleRelativePositionalBias(config, cross_attention)": "MegaSimpleRelativePositionalBias(config)",
        # keys and values in plain tensors
        "self._keys.buffer": "self._keys.view",
        "self._keys.append(_1, _2)": "self._keys.append(_1)",
        "self._values.append(_1, _2)": "self._values.append(_1)",
        "self._memory = {}": "pass",
        "limit = None if self.record_past else self.chunk_size": "pass",
        # blocks of the EMA without packed documents
        "_carry(_1, _2, keep, _3, _4)": "_carry(_1, _2, _3, _4)",
        "_scan(_1, _2, keep, _3)": "_scan(_1, _2, _3)",
        "_chunked(_1, _2, _3, packed, _4, _5)": "_chunked(_1, _2, _3, _4, _5)",
        "truncated(_1, _2, _3, _4, _5, packed, _6, _7)": "truncated(_1, _2, _3, _4, _5, _6, _7)",
        "scan(_1, _2, _3, packed, _4)": "scan(_1, _2, _3, _4)",
    },
    within={
        "self_attention_layout": {
            "device = __.device": "device = mask.device",
            "first is not None": "True",
        },
        "AttentionLayout.ranges": {
            "column + (self.offset if __ else __)": "column + self.offset",
        },
        "AttentionLayout.counts": {
            "every = __": "pass",
            "every if __ else _1": "self.keys if self.real is None else _1",
        },
        "_in_equal_chunks": {
            "real is None and (is_open(length) or padding)": "real is None and padding",
            "used = count = _1": "count = _1",
            "_in_form(_1, _2, _3, _4, _5, chunks=_6, **options)": (
                "attention_reference(_1, _2, _3, bias_table(_4, _5), _5, chunks=_6, **options)"
            ),
        },
        "ema": {
            "backend or _form(__)": "'step' if length == 1 and stateful else 'chunked'",
            "form == 'triton'": "False",
            "form == 'reference'": "False",
            "form == 'chunked'": "True",
        },
        "_scan": {
            "S.device.type == 'cpu' and not torch.compiler.is_compiling() and not _is_differentiated(__)": "False",
            "factor * (factor if keep is None else __)": "factor * factor",
            "shift < (__ if __ else _1)": "shift < _1",
        },
        "ema_chunked": {
            "return (y if packed is None else __), last": "return y, last",
        },
        "_blocks_forward": {
            "return _1, H[:, :, -1].clone(), H": "return _1, H[:, :, -1]",
        },
        "_chunked": {
            "torch.compiler.is_compiling()": "True",
            "(padded, *_1, initial, keep)": "(padded, *_1, initial)",
            "y, entering, H = _blocks_forward(*tensors, bidirectional)": (
                "y, entering = _blocks_forward(*tensors, bidirectional)"
            ),
        },
        "MegaMultiDimensionDampedEma.forward": {
            "cache_layer.remembered(__, self.coefficients)": "self.coefficients()",
        },
        "MegaMovingAverageGatedAttention.forward": {
            "self._attend(_1, _2, _3, layout, output_attentions, cache, recompute)": (
                "self._attend(_1, _2, _3, layout, cache)"
            ),
        },
        "MegaMovingAverageGatedAttention._attend": {
            "bias = cast(__, __).bias(bias, layout)": "pass",
        },
        "MegaNormalizedFeedForwardNetwork.forward": {
            "self._feed(x, __)": "self._feed(x)",
        },
        "MegaBlock.__init__": {
            "self.cross_attn = __": "pass",
        },
        "MegaBlock.forward": {
            "own = __": "pass",
            "self.cross_attn is not None": "False",
            "self.mega_layer(__)": "self.mega_layer(hidden_states, layout, cache)",
            "self.nffn(hidden_states, recompute)": "self.nffn(hidden_states)",
        },
        "MegaEmbeddings.__init__": {
            "self.value_embeddings = __": "pass",
            "self.word_embeddings: nn.Module | None = None": "pass",
            "self.value_embeddings is None": "True",
        },
        "MegaEmbeddings.forward": {
            "self.value_embeddings is not None": "False",
        },
        "MegaModel.__init__": {
            "warn_of_unnormalized_rmsnorm(config)": "pass",
        },
        "MegaForMaskedLM.forward": {
            "logits, loss = self._predict(_1, __, __)": "logits, loss = self._logits(_1), None",
            "loss is None": "True",
        },
        "MegaForCausalLM.forward": {
            "logits, loss = self._predict(_1, __, __)": "logits, loss = self._logits(_1), None",
            "loss is None": "True",
            "self.mega(_1, _2, _3, _4, *source, cache=_5, use_cache=_6, **kwargs)": (
                "self.mega(_1, _2, _3, _4, cache=_5, use_cache=_6, **kwargs)"
            ),
        },
    },
    facts={
        "self_attention_layout": {"reset": "None", "documents": "None"},
        "attention_reference": {"need_weights": "True"},
        "ema": {"reset": "None", "packed": "None", "backend": "None"},
        "ema_chunked": {"packed": "None"},
        "_chunked": {"packed": "None", "unknown": "False", "keep": "None"},
        "truncated": {"packed": "None", "same": "None"},
        "_blocks_forward": {"keep": "None"},
        "_carry": {"keep": "None"},
        "_scan": {"keep": "None"},
        "_later": {"blocks": "None"},
        "MegaMultiDimensionDampedEma.forward": {"packed": "None"},
        "MegaMovingAverageGatedAttention.forward": {
            "output_attentions": "None",
            "recompute": "None",
            "pieces": "None",
        },
        "MegaMovingAverageGatedAttention._attend": {
            "output_attentions": "None",
            "recompute": "None",
            "backend": "None",
        },
        "MegaNormalizedFeedForwardNetwork.forward": {"recompute": "None"},
        "MegaNormalizedFeedForwardNetwork._feed": {"recompute": "None"},
        "MegaBlock.forward": {
            "encoder_hidden_states": "None",
            "cross_layout": "None",
            "output_attentions": "None",
            "recompute": "None",
            "pair": "None",
        },
        "relative_positional_bias": {"cross_attention": "False"},
        "MegaSimpleRelativePositionalBias.__init__": {"cross_attention": "False"},
        "MegaEmbeddings.forward": {"input_values": "None"},
        "MegaForCausalLM.forward": {
            "encoder_hidden_states": "None",
            "encoder_attention_mask": "None",
            "source": "None",
            "next_words": "None",
            "shifted": "None",
        },
        "MegaForSequenceClassification.forward": {"input_values": "None"},
    },
    arguments={
        "AttentionLayout": ("reset", "documents"),
        "attention": ("need_weights", "backend"),
        "ema": ("reset", "packed"),
        "ema_chunked": ("packed",),
        "mega": ("input_values",),
        "CausalLMOutputWithPast": ("cross_attentions",),
    },
    dropped=(
        "MegaCacheState",
        "checked_keywords",
        "check_all_logits",
        "check_class_labels",
        "check_labels",
        "_check",
    ),
    members=(
        "AttentionLayout.__post_init__",
        "AttentionLayout._part",
        "AttentionLayout._parts",
        "AttentionLayout.documents",
        "AttentionLayout.exchange",
        "AttentionLayout.offset_bound",
        "AttentionLayout.parts",
        "AttentionLayout.pieces",
        "AttentionLayout.plans",
        "AttentionLayout.reset",
        "BiasTable.tiles",
        "BiasTable.window",
        "MegaCacheLayer.bias",
        "MegaForCausalLM.get_expanded_tied_weights_keys",
        "MegaForSequenceClassification._input_types",
        "MegaModel._cross_layout",
        "MegaModel._input_embeddings_name",
        "MegaModel._input_types",
        "MegaMovingAverageGatedAttention._pieces",
        "MegaMultiDimensionDampedEma._continued",
        "MegaMultiDimensionDampedEma.boundary",
        "MegaPreTrainedModel.__init__",
        "MegaPreTrainedModel._input_types",
        "MegaPreTrainedModel._supports_attention_backend",
        "MegaPreTrainedModel.config_class",
        "MegaPreTrainedModel.from_pretrained",
        "MegaPreTrainedModel.resize_token_embeddings",
        "RotaryBias._rotated",
        "SimpleBias.at",
        "RotaryBias.key_features",
        "RotaryBias.query_features",
        "RotaryBias.reach",
        "SimpleBias.reach",
    ),
    # rows in pieces, and graphs for ONNX
    optional=(
        "AttentionLayout.exchange",
        "MegaForCausalLM.forward: shifted",
        "MegaMultiDimensionDampedEma._continued",
        "MegaMultiDimensionDampedEma.boundary",
        "SimpleBias.at",
        "layout.exchange",
    ),
)

CONFIGURATION_TEXTS = {
    "Addition to 4.40.2 from the authors' code. ": "",
    "Addition from the authors' code. ": "",
    "Addition from the authors' code, whose pre-norm models have it. ": "",
    "Addition to 4.40.2. ": "",
    "Addition to 4.40.2, whose rmsnorm scaled its input without normalising it. True reproduces that": (
        "Transformers 4.40.2's rmsnorm scaled its input without normalizing it. `True` reproduces that"
    ),
    "Always False with an adaptive input or softmax, which have several; see `tie_adaptive_weights`.": "",
    "a layer of `cache_mega` for every block": "a `MegaCacheLayer` for every block",
    ", in self-attention or in cross-attention": "",
}
"""What docstrings and comments say in this package -> what they say in transformers."""
MODELING_TEXTS = {
    "authors' `": "original `",
    "authors' class of this name": "the original class of this name",
    "as the authors' do": "as in the original code",
    "(authors' code)": "(original code)",
    "as in the authors' code": "as in the original code",
    "offset: int | torch.Tensor = 0": "offset: int = 0",
    "0 in a row of padding; None if 0 everywhere": "0 in a row of padding; None without a mask",
    "See `mega_transformers.ops.ema.ema`.": "See `ema`.",
    "see `mega_transformers.ops.attention.attention` for the arguments": "see `attention` for the arguments",
    "that are fastest at that length (docs/performance.md)": "that are fastest at that length",
    "dropped_if_full": "as_bools",
    " A tensor (1,) or (B,) if its value is not known on the host, or differs between rows.": "",
    "; None for attention over the whole document": "; None for attention over everything",
    "keep[i] * (decay * H[i - 1] + S[i - 1])": "decay * H[i - 1] + S[i - 1]",
    "keep (B, K, N') or None, initial (d, B, N')": "initial (d, B, N')",
    " `keep` (B, K) is 0 at blocks that start a document.": "",
    " (faster than as a whole)": "",
    ", in two copies that are faster than one": "",
    ", and those that enter each, H (d, B, K, N')": "",
    "; in a first pass the last columns are enough": "",
    " In cross-attention it has index `cross_attention_max_positions - 1` if that is given, and the vector is longer "
    "if necessary.": "",
    ", of self-attention or of cross-attention": "",
    ", and where packed documents start": "",
    "; not with packed documents, and not with `bidirectional`": "; not with `bidirectional`",
    "; with cross-attention an `EncoderDecoderCache`": "",
    ", which tokens of other chunks do not affect": "",
    "without padding or packing": "without padding",
    "Embeddings of tokens or values": "Embeddings of tokens",
    "Ids or values (B, L)": "Ids (B, L)",
    " Reads tokens or values.": "",
    ", with an adaptive softmax log-probabilities in float32 at least, and None for its training mode with labels, "
    "where the loss does not need them": "",
    ", and for `adaptive_softmax=True`": "",
    "# the tensor itself where possible, so that it gets a gradient": "",
    ", or with labels and `config.sparse_prediction` (labels, V), those of labelled positions in reading order": "",
}
