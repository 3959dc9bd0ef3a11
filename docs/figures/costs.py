"""Measures what options cost, for docs/choosing.md: `python docs/figures/costs.py` prints a table.

Processor time of a training step (forward and backward pass) of a small encoder, in turns with the same encoder
without the option, so that the ratio holds on a machine that others use too.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from mega_transformers import MegaConfig, MegaModel

BASE: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "intermediate_size": 512,
    "nffn_hidden_size": 512,
    "use_chunking": True,
    "chunk_size": 128,
    **dict.fromkeys(("dropout_prob", "hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0),
    "nffn_activation_dropout_prob": 0.0,
}
TOKENS, ROUNDS = 2048, 7
OPTIONS: dict[str, dict[str, Any]] = {
    "full attention": {"use_chunking": False, "chunk_size": -1},
    "chunks of 512": {"chunk_size": 512},
    "chunks of 32": {"chunk_size": 32},
    "one direction, causal": {"bidirectional": False, "is_decoder": True},
    "`ema_projection_size` 4": {"ema_projection_size": 4},
    "`ema_projection_size` 32": {"ema_projection_size": 32},
    "`truncation` 256": {"truncation": 256},
    "`shared_representation_size` 32": {"shared_representation_size": 32},
    "`shared_representation_size` 128": {"shared_representation_size": 128},
    "`intermediate_size` 256": {"intermediate_size": 256},
    "`intermediate_size` 1024": {"intermediate_size": 1024},
    "no feed-forward": {"use_normalized_ffn": False},
    "`laplace`": {"attention_activation": "laplace"},
    "`relu2`": {"attention_activation": "relu2"},
    "`simple` bias": {"relative_positional_bias": "simple"},
    "`layernorm`": {"normalization_type": "layernorm"},
    "all dropouts 0.1": {
        **dict.fromkeys(("dropout_prob", "hidden_dropout_prob", "attention_probs_dropout_prob"), 0.1),
        "nffn_activation_dropout_prob": 0.1,
    },
    "`recompute_activations=False`": {"recompute_activations": False},
}


def seconds(model: MegaModel, ids: torch.Tensor) -> float:
    """Processor time of a forward and a backward pass."""
    began = time.process_time()
    model(ids, use_cache=False).last_hidden_state.square().mean().backward()
    return time.process_time() - began


def ratio(options: dict[str, Any], ids: torch.Tensor) -> tuple[float, int]:
    """Time with options divided by time without, and the parameters of a block."""
    models = [MegaModel(MegaConfig(**{**BASE, **each}), add_pooling_layer=False).train() for each in ({}, options)]
    for model in models:
        seconds(model, ids)
    found = [[seconds(model, ids) for model in models] for _ in range(ROUNDS)]
    before, after = (statistics.median(column) for column in zip(*found))
    return after / before, sum(p.numel() for p in models[1].layers[0].parameters())


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    ids = torch.randint(3, BASE["vocab_size"], (1, TOKENS))
    print("| option | time of a training step | parameters of a block |\n|---|---:|---:|")
    for name, options in {"(the same, twice)": {}, **OPTIONS}.items():
        times, parameters = ratio(options, ids)
        print(f"| {name} | {times:.2f} | {parameters:,} |", flush=True)


if __name__ == "__main__":
    main()
