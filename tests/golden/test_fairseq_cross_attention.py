"""Gated cross-attention and the decoder's block against the authors' code: outputs, weights, gradients, steps."""

from __future__ import annotations

import pytest
import torch
from golden_io import (
    Case,
    assert_gradients,
    assert_outputs,
    config_of,
    fairseq_files,
    load_parameters,
    read_fairseq,
)
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from mega_transformers.layers import MegaBlock, MegaGatedCrossAttention
from mega_transformers.models.mega.cache_preparation_mega import prepare_cache
from mega_transformers.ops.layout import AttentionLayout, cross_attention_layout, self_attention_layout


def cross_layout_of(case: Case, length: int, start: int = 0) -> AttentionLayout:
    """The authors' positions are columns, padding counted."""
    source = case.input["key" if "key" in case.input else "encoder_out"]
    padding = case.input.get("key_padding_mask", case.input.get("encoder_padding_mask"))
    mask = None if padding is None else ~padding
    return cross_attention_layout(mask, source.shape[1], length, start=start, count_padding=True)


def pair_of_caches(config, batch: int, device: str) -> EncoderDecoderCache:
    pair = EncoderDecoderCache(DynamicCache(config=config), DynamicCache())
    return prepare_cache(pair, config, batch, torch.device(device))


@pytest.mark.parametrize("name", fairseq_files("cross_attn_*"))
def test_cross_attention(name, device, attn_implementation):
    case = read_fairseq(name, device)
    config = config_of(case.meta["args"], causal=True, cross=True)
    config._attn_implementation = attn_implementation
    module = MegaGatedCrossAttention(config).to(device).eval()
    load_parameters(module, case.param)
    inputs = {part: case.input[part].clone().requires_grad_() for part in ("query", "key")}
    layout = cross_layout_of(case, inputs["query"].shape[1])
    output, _ = module(inputs["query"], inputs["key"], layout)
    assert_outputs(output, case.output["y"], "y")
    _, weights = module(inputs["query"], inputs["key"], layout, output_attentions=True)
    assert_outputs(weights.squeeze(1), case.output["attn"], "weights")
    (output * case.input["loss_weight"]).sum().backward()
    assert_gradients(module, case, inputs)

    cache = pair_of_caches(config, output.shape[0], device)
    with torch.no_grad():
        for step, query in enumerate(case.input["query"].split(1, dim=1)):
            # only the first step is shown the source
            source = case.input["key"] if step == 0 else None
            output, _ = module(query, source, cross_layout_of(case, 1, step), cache=cache)
            assert_outputs(output, case.output["y_step"][:, step : step + 1], f"y of step {step}")


@pytest.mark.parametrize("name", fairseq_files("decoder_layer_*_cross"))
def test_decoder_block(name, device, attn_implementation):
    case = read_fairseq(name, device)
    config = config_of(case.meta["args"], causal=True, cross=True)
    config._attn_implementation = attn_implementation
    module = MegaBlock(config).to(device).eval()
    load_parameters(module, case.param)
    inputs = {part: case.input[part].clone().requires_grad_() for part in ("x", "encoder_out")}
    length = inputs["x"].shape[1]
    layout = cross_layout_of(case, length)
    output = module(
        inputs["x"],
        inputs["encoder_out"],
        layout=self_attention_layout(None, length, causal=True),
        cross_layout=layout,
    )
    assert_outputs(output, case.output["y"], "y")
    (output * case.input["loss_weight"]).sum().backward()
    assert_gradients(module, case, inputs)

    mask = ~case.input["decoder_padding_mask"]
    padded = self_attention_layout(mask, length, causal=True)
    output = module(case.input["x"], case.input["encoder_out"], layout=padded, cross_layout=layout)
    assert_outputs(output[mask], case.output["y_padded"][mask], "y at real tokens of padded rows")

    cache = pair_of_caches(config, output.shape[0], device)
    layers = cache.self_attention_cache.layers
    with torch.no_grad():
        for step, x in enumerate(case.input["x"].split(1, dim=1)):
            output = module(
                x,
                case.input["encoder_out"] if step == 0 else None,
                layout=layers[0].begin(layers, None, (x.shape[0], 1), None, x.device),
                cross_layout=cross_layout_of(case, 1, step),
                cache=cache,
            )
            assert_outputs(output, case.output["y_step"][:, step : step + 1], f"y of step {step}")
