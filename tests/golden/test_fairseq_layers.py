"""Norms, EMA, gated attention, feed-forward and blocks against the authors' code: outputs and every gradient."""

from __future__ import annotations

from dataclasses import fields

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

from mega_transformers.layers import (
    MegaBlock,
    MegaMovingAverageGatedAttention,
    MegaMultiDimensionDampedEma,
    MegaNormalizedFeedForwardNetwork,
    MegaSequenceNorm,
)
from mega_transformers.ops.ema import ema, ema_coefficients, ema_kernel
from mega_transformers.ops.layout import AttentionLayout, self_attention_layout


class AuthorsLayout(AttentionLayout):
    """The authors' divisor of element-wise causal attention: it counts padded keys too.

    That changes nothing at real tokens if the padding is on the right, but results and gradients at padding.
    """

    def counts(self, device: torch.device) -> int | torch.Tensor:
        if not self.causal:
            return super().counts(device)
        return torch.arange(1, self.queries + 1, device=device).unsqueeze(0)


def mask_of(case: Case) -> torch.Tensor | None:
    """Our mask, True at real tokens."""
    padding = case.input.get("padding_mask")
    return None if padding is None else ~padding


def backward(case: Case, output: torch.Tensor) -> None:
    (output * case.input["loss_weight"]).sum().backward()


def leaf(case: Case) -> torch.Tensor:
    return case.input["x"].clone().requires_grad_()


def layout_of(case: Case, config, mask, kind=AttentionLayout) -> AttentionLayout:
    chunk_size = config.chunk_size if config.use_chunking else None
    layout = self_attention_layout(mask, case.input["x"].shape[1], chunk_size=chunk_size, causal=config.is_decoder)
    return kind(**{field.name: getattr(layout, field.name) for field in fields(layout) if field.init})


@pytest.mark.parametrize("name", fairseq_files("norm_*"))
def test_norm(name, device):
    case = read_fairseq(name, device)
    module = MegaSequenceNorm(config_of(case.meta)).to(device).eval()
    load_parameters(module, case.param)
    x = leaf(case)
    output = module(x)
    assert_outputs(output, case.output["y"], "y")
    assert_outputs(module(case.input["x_small"]), case.output["y_small"], "y of small numbers")
    backward(case, output)
    assert_gradients(module, case, {"x": x})
    if "y_train" in case.output:
        assert_outputs(module.train()(x), case.output["y_train"], "y in training")
        assert_outputs(module.norm.running_mean, case.output["running_mean_after"], "running mean")
        assert_outputs(module.norm.running_var, case.output["running_var_after"], "running variance")


@pytest.mark.parametrize("name", fairseq_files("ema_*"))
def test_ema(name, device, attn_implementation):
    case = read_fairseq(name, device)
    config = config_of({key: case.meta[key] for key in ("bidirectional", "embed_dim", "ndim", "truncation")})
    module = MegaMultiDimensionDampedEma(config).to(device)
    load_parameters(module, case.param, "move.")
    x = leaf(case)
    output = module(x, self_attention_layout(mask_of(case), x.shape[1]))
    assert_outputs(output, case.output["y"], "y")
    backward(case, output)
    assert_gradients(module, case, {"x": x}, "move.")


@pytest.mark.parametrize("name", fairseq_files("ema_*"))
def test_ema_kernel(name, device):
    case = read_fairseq(name, device)
    parameters = (case.param[key] for key in ("delta", "alpha", "beta", "gamma"))
    kernel = ema_kernel(ema_coefficients(*parameters), case.output["kernel"].shape[-1])
    assert_outputs(kernel, case.output["kernel"], "kernel")


@pytest.mark.parametrize("name", fairseq_files("ema_uni", "ema_uni_pad"))
@pytest.mark.parametrize("pieces", [[13], [1] * 13, [5, 1, 7]], ids=str)
def test_ema_in_pieces(name, pieces, device):
    case = read_fairseq(name, device)
    x, mask = case.input["x"], mask_of(case)
    real = x if mask is None else x * mask.unsqueeze(-1)
    parameters = [case.param[key] for key in ("delta", "alpha", "beta", "gamma")]
    state, outputs = None, []
    for piece in real.split(pieces, dim=1):
        y, state = ema(piece, ema_coefficients(*parameters), state=state, return_state=True)
        outputs.append(y)
    y = torch.nn.functional.silu(torch.cat(outputs, dim=1) + case.param["omega"] * x)
    assert_outputs(y, case.output["y"], "y")


@pytest.mark.parametrize("name", fairseq_files("nffn_*"))
def test_feed_forward(name, device):
    case = read_fairseq(name, device)
    module = MegaNormalizedFeedForwardNetwork(config_of(case.meta["args"])).to(device).eval()
    load_parameters(module, case.param)
    x = leaf(case)
    output = module(x)
    assert_outputs(output, case.output["y"], "y")
    backward(case, output)
    assert_gradients(module, case, {"x": x})


def gated_attention(case: Case, attn_implementation: str, device: str) -> MegaMovingAverageGatedAttention:
    config = config_of(case.meta["args"], causal=case.meta["causal"])
    config._attn_implementation = attn_implementation
    module = MegaMovingAverageGatedAttention(config).to(device).eval()
    load_parameters(module, case.param)
    return module


@pytest.mark.parametrize("name", fairseq_files("mega_attn_*"))
def test_gated_attention(name, device, attn_implementation):
    case = read_fairseq(name, device)
    module = gated_attention(case, attn_implementation, device)
    x = leaf(case)
    layout = layout_of(case, module.config, mask_of(case), AuthorsLayout)
    output, _ = module(x, layout)
    assert_outputs(output, case.output["y"], "y")
    _, weights = module(x, layout, output_attentions=True)
    assert_outputs(weights, case.output["attn"], "attention weights")
    if case.grad:
        backward(case, output)
        assert_gradients(module, case, {"x": x})


@pytest.mark.parametrize("name", fairseq_files("mega_attn_*_pad"))
def test_gated_attention_at_real_tokens(name, device, attn_implementation):
    """With this package's own layout."""
    case = read_fairseq(name, device)
    module = gated_attention(case, attn_implementation, device)
    mask = mask_of(case)
    output, _ = module(case.input["x"], layout_of(case, module.config, mask))
    assert_outputs(output[mask], case.output["y"][mask], "y")


@pytest.mark.parametrize("name", fairseq_files("encoder_layer_*", "decoder_layer_*_nocross", "sentence_encoder_layer"))
def test_block(name, device, attn_implementation):
    case = read_fairseq(name, device)
    config = config_of(case.meta["args"], causal="decoder" in name)
    config._attn_implementation = attn_implementation
    module = MegaBlock(config).to(device).eval()
    load_parameters(module, case.param)
    x = leaf(case)
    output = module(x, layout=layout_of(case, config, mask_of(case)))
    assert_outputs(output, case.output["y"], "y")
    backward(case, output)
    assert_gradients(module, case, {"x": x})

    if "y_padded" in case.output:
        mask = ~case.input["decoder_padding_mask"]
        output = module(x, layout=layout_of(case, config, mask))
        assert_outputs(output[mask], case.output["y_padded"][mask], "y at real tokens of padded rows")
