"""The authors' translation model `mega` as `MegaForConditionalGeneration`: at once, step by step, gradients.

Its sources are padded on the left. Where the encoder has chunks, the authors count them from the padding (see N2 in
docs/parity.md), so there the rows with padding are compared behind the encoder only.
"""

from __future__ import annotations

import pytest
import torch
from golden_io import (
    GRADIENT_TOLERANCE,
    Case,
    assert_close,
    assert_outputs,
    config_of,
    fairseq_files,
    hf_name,
    read_fairseq,
)
from transformers.modeling_outputs import BaseModelOutput

from mega_transformers import MegaConfig, MegaForConditionalGeneration, MegaSeq2SeqConfig

OUTER_NAMES = {
    "embed_tokens.weight": "embedding_layer.word_embeddings.weight",
    "embed_norm.norm.weight": "embedding_layer.norm.norm.weight",
    "embed_norm.norm.bias": "embedding_layer.norm.norm.bias",
}


def side_of(case: Case, side: str) -> MegaConfig:
    arguments = {key: value for key, value in case.meta["args"].items() if not key.startswith(other_side(side))}
    config = config_of(arguments, causal=side == "decoder", cross=side == "decoder")
    config.num_hidden_layers = arguments[f"{side}_layers"]
    config.vocab_size = case.meta["vocab"]
    config.scale_embeddings = not arguments["no_scale_embedding"]
    config.normalize_embeddings = arguments["normalize_embedding"]
    config.final_norm = arguments["normalize_before"]
    return config


def other_side(side: str) -> str:
    return "encoder_" if side == "decoder" else "decoder_"


def our_name(name: str) -> str | None:
    """The authors' name of a parameter -> ours, None for what has no place."""
    side, _, rest = name.partition(".")
    if rest in ("version", "output_projection.weight"):
        return None
    if rest in OUTER_NAMES:
        return f"model.{side}.{OUTER_NAMES[rest]}"
    layers, index, inner = rest.split(".", 2)
    return f"model.{side}.{layers}.{index}.{hf_name(inner)}"


def translation_model(case: Case, device: str, attn_implementation: str) -> MegaForConditionalGeneration:
    arguments = case.meta["args"]
    assert arguments["share_decoder_input_output_embed"]
    config = MegaSeq2SeqConfig(
        encoder=side_of(case, "encoder"),
        decoder=side_of(case, "decoder"),
        share_embeddings=arguments["share_all_embeddings"],
        tie_word_embeddings=True,
    )
    model = MegaForConditionalGeneration._from_config(config, attn_implementation=attn_implementation)
    state, own = {}, model.state_dict()
    for name, tensor in case.param.items():
        ours = our_name(name)
        if ours is None:
            continue
        if tensor.shape != own[ours].shape:  # with chunks they hold 2 * chunk_size - 1 biases
            tensor = torch.cat([tensor, tensor.new_full((own[ours].numel() - tensor.numel(),), float("nan"))])
        state[ours] = tensor
    info = model.load_state_dict(state, strict=False)
    assert info.missing_keys == ["lm_head.weight"] and not info.unexpected_keys
    return model.to(device).eval()


def assert_rows(actual, reference, rows, what):
    assert_outputs(actual[rows], reference[rows], what)


@pytest.mark.parametrize("name", fairseq_files("nmt_*"))
def test_translation_model(name, device, attn_implementation):
    case = read_fairseq(name, device)
    model = translation_model(case, device, attn_implementation)
    source, previous = case.input["src"], case.input["prev_output"]
    mask = ~case.output["encoder_padding_mask"]
    chunked = model.config.encoder.use_chunking
    rows = mask.all(1) if chunked else mask.any(1)
    assert rows.any()

    outputs = model(
        source,
        attention_mask=mask,
        decoder_input_ids=previous,
        decoder_attention_mask=previous != 1,
        output_attentions=True,
    )
    encoded = outputs.encoder_last_hidden_state
    real = mask & rows[:, None]
    assert_rows(encoded, case.output["encoder_out"], real, "encoder_out")
    words = (previous != 1) & rows[:, None]
    assert_rows(outputs.logits, case.output["logits"], words, "logits")
    last = outputs.cross_attentions[-1].squeeze(1)
    assert_rows(last, case.output["cross_attn_last"], words, "cross attention of the last layer")

    if not chunked:
        labels = case.input["target"].masked_fill(case.input["target"] == 1, -100)
        loss = model(
            source,
            attention_mask=mask,
            decoder_input_ids=previous,
            decoder_attention_mask=previous != 1,
            labels=labels,
            num_items_in_batch=1,
        ).loss
        assert_outputs(loss, case.output["loss_sum"].squeeze(), "summed loss")
        loss.backward()
        parameters = dict(model.named_parameters())
        shared = "model.encoder.embedding_layer.word_embeddings.weight" not in parameters
        compared = 0
        for key, reference in case.grad.items():
            ours = our_name(key.removeprefix("param."))
            if ours is None or (shared and "word_embeddings" in ours):
                continue
            assert_close(parameters[ours].grad, reference, GRADIENT_TOLERANCE, f"gradient of {ours}")
            compared += 1
        assert compared > 60
        if shared:  # the table's parts are stored once each
            assert_close(
                model.lm_head.weight.grad,
                case.grad["param.encoder.embed_tokens.weight"],
                GRADIENT_TOLERANCE,
                "gradient of the shared embeddings",
            )


@pytest.mark.parametrize("name", fairseq_files("nmt_*"))
def test_translation_step_by_step(name, device):
    """What the authors' incremental decoder gave, also after its beams were permuted."""
    case = read_fairseq(name, device)
    model = translation_model(case, device, "sdpa")
    mask = ~case.output["encoder_padding_mask"]
    encoded = BaseModelOutput(last_hidden_state=case.output["encoder_out"])
    ids = case.input["prev_output_nopad"]
    with torch.no_grad():
        whole = model(attention_mask=mask, encoder_outputs=encoded, decoder_input_ids=ids, use_cache=False).logits
        assert_outputs(whole, case.output["logits_nopad"], "logits_nopad")
        for reordered in (False, True):
            words, cache, steps = ids, None, []
            for step in range(ids.shape[1]):
                if reordered and step == 5:
                    order = case.input["reorder"]
                    words = words[order]
                    # theirs leaves the source where it is, since beams of one sentence share it
                    cache.self_attention_cache.reorder_cache(order)
                outputs = model(
                    attention_mask=mask,
                    encoder_outputs=encoded,
                    decoder_input_ids=words[:, step : step + 1],
                    cache=cache,
                    use_cache=True,
                )
                cache = outputs.cache
                steps.append(outputs.logits)
            key = "logits_step_reordered_at_5" if reordered else "logits_step"
            assert_outputs(torch.cat(steps, dim=1), case.output[key], key)
