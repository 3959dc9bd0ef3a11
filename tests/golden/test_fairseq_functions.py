"""Activations and relative position biases against the authors' code."""

from __future__ import annotations

import pytest
import torch
from golden_io import (
    GRADIENT_TOLERANCE,
    assert_close,
    assert_gradients,
    assert_outputs,
    config_of,
    fairseq_files,
    load_parameters,
    read_fairseq,
)
from transformers.activations import ACT2FN

from mega_transformers.layers import MegaRotaryRelativePositionalBias, MegaSimpleRelativePositionalBias
from mega_transformers.ops.activations import ELEMENTWISE

OURS = {name: activation.function for name, activation in ELEMENTWISE.items()}
BIASES = {"relpos_rotary": MegaRotaryRelativePositionalBias, "relpos_simple": MegaSimpleRelativePositionalBias}


@pytest.mark.parametrize("name", ["laplace", "relu2", "relu", "gelu", "gelu_accurate", "linear", "silu"])
def test_activation(name, device):
    case = read_fairseq("functions", device)
    function = OURS[name] if name in OURS else ACT2FN[name]
    assert_outputs(function(case.input["x"]), case.output[name], name)


@pytest.mark.parametrize("name", list(ELEMENTWISE))
def test_parts_make_up_function_and_derivative(name, device):
    activation = ELEMENTWISE[name]
    x = read_fairseq("functions", device).input["x"].requires_grad_()
    expected = activation.function(x)
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    t = activation.slope * (x.detach() - activation.shift)
    slope = activation.factor * activation.slope * activation.core_derivative(t)
    assert_close(slope, gradient, GRADIENT_TOLERANCE, f"derivative of {name}")
    assert_outputs(activation.factor * activation.core_(t), expected.detach(), name)


def bias_matrix(bias, length):
    return bias.table(1 - length, length - 1).tile(0, length, length)[0]


@pytest.mark.parametrize("name", fairseq_files("relpos_*"))
def test_relative_bias(name, device):
    case = read_fairseq(name, device)
    width = case.meta.get("embed_dim", 2)
    config = config_of({"max_positions": case.meta["max_positions"], "zdim": width})
    module = BIASES[name](config).to(device)
    load_parameters(module, case.param, "rel_pos_bias.")
    for key, reference in case.output.items():
        length = int(key.removeprefix("bias_"))
        assert_outputs(bias_matrix(module(), length), reference, key)
    weight = case.input["loss_weight"]
    (bias_matrix(module(), weight.shape[-1]) * weight).sum().backward()
    assert_gradients(module, case, {}, "rel_pos_bias.")


def test_rotary_features_give_the_same_bias(device):
    case = read_fairseq("relpos_rotary", device)
    module = MegaRotaryRelativePositionalBias(config_of({"zdim": case.meta["embed_dim"]})).to(device)
    load_parameters(module, case.param, "rel_pos_bias.")
    for key, reference in case.output.items():
        positions = torch.arange(int(key.removeprefix("bias_")), device=device)
        queries, keys = module().query_features(positions), module().key_features(positions)
        assert_outputs(queries @ keys.T, reference, key)


def test_simple_bias_refuses_more_positions_than_it_has():
    case = read_fairseq("relpos_simple")
    positions = case.meta["max_positions"]
    module = MegaSimpleRelativePositionalBias(config_of({"max_positions": positions}))
    load_parameters(module, case.param, "rel_pos_bias.")
    with pytest.raises(ValueError, match=f"length={positions + 1} .*{positions} positions"):
        module().table(-positions, positions)
