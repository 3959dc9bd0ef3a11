"""Checkpoints to convert: golden ones, and random ones with the names and arguments of the authors' code."""

from __future__ import annotations

import argparse
import pathlib
import sys

import torch

TESTS = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(TESTS / "golden"))

from golden_io import FAIRSEQ, TRANSFORMERS, Case, read_case  # noqa: E402

CKPT = TESTS / "golden" / "ckpt"
LANGUAGE_MODELS = sorted(path.stem for path in FAIRSEQ.glob("lm_*.safetensors"))
TRANSLATION = sorted(path.stem for path in FAIRSEQ.glob("nmt_*.safetensors"))
CLASSIFIERS = [*sorted(path.stem for path in FAIRSEQ.glob("lra_*.safetensors")), "speech_commands_raw"]
FOLDERS = sorted(path.parent.name for path in TRANSFORMERS.glob("*/config.json"))

SIZES = {"embed_dim": 10, "hidden_dim": 14, "ffn_embed_dim": 18, "z_dim": 6, "n_dim": 3, "layers": 2}


def read_sample(name: str) -> Case:
    """A golden model of the authors."""
    return read_case(FAIRSEQ / f"{name}.safetensors")


def save_checkpoint(path: pathlib.Path, args: dict, state: dict[str, torch.Tensor], **others) -> pathlib.Path:
    """A file as fairseq writes it."""
    content = {
        "args": argparse.Namespace(**args),
        "model": state,
        "optimizer_history": [{"criterion_name": "CrossEntropyCriterion", "num_updates": 7}],
        "extra_state": {"epoch": 1, "val_loss": 1.5},
        "last_optimizer_state": None,
    }
    torch.save({**content, **others}, path)
    return path


def save_sample(name: str, path: pathlib.Path, **others) -> Case:
    """Writes a golden model as a checkpoint."""
    case = read_sample(name)
    args = {**case.meta["args"], "arch": case.meta.get("arch", case.meta["kind"])}
    save_checkpoint(path, args, case.param, **others)
    return case


def language_model_args(**changes) -> dict:
    """Arguments of a small language model of the authors."""
    args = {
        **{f"decoder_{name}": value for name, value in SIZES.items()},
        "decoder_input_dim": SIZES["embed_dim"],
        "decoder_chunk_size": -1,
        "max_target_positions": 48,
        "normalization_type": "layernorm",
        "normalize_before": False,
        "normalize_embedding": False,
        "no_scale_embedding": False,
        "no_affine_final_norm": False,
        "rel_pos_bias": "simple",
        "activation_fn": "silu",
        "attention_activation_fn": "softmax",
        "dropout": 0.1,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "activation_dropout": 0.0,
        "feature_dropout": False,
        "truncation_length": 30,
        "share_decoder_input_output_embed": False,
        "adaptive_softmax_cutoff": None,
        "adaptive_input": False,
        "arch": "mega_lm",
        "lr": [0.005],
    }
    return {**args, **changes}


def norm_state(prefix: str, kind: str, width: int, affine: bool = True) -> dict[str, torch.Tensor]:
    """Random weights and statistics of a norm."""
    if kind == "scalenorm":
        return {f"{prefix}scalar": random(1) + 1}
    state = {}
    if affine:
        state[f"{prefix}weight"] = random(width) + 1
        if kind != "rmsnorm":
            state[f"{prefix}bias"] = random(width)
    if kind in ("batchnorm", "syncbatchnorm"):
        state |= {f"{prefix}running_mean": random(width), f"{prefix}running_var": random(width).square() + 0.5}
        state[f"{prefix}num_batches_tracked"] = torch.tensor(11)
    return state


def random(*shape: int) -> torch.Tensor:
    return 0.4 * torch.randn(*shape)


def layer_state(prefix: str, args: dict, side: str, causal: bool) -> dict[str, torch.Tensor]:
    """Random weights of a layer, without cross-attention."""
    d, h, f, z, n = (args[f"{side}_{name}"] for name in ("embed_dim", "hidden_dim", "ffn_embed_dim", "z_dim", "n_dim"))
    rows = d if causal else 2 * d
    chunk = args[f"{side}_chunk_size"]
    served = chunk if chunk > 0 else args["max_target_positions" if causal else "max_source_positions"]
    norm = args["normalization_type"]
    state = {
        **norm_state("mega_layer.norm.norm.", norm, d),
        "mega_layer.move.delta": random(rows, n, 1),
        "mega_layer.move.alpha": random(rows, n, 1),
        "mega_layer.move.beta": random(rows, n, 1),
        "mega_layer.move.gamma": random(rows, n),
        "mega_layer.move.omega": random(d),
        "mega_layer.v_proj.weight": random(h, d),
        "mega_layer.v_proj.bias": random(h),
        "mega_layer.mx_proj.weight": random(z + h + 2 * d, d),
        "mega_layer.mx_proj.bias": random(z + h + 2 * d),
        "mega_layer.h_proj.weight": random(d, h),
        "mega_layer.h_proj.bias": random(d),
        "mega_layer.gamma": random(2, z),
        "mega_layer.beta": random(2, z),
    }
    if args["rel_pos_bias"] == "simple":
        state["mega_layer.rel_pos_bias.rel_pos_bias"] = random(2 * served - 1)
    else:
        state |= {f"mega_layer.rel_pos_bias.{name}": random(1, z) for name in ("alpha", "beta")}
        state["mega_layer.rel_pos_bias._float_tensor"] = torch.tensor([torch.nan])
    if f:
        state |= {
            **norm_state("nffn.norm.norm.", norm, d),
            "nffn.fc1.weight": random(f, d),
            "nffn.fc1.bias": random(f),
            "nffn.fc2.weight": random(d, f),
            "nffn.fc2.bias": random(d),
        }
    return {prefix + name: tensor for name, tensor in state.items()}


def language_model_state(args: dict, words: int = 31, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights that fit `args`."""
    torch.manual_seed(seed)
    d, width, norm = args["decoder_embed_dim"], args["decoder_input_dim"], args["normalization_type"]
    state = {"decoder.version": torch.tensor([3.0]), "decoder.embed_tokens.weight": random(words, width)}
    if width != d:
        state["decoder.project_in_dim.weight"] = random(d, width)
    if args["normalize_embedding"]:
        state |= norm_state("decoder.embed_norm.norm.", norm, d)
    for index in range(args["decoder_layers"]):
        state |= layer_state(f"decoder.layers.{index}.", args, "decoder", causal=True)
    if args["normalize_before"]:
        state |= norm_state("decoder.final_norm.norm.", norm, d, affine=not args["no_affine_final_norm"])
    tied = args["share_decoder_input_output_embed"]
    state["decoder.output_projection.weight"] = state["decoder.embed_tokens.weight"] if tied else random(words, d)
    return state


def save_language_model(path: pathlib.Path, words: int = 31, **changes) -> pathlib.Path:
    """A random language model as a checkpoint; `changes` of its arguments."""
    args = language_model_args(**changes)
    return save_checkpoint(path, args, language_model_state(args, words))
