"""Every peer's model of a workload. Runs in peers' interpreters too, so each imports what only it has."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.cases import (
    BEFORE,
    GLA,
    GPT2,
    MAMBA2,
    MARIAN,
    MATMULS,
    MODERNBERT,
    MODERNBERT_FLASH,
    OLD,
    ONE_BY_ONE,
    OURS,
    ROBERTA,
    TRITON,
    UNCOMPILED,
    Workload,
)

VOCABULARY = 8192
SYMBOLS = 72
# Mega's small parameters, by the ends of their names, are drawn with these deviations: wide enough that a mistake in
# scores or bias shows in the outputs. Of a causal model the outputs of a few tokens behind many are compared, in which
# attention is to have a larger part.
SPREAD = {"qk_weight": 1.0, "qk_bias": 0.1, ".alpha": 0.2, "b_param": 0.2}
SPREAD_CAUSAL = {
    ".alpha": 0.5,
    "b_param": 0.5,
    "v_proj.weight": 0.1,
    "h_proj.weight": 0.1,
    "mx_proj.weight": 0.1,
    "dense.weight": 0.1,
    "word_embeddings.weight": 0.1,
}


def mega_classes(peer: str) -> Any:
    """The module that holds Mega's classes in this peer's interpreter."""
    return importlib.import_module("transformers" if peer == OLD else "mega_transformers")


def _mega(peer: str) -> Callable[[Workload], nn.Module]:
    def make(workload: Workload) -> nn.Module:
        classes = mega_classes(peer)
        if workload.head == "text-to-text":
            return _text_to_text(classes)
        causal = workload.head == "causal-lm"
        additions: dict[str, Any] = {} if peer == OLD else {"sparse_prediction": workload.sparse}
        config = classes.MegaConfig(
            vocab_size=VOCABULARY,
            hidden_size=workload.width,
            num_hidden_layers=workload.layers,
            intermediate_size=workload.hidden,
            nffn_hidden_size=workload.hidden,
            ema_projection_size=16,
            shared_representation_size=workload.shared,
            bidirectional=not causal,
            is_decoder=causal,
            use_chunking=workload.chunk is not None,
            chunk_size=workload.chunk or -1,
            attention_activation=workload.attention,
            dropout_prob=workload.dropout,
            hidden_dropout_prob=workload.dropout,
            attention_probs_dropout_prob=workload.dropout,
            nffn_activation_dropout_prob=workload.dropout,
            max_positions=workload.length + workload.new_tokens,
            **additions,
        )
        if causal:
            return _spread(classes.MegaForCausalLM(config), SPREAD | SPREAD_CAUSAL)
        if workload.head == "encoder":
            return _spread(classes.MegaModel(config, add_pooling_layer=False), SPREAD)
        return _spread(classes.MegaForMaskedLM(config), SPREAD)

    return make


def _text_to_text(classes: Any) -> nn.Module:
    """The sizes of recipes/g2p-cmudict.yaml."""
    side = {
        "vocab_size": SYMBOLS,
        "hidden_size": 128,
        "intermediate_size": 192,
        "nffn_hidden_size": 256,
        "shared_representation_size": 64,
        "ema_projection_size": 8,
        "relative_positional_bias": "simple",
        "max_positions": 64,
        "normalization_type": "layernorm",
        "final_norm": True,
    }
    config = classes.MegaSeq2SeqConfig(
        encoder={**side, "num_hidden_layers": 3}, decoder={**side, "num_hidden_layers": 1}
    )
    return classes.MegaForConditionalGeneration(config)


def _spread(module: nn.Module, spread: dict[str, float]) -> nn.Module:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            for ending, std in spread.items():
                if name.endswith(ending):
                    parameter.normal_(std=std)
    return module


def _modernbert(workload: Workload, implementation: str = "sdpa") -> nn.Module:
    """Its default pattern (every third layer global, else windows of 128), and an MLP of a width for like size."""
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    config = ModernBertConfig(
        vocab_size=VOCABULARY,
        hidden_size=workload.width,
        num_hidden_layers=workload.layers,
        num_attention_heads=workload.heads,
        intermediate_size=3 * workload.width,
        max_position_embeddings=workload.length,
        attention_dropout=workload.dropout,
        embedding_dropout=workload.dropout,
        mlp_dropout=workload.dropout,
        sparse_prediction=workload.sparse,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        cls_token_id=0,
        sep_token_id=2,
    )
    return ModernBertForMaskedLM._from_config(config, attn_implementation=implementation)


def _roberta(workload: Workload) -> nn.Module:
    """Like size, except for the table of positions, which a length of 8192 needs and which costs no arithmetic."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    config = RobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=workload.width,
        num_hidden_layers=workload.layers,
        num_attention_heads=workload.heads,
        intermediate_size=9 * workload.width // 2,
        max_position_embeddings=workload.length + 2,
        hidden_dropout_prob=workload.dropout,
        attention_probs_dropout_prob=workload.dropout,
        type_vocab_size=1,
    )
    return RobertaForMaskedLM._from_config(config, attn_implementation="sdpa")


def _gpt2(workload: Workload) -> nn.Module:
    """Like size with its default feed-forward of 4 times the width."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=workload.width,
        n_layer=workload.layers,
        n_head=workload.heads,
        n_positions=workload.length + workload.new_tokens,
        resid_pdrop=workload.dropout,
        embd_pdrop=workload.dropout,
        attn_pdrop=workload.dropout,
        bos_token_id=0,
        eos_token_id=2,
    )
    return GPT2LMHeadModel._from_config(config, attn_implementation="sdpa")


def _mamba2(workload: Workload) -> nn.Module:
    """Two layers, which have no feed-forward, for one of others, as in the published sizes."""
    from transformers import Mamba2Config, Mamba2ForCausalLM

    config = Mamba2Config(
        vocab_size=VOCABULARY,
        hidden_size=workload.width,
        num_hidden_layers=2 * workload.layers,
        num_heads=2 * workload.heads,
        head_dim=2 * workload.width // (2 * workload.heads),
        expand=2,
        n_groups=1,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    return Mamba2ForCausalLM(config)


def _gla(workload: Workload) -> nn.Module:
    """Gated linear attention as the library flash-linear-attention has it, with its default widths."""
    from fla.models import GLAConfig, GLAForCausalLM

    config = GLAConfig(
        vocab_size=VOCABULARY,
        hidden_size=workload.width,
        num_hidden_layers=workload.layers,
        num_heads=workload.heads // 3 or 1,
        max_position_embeddings=workload.length + workload.new_tokens,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    return GLAForCausalLM(config)


def _marian(workload: Workload) -> nn.Module:
    """The Transformer of recipes/g2p-cmudict.yaml, of like size."""
    from transformers import MarianConfig, MarianMTModel

    config = MarianConfig(
        vocab_size=SYMBOLS,
        d_model=128,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=408,
        decoder_ffn_dim=408,
        activation_function="relu",
        max_position_embeddings=64,
        scale_embedding=True,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
    )
    return MarianMTModel._from_config(config, attn_implementation="sdpa")


MODELS: dict[str, Callable[[Workload], nn.Module]] = {
    **{peer: _mega(peer) for peer in (OURS, TRITON, ONE_BY_ONE, UNCOMPILED, MATMULS, BEFORE, OLD)},
    MODERNBERT: _modernbert,
    MODERNBERT_FLASH: partial(_modernbert, implementation="flash_attention_2"),
    ROBERTA: _roberta,
    GPT2: _gpt2,
    MAMBA2: _mamba2,
    GLA: _gla,
    MARIAN: _marian,
}
