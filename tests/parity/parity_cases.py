"""The models that are exchanged with transformers 4.40.2, and how."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

AUTO = {
    "MegaModel": transformers.AutoModel,
    "MegaForCausalLM": transformers.AutoModelForCausalLM,
    "MegaForMaskedLM": transformers.AutoModelForMaskedLM,
    "MegaForSequenceClassification": transformers.AutoModelForSequenceClassification,
    "MegaForTokenClassification": transformers.AutoModelForTokenClassification,
    "MegaForMultipleChoice": transformers.AutoModelForMultipleChoice,
    "MegaForQuestionAnswering": transformers.AutoModelForQuestionAnswering,
}
HEADS = [name for name in AUTO if name not in ("MegaModel", "MegaForCausalLM")]


@dataclass
class ModelCase:
    """One model. In its folder: the checkpoint, `input_{length}.safetensors` and `output_{length}.safetensors`.

    Attributes:
        name: Also the folder.
        cls: Class of the model in transformers 4.40.2.
        config: Arguments of `MegaConfig`.
        format: `"safetensors"`, `"sharded"` or `"bin"`.
        lengths: Tokens per row; with chunks multiples of the chunk, or less than it: the rest fails in 4.40.2.
        add_fields, drop_fields: What config.json has too much or too little.
        seed: For weights and inputs.
    """

    name: str
    cls: str
    config: dict
    format: str = "safetensors"
    lengths: list[int] = field(default_factory=lambda: [13])
    add_fields: dict = field(default_factory=dict)
    drop_fields: list[str] = field(default_factory=list)
    seed: int = 0


SMALL = {
    "vocab_size": 37,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "intermediate_size": 24,
    "shared_representation_size": 8,
    "ema_projection_size": 4,
    "nffn_hidden_size": 20,
    "max_positions": 64,
}
CAUSAL = {"bidirectional": False, "is_decoder": True}
CHUNKED = {"use_chunking": True, "chunk_size": 16}
CHUNKED_LENGTHS = [9, 16, 48]

# the public checkpoints of docs/parity.md, at reduced width
PUBLIC = [
    ModelCase(
        "mega-base-wikitext",
        "MegaForMaskedLM",
        {
            **SMALL,
            "num_hidden_layers": 4,
            "ema_projection_size": 16,
            "max_positions": 10000,
            "relative_positional_bias": "rotary",
            "normalization_type": "scalenorm",
        },
        add_fields={"layer_norm_eps": 1e-5},
        drop_fields=["ema_beta_range", "ema_delta_alpha_range", "ema_gamma_omega_range"],
    ),
    ModelCase(
        "mega-base-wikitext-finetuned",
        "MegaForSequenceClassification",
        {**SMALL, "num_hidden_layers": 4, "ema_projection_size": 16, "max_positions": 10000, "num_labels": 3},
        drop_fields=["ema_beta_range", "ema_delta_alpha_range", "ema_gamma_omega_range"],
    ),
    ModelCase(
        "mega-encoder-small-16k",
        "MegaForMaskedLM",
        {
            **SMALL,
            **CHUNKED,
            "num_hidden_layers": 8,
            "ema_projection_size": 32,
            "relative_positional_bias": "simple",
            "max_positions": 256,
        },
        format="sharded",
        lengths=CHUNKED_LENGTHS,
    ),
    ModelCase(
        "mega-small-embed",
        "MegaModel",
        {
            **SMALL,
            **CHUNKED,
            "num_hidden_layers": 8,
            "intermediate_size": 20,
            "ema_projection_size": 32,
            "relative_positional_bias": "simple",
            "normalization_type": "scalenorm",
            "normalize_before_mega": False,
            "normalize_before_ffn": False,
            "add_token_type_embeddings": True,
            "max_positions": 256,
        },
        lengths=CHUNKED_LENGTHS,
    ),
    ModelCase(
        "mega-ar",
        "MegaForCausalLM",
        {
            **SMALL,
            "num_hidden_layers": 12,
            "ema_projection_size": 16,
            "relative_positional_bias": "rotary",
            "normalization_type": "layernorm",
            **CAUSAL,
            "pad_token_id": None,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
    ),
    ModelCase(
        "mega-150m-arch",
        "MegaForMaskedLM",
        {
            **SMALL,
            **CHUNKED,
            "num_hidden_layers": 12,
            "ema_projection_size": 16,
            "relative_positional_bias": "rotary",
            "normalization_type": "scalenorm",
        },
        format="bin",
        lengths=CHUNKED_LENGTHS,
    ),
    *(
        ModelCase(
            f"tiny-random-{cls}",
            cls,
            {
                **SMALL,
                "hidden_size": 32,
                "num_hidden_layers": 5,
                "intermediate_size": 64,
                "shared_representation_size": 64,
                "ema_projection_size": 16,
                "nffn_hidden_size": 24,
                "chunk_size": 32,
                "use_chunking": False,
                "add_token_type_embeddings": True,
                "add_lm_hidden_dense_layer": True,
                **(CAUSAL if cls == "MegaForCausalLM" else {}),
            },
            lengths=[13, 40],
        )
        for cls in AUTO
    ),
]

# what both compute; rmsnorm is not among it
VARIANTS = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "without dense layer": {"add_lm_hidden_dense_layer": False},
    "token types": {"add_token_type_embeddings": True, "type_vocab_size": 3},
    "simple": {"relative_positional_bias": "simple"},
    "rotary chunks": {**CHUNKED, "relative_positional_bias": "rotary"},
    "simple chunks": {**CHUNKED, "relative_positional_bias": "simple"},
    "unused chunk size": {"chunk_size": 16, "relative_positional_bias": "simple"},
    "layernorm": {"normalization_type": "layernorm"},
    "scalenorm": {"normalization_type": "scalenorm", "norm_affine": False},
    "batchnorm": {"normalization_type": "batchnorm"},
    "syncbatchnorm": {"normalization_type": "syncbatchnorm"},
    "post-norm": {"normalize_before_mega": False, "normalize_before_ffn": False},
    "laplace": {"attention_activation": "laplace"},
    "relu2": {"attention_activation": "relu2", "relative_positional_bias": "simple"},
    "truncation": {"truncation": 5},
    "unidirectional": {"bidirectional": False},
    "without feed-forward": {"use_normalized_ffn": False},
    "gelu": {"activation": "gelu"},
}
OURS = [
    *(
        ModelCase(
            name.replace(" ", "-"),
            "MegaForMaskedLM",
            {**SMALL, **fields},
            lengths=CHUNKED_LENGTHS if "use_chunking" in fields else [13],
        )
        for name, fields in VARIANTS.items()
    ),
    *(ModelCase(cls, cls, {**SMALL, "num_labels": 2}) for cls in HEADS[1:]),
    ModelCase("causal", "MegaForCausalLM", {**SMALL, **CAUSAL}),
    ModelCase("causal-chunks", "MegaForCausalLM", {**SMALL, **CAUSAL, **CHUNKED}, lengths=[16, 48]),
    ModelCase("trunk", "MegaModel", {**SMALL, "normalization_type": "layernorm"}),
    ModelCase("causal trunk", "MegaModel", {**SMALL, **CAUSAL}),
    ModelCase("shards", "MegaForMaskedLM", SMALL, format="sharded"),
]


def run_old(python: str, task: str, cases: list[ModelCase], folder: Path) -> None:
    """Runs `old_transformers.py` on all `cases` at once, for its imports are slow."""
    listing = folder / "cases.json"
    listing.write_text(json.dumps([asdict(case) for case in cases]))
    script = Path(__file__).with_name("old_transformers.py")
    result = subprocess.run([python, str(script), task, str(listing), str(folder)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]


def read_inputs(folder: Path, length: int) -> dict[str, torch.Tensor]:
    """Keyword arguments of a forward pass."""
    tensors = load_file(folder / f"input_{length}.safetensors")
    return {key.removeprefix("input."): tensor for key, tensor in tensors.items()}


def assert_same_outputs(outputs, reference: dict[str, torch.Tensor], mask: torch.Tensor) -> None:
    """Compares everything that `outputs` holds, at real tokens: numbers at padding mean nothing."""
    names = {key.partition(".")[0] for key in reference}
    assert outputs.keys() == names
    mask = mask.flatten(0, -2).bool()
    for key, expected in reference.items():
        name, _, index = key.partition(".")
        actual = outputs[name][int(index)] if index else outputs[name]
        assert actual.shape == expected.shape, key
        if name == "attentions":
            real = mask.view(expected.shape[:3])
            actual, expected = actual[real], expected[real]
        elif expected.shape[:2] == mask.shape:
            actual, expected = actual[mask], expected[mask]
        deviation = float((actual - expected).abs().max() / (1 + expected.abs().max()))
        assert deviation <= 2e-5, f"{key} deviates by {deviation:.2e}"
