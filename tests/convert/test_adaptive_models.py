"""Language models with clusters of words, in every combination of input, softmax and sharing."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from samples import language_model_args, language_model_state, random, save_checkpoint
from transformers import AutoModelForCausalLM

from mega_transformers.convert import ConversionError, convert_checkpoint

WORDS, CUTOFFS, FACTOR = 31, (7, 20), 2


def clusters(width: int) -> list[tuple[int, int]]:
    """Words and width of each cluster."""
    borders = pairwise([0, *CUTOFFS, WORDS])
    return [(end - start, width // FACTOR**cluster) for cluster, (start, end) in enumerate(borders)]


def adaptive_state(args: dict) -> dict[str, torch.Tensor]:
    """A random language model with clusters, as the authors' code lays it out."""
    state = language_model_state(args)
    d = args["decoder_embed_dim"]
    state = {name: tensor for name, tensor in state.items() if "project_in_dim" not in name}
    if args["adaptive_input"]:
        del state["decoder.embed_tokens.weight"]
        for index, (size, width) in enumerate(clusters(args["decoder_input_dim"])):
            state[f"decoder.embed_tokens.embeddings.{index}.0.weight"] = random(size, width)
            state[f"decoder.embed_tokens.embeddings.{index}.1.weight"] = random(d, width)
        state["decoder.embed_tokens._float_tensor"] = torch.zeros(1)
    if args["adaptive_softmax_cutoff"] is None:
        return state
    del state["decoder.output_projection.weight"]
    softmax = "decoder.adaptive_softmax."
    state[f"{softmax}version"] = torch.tensor([1])
    (first, _), *tails = clusters(d)
    if args["tie_adaptive_weights"]:
        state[f"{softmax}head.word_proj.weight"] = state["decoder.embed_tokens.embeddings.0.0.weight"]
        state[f"{softmax}head.class_proj.weight"] = random(len(tails), d)
        state[f"{softmax}head._float_tensor"] = torch.zeros(1)
    else:
        state[f"{softmax}head.weight"] = random(first + len(tails), d)
    for index, (size, width) in enumerate(tails):
        if args["tie_adaptive_weights"]:
            state[f"{softmax}tail.{index}.2.weight"] = state[f"decoder.embed_tokens.embeddings.{index + 1}.0.weight"]
        else:
            state[f"{softmax}tail.{index}.2.weight"] = random(size, width)
        if args["tie_adaptive_weights"] and args["tie_adaptive_proj"]:
            state[f"{softmax}tail.{index}.0.weight"] = state[f"decoder.embed_tokens.embeddings.{index + 1}.1.weight"]
        else:
            state[f"{softmax}tail.{index}.0.weight"] = random(width, d)
    return state


BOTH = {"adaptive_input": True, "adaptive_input_cutoff": "7,20", "adaptive_softmax_cutoff": "7,20"}
VARIANTS = {
    "input": {"adaptive_input": True, "adaptive_input_cutoff": "7,20"},
    "softmax": {"adaptive_softmax_cutoff": "7,20"},
    "both": BOTH,
    "tied weights": {**BOTH, "tie_adaptive_weights": True},
    "tied projections": {**BOTH, "tie_adaptive_weights": True, "tie_adaptive_proj": True},
    "projections of nothing": {**BOTH, "tie_adaptive_proj": True},
    "lists": {**BOTH, "adaptive_input_cutoff": [7, 20], "adaptive_softmax_cutoff": [7, 20]},
    "all words named": {**BOTH, "adaptive_input_cutoff": [7, 20, 31], "adaptive_softmax_cutoff": "7,20,31"},
    "narrow input": {"adaptive_input": True, "adaptive_input_cutoff": "7,20", "decoder_input_dim": 6},
    "factor that is a float": {**BOTH, "adaptive_input_factor": 2.0, "adaptive_softmax_factor": 2.0},
}


def arguments(**changes) -> dict:
    sharing = {"tie_adaptive_weights": False, "tie_adaptive_proj": False}
    factors = {"adaptive_input_factor": FACTOR, "adaptive_softmax_factor": FACTOR, "adaptive_softmax_dropout": 0.2}
    return language_model_args(**{"adaptive_input_cutoff": None, **sharing, **factors, **changes})


@pytest.mark.parametrize("name", VARIANTS)
def test_bands(name, tmp_path):
    args = arguments(**VARIANTS[name])
    path = save_checkpoint(tmp_path / "a.pt", args, adaptive_state(args))
    report = convert_checkpoint(path, tmp_path / "model")
    assert all(each.relative < 2e-5 for each in report.deviations)
    model, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(loading.values())
    config = model.config
    assert config.adaptive_cutoffs == list(CUTOFFS) and config.vocab_size == WORDS
    assert config.adaptive_softmax == (args["adaptive_softmax_cutoff"] is not None)
    assert config.tie_adaptive_projections == (args["tie_adaptive_weights"] and args["tie_adaptive_proj"])
    with torch.no_grad():
        logits = model(torch.tensor([[2, 25, 9]])).logits
    if config.adaptive_softmax:
        torch.testing.assert_close(logits.exp().sum(-1), torch.ones(1, 3))


def test_weights_that_are_not_the_same(tmp_path):
    args = arguments(**VARIANTS["tied projections"])
    state = adaptive_state(args)
    state["decoder.adaptive_softmax.tail.0.2.weight"] = state["decoder.adaptive_softmax.tail.0.2.weight"] + 1
    path = save_checkpoint(tmp_path / "a.pt", args, state)
    with pytest.raises(
        ConversionError, match=r"tail\.0\.2\.weight and .*should be one tensor, but their values differ"
    ):
        convert_checkpoint(path, tmp_path / "model")


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"adaptive_softmax_cutoff": "7,21"},
            r"adaptive_input_cutoff=\[7, 20\] and adaptive_softmax_cutoff=\[7, 21\]",
        ),
        ({"adaptive_softmax_cutoff": "20,7"}, "must be ascending whole numbers"),
        ({"adaptive_softmax_cutoff": "seven"}, "must be ascending whole numbers"),
        ({"adaptive_softmax_factor": 0}, r"adaptive_softmax_factor=0 must be a whole number"),
        ({"adaptive_softmax_factor": 3}, "has the shape"),
    ],
)
def test_bands_that_do_not_fit(changes, message, tmp_path):
    args = arguments(**BOTH)
    path = save_checkpoint(tmp_path / "a.pt", {**args, **changes}, adaptive_state(args))
    with pytest.raises(ConversionError, match=message):
        convert_checkpoint(path, tmp_path / "model")
