"""Reads golden files and translates the authors' names and layout into this package's.

The authors' tensors are time first and their masks True at padding; ours are batch first and 1 at real tokens.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from mega_transformers import MegaConfig

HERE = Path(__file__).parent
FAIRSEQ = HERE / "fairseq"
TRANSFORMERS = HERE / "hf"

OUTPUT_TOLERANCE = 2e-5
GRADIENT_TOLERANCE = 5e-5

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]

EMA_NAMES = {
    "delta": "damping_factor",
    "alpha": "decay_factor",
    "beta": "ema_expansion_matrix",
    "gamma": "kernel_projection_matrix",
    "omega": "residual_weight",
}

# the authors' constructor arguments, by whatever name each of their classes gives them -> fields of MegaConfig
FIELDS = {
    "embed_dim": "hidden_size",
    "embedding_dim": "hidden_size",
    "hdim": "intermediate_size",
    "hidden_dim": "intermediate_size",
    "zdim": "shared_representation_size",
    "z_dim": "shared_representation_size",
    "ndim": "ema_projection_size",
    "n_dim": "ema_projection_size",
    "ffn_embed_dim": "nffn_hidden_size",
    "ffn_hidden_dim": "nffn_hidden_size",
    "chunk_size": "chunk_size",
    "truncation": "truncation",
    "truncation_length": "truncation",
    "activation": "activation",
    "activation_fn": "activation",
    "attention_activation": "attention_activation",
    "attention_activation_fn": "attention_activation",
    "norm_type": "normalization_type",
    "normalization_type": "normalization_type",
    "norm_affine": "norm_affine",
    "affine": "norm_affine",
    "prenorm": "normalize_before_mega",
    "normalize_before": "normalize_before_mega",
    "rel_pos_bias": "relative_positional_bias",
    "max_positions": "max_positions",
    "max_source_positions": "max_positions",
    "bidirectional": "bidirectional",
}


@dataclass
class Case:
    """One golden file: its header, and its tensors by the first part of their names (`param`, `input`, ...)."""

    meta: dict
    param: dict[str, torch.Tensor] = field(default_factory=dict)
    input: dict[str, torch.Tensor] = field(default_factory=dict)
    output: dict[str, torch.Tensor] = field(default_factory=dict)
    fixed: dict[str, torch.Tensor] = field(default_factory=dict)
    grad: dict[str, torch.Tensor] = field(default_factory=dict)


def read_case(path: Path, device: str = "cpu") -> Case:
    """Reads a file with all its tensors on `device`."""
    with safe_open(path, "pt") as file:
        case = Case(json.loads(file.metadata()["meta"]))
        for key in file.keys():  # noqa: SIM118
            group, name = key.split(".", 1)
            getattr(case, group)[name] = file.get_tensor(key).to(device)
    return case


def fairseq_files(*patterns: str) -> list[str]:
    """Names (without suffix) of the authors' cases that match any of `patterns`; there must be some."""
    names = sorted({path.stem for pattern in patterns for path in FAIRSEQ.glob(f"{pattern}.safetensors")})
    if not names:
        raise FileNotFoundError(f"no golden file in {FAIRSEQ} matches {patterns}")
    return names


def read_fairseq(name: str, device: str = "cpu") -> Case:
    """The authors' case `name`, with every (T, B, d) tensor turned to (B, T, d)."""
    case = read_case(FAIRSEQ / f"{name}.safetensors", device)
    for group in (case.input, case.output, case.grad):
        for key, tensor in group.items():
            batch_first = any(part in key for part in ("attn", "logits", "log_prob")) or key.endswith("_btd")
            if tensor.dim() == 3 and not batch_first and not key.startswith("param."):
                group[key] = tensor.transpose(0, 1)
    return case


def config_of(arguments: dict, causal: bool = False, cross: bool = False) -> MegaConfig:
    """The configuration that the authors' constructor arguments mean, without dropout."""
    side = "decoder_" if causal else "encoder_"
    fields = {}
    for name, value in arguments.items():
        name = name.removeprefix(side)
        if name in FIELDS:
            fields[FIELDS[name]] = value
    fields["use_chunking"] = fields.get("chunk_size", -1) > 0
    fields["use_normalized_ffn"] = fields.get("nffn_hidden_size") != 0
    if not fields["use_normalized_ffn"]:
        del fields["nffn_hidden_size"]
    fields["normalize_before_ffn"] = fields.get("normalize_before_mega", True)
    if causal:
        fields["bidirectional"] = False
    return MegaConfig(
        vocab_size=8,
        num_hidden_layers=1,
        dropout_prob=0.0,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        nffn_activation_dropout_prob=0.0,
        is_decoder=causal,
        add_cross_attention=cross,
        cross_attention_counts_padding=cross,
        **fields,
    )


def hf_name(name: str) -> str:
    """The authors' name of a parameter of a layer -> ours."""
    *path, leaf = name.split(".")
    owner = path[-1] if path else ""
    if owner == "move":
        return ".".join([*path[:-1], "ema_gate", EMA_NAMES[leaf]])
    if owner == "rel_pos_bias":
        leaf = {"beta": "b_param"}.get(leaf, leaf)
    elif owner in ("", "mega_layer"):
        leaf = {"gamma": "qk_weight", "beta": "qk_bias"}.get(leaf, leaf)
    return ".".join([*path, leaf])


def rename(tensors: dict[str, torch.Tensor], prefix: str = "") -> dict[str, torch.Tensor]:
    """Translates the names of `tensors`; `prefix`, e.g. `"move."`, is the part of a layer that they belong to."""
    ours = {"move.": "ema_gate."}.get(prefix, prefix)
    return {
        hf_name(prefix + name).removeprefix(ours): tensor
        for name, tensor in tensors.items()
        if not name.endswith("_float_tensor")  # uninitialised memory
    }


def load_parameters(module: nn.Module, parameters: dict[str, torch.Tensor], prefix: str = "") -> None:
    """Loads all of the authors' parameters, and none but them, into `module`.

    With chunks, theirs hold 2 * chunk_size - 1 biases; ours use as many at the front of 2 * max_positions - 1.
    """
    state = rename(parameters, prefix)
    own = module.state_dict()
    for name, tensor in state.items():
        if name.endswith("rel_pos_bias.rel_pos_bias") and tensor.shape != own[name].shape:
            state[name] = torch.cat([tensor, torch.full_like(own[name][tensor.numel() :], float("nan"))])
    module.load_state_dict(state, strict=True)


def assert_close(actual: torch.Tensor, reference: torch.Tensor, tolerance: float, what: str) -> None:
    """Fails unless the greatest deviation is below `tolerance * (1 + max |reference|)`."""
    assert actual.shape == reference.shape, f"{what}: shape {tuple(actual.shape)}, not {tuple(reference.shape)}"
    deviation = (actual.detach().double().cpu() - reference.double().cpu()).abs().max()
    relative = float(deviation / (1 + reference.double().abs().max().cpu()))
    assert relative <= tolerance, f"{what}: deviates by {relative:.2e}, allowed are {tolerance:.0e}"


def assert_outputs(actual: torch.Tensor, reference: torch.Tensor, what: str) -> None:
    """`assert_close` for results."""
    assert_close(actual, reference, OUTPUT_TOLERANCE, what)


def assert_gradients(module: nn.Module, case: Case, inputs: dict[str, torch.Tensor], prefix: str = "") -> None:
    """Compares the gradients of every parameter of `module` and of `inputs` with the authors'."""
    expected = rename(
        {name.removeprefix("param."): grad for name, grad in case.grad.items() if name.startswith("param.")}, prefix
    )
    parameters = dict(module.named_parameters())
    assert expected.keys() == parameters.keys()
    for name, parameter in parameters.items():
        reference, grad = expected[name], parameter.grad
        assert grad is not None, f"{name} got no gradient"
        if grad.shape != reference.shape:  # the unused end of a chunked simple bias
            assert not grad[reference.numel() :].any(), f"gradient of {name} beyond the chunk"
            grad = grad[: reference.numel()]
        assert_close(grad, reference, GRADIENT_TOLERANCE, f"gradient of {name}")
    for name, tensor in inputs.items():
        assert_close(tensor.grad, case.grad[f"input.{name}"], GRADIENT_TOLERANCE, f"gradient of the input {name}")
