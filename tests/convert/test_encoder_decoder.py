"""The authors' encoder-decoder in its variants; its golden numbers are in test_fairseq.py."""

from __future__ import annotations

import pytest
import torch
from samples import language_model_args, language_model_state, layer_state, norm_state, random, save_checkpoint
from transformers import AutoModelForSeq2SeqLM

from mega_transformers.convert import ConversionError, convert_checkpoint

SOURCE_WORDS, TARGET_WORDS = 23, 31


def arguments(**changes) -> dict:
    args = language_model_args(share_all_embeddings=False, max_source_positions=40, arch="mega")
    encoder = {name.replace("decoder_", "encoder_"): value for name, value in args.items() if "decoder_" in name[:8]}
    return {**args, **encoder, "decoder_z_dim": 8, **changes}


def cross_state(prefix: str, args: dict) -> dict[str, torch.Tensor]:
    d, e, z = args["decoder_embed_dim"], args["encoder_embed_dim"], args["decoder_z_dim"]
    served = max(args["max_source_positions"], args["max_target_positions"])
    state = norm_state("norm.norm.", args["normalization_type"], d)
    for name, (rows, columns) in {
        "k_proj": (z, e),
        "v_proj": (d, e),
        "q_proj": (2 * d + z, d),
        "h_proj": (d, d),
    }.items():
        state |= {f"{name}.weight": random(rows, columns), f"{name}.bias": random(rows)}
    if args["rel_pos_bias"] == "simple":
        state["rel_pos_bias.rel_pos_bias"] = random(2 * served - 1)
    else:
        state |= {f"rel_pos_bias.{name}": random(1, z) for name in ("alpha", "beta")}
    return {prefix + name: tensor for name, tensor in state.items()}


def state_of(args: dict) -> dict[str, torch.Tensor]:
    """Random weights that fit `args`."""
    state = language_model_state(args, TARGET_WORDS)
    for index in range(args["decoder_layers"]):
        state |= cross_state(f"decoder.layers.{index}.cross_attn.", args)
    words = TARGET_WORDS if args["share_all_embeddings"] else SOURCE_WORDS
    state["encoder.embed_tokens.weight"] = random(words, args["encoder_embed_dim"])
    if args["share_all_embeddings"]:
        state["encoder.embed_tokens.weight"] = state["decoder.embed_tokens.weight"]
    for index in range(args["encoder_layers"]):
        state |= layer_state(f"encoder.layers.{index}.", args, "encoder", causal=False)
    if args["normalize_before"]:
        state |= norm_state("encoder.final_norm.norm.", args["normalization_type"], args["encoder_embed_dim"])
    if args["normalize_embedding"]:
        state |= norm_state("encoder.embed_norm.norm.", args["normalization_type"], args["encoder_embed_dim"])
    state["encoder.version"] = torch.tensor([3.0])
    return state


SHARED = {"share_all_embeddings": True, "share_decoder_input_output_embed": True}
VARIANTS = {
    "separate vocabularies": {},
    "tied output": {"share_decoder_input_output_embed": True},
    "one table": SHARED,
    "pre-norm": {**SHARED, "normalize_before": True, "normalization_type": "rmsnorm"},
    "norm of the embeddings": {"normalize_embedding": True, "normalization_type": "scalenorm"},
    "rotary": {"rel_pos_bias": "rotary"},
    "laplace, chunks": {"attention_activation_fn": "laplace", "encoder_chunk_size": 5, "decoder_chunk_size": 4},
    "an encoder of other sizes": {"encoder_embed_dim": 12, "encoder_layers": 1, "encoder_hidden_dim": 8},
    "no truncation": {"truncation_length": None},
    "truncation that cannot be": {"truncation_length": 0},
    "unscaled": {"no_scale_embedding": True},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name, tmp_path):
    args = arguments(**VARIANTS[name])
    path = save_checkpoint(tmp_path / "a.pt", args, state_of(args))
    report = convert_checkpoint(path, tmp_path / "model")
    assert all(each.relative < 2e-5 for each in report.deviations)
    model, loading = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(loading.values())
    config = model.config
    assert config.share_embeddings == args["share_all_embeddings"]
    assert config.decoder.vocab_size == TARGET_WORDS
    assert config.encoder.final_norm == config.decoder.final_norm == args["normalize_before"]
    assert config.encoder.truncation == (args["truncation_length"] or None)
    assert any("truncation_length=0" in note for note in report.notes) == (args["truncation_length"] == 0)
    with torch.no_grad():
        written = model.generate(torch.tensor([[5, 6, 2]]), max_new_tokens=4, num_beams=2)
    assert written[0, 0] == 2


def test_two_dictionaries_are_needed(tmp_path):
    args = arguments()
    path = save_checkpoint(tmp_path / "a.pt", args, state_of(args))
    dictionaries = [tmp_path / "en.txt", tmp_path / "de.txt"]
    for dictionary, words in zip(dictionaries, (SOURCE_WORDS, TARGET_WORDS)):
        dictionary.write_text("".join(f"w{index} 3\n" for index in range(words - 4)))
    with pytest.raises(ConversionError, match="the encoder has 23 words and the decoder 31: give two dictionaries"):
        convert_checkpoint(path, tmp_path / "model", dictionaries=dictionaries[:1])
    convert_checkpoint(path, tmp_path / "model", dictionaries=dictionaries)


def test_adaptive_softmax_is_refused(tmp_path):
    args = arguments(adaptive_softmax_cutoff="5,9")
    path = save_checkpoint(tmp_path / "a.pt", args, state_of(args))
    with pytest.raises(ConversionError, match="an encoder-decoder here cannot have an adaptive softmax"):
        convert_checkpoint(path, tmp_path / "model")
