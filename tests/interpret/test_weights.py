"""What is read off weights: parameters add up; kernels, half-lives and biases are those that layers compute with."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from tiny import CAUSAL, tiny_config

from mega_transformers import (
    MegaConfig,
    MegaForCausalLM,
    MegaForConditionalGeneration,
    MegaForMaskedLM,
    MegaForMultipleChoice,
    MegaForSequenceClassification,
    MegaForSequencePairClassification,
    MegaModel,
    MegaSeq2SeqConfig,
    MegaSeq2SeqModel,
)
from mega_transformers.interpret.inspection import (
    HORIZON,
    count_parameters,
    exact_coefficients,
    half_lives_of_components,
    inspect_weights,
    lags_by_octave,
    mass_of_kernels,
    sides_of,
)
from mega_transformers.layers import MegaMultiDimensionDampedEma
from mega_transformers.ops.ema import EMACoefficients, ema

LENGTH = 600


def ema_layer(slowness: float = 0.0, **fields) -> MegaMultiDimensionDampedEma:
    """An EMA layer with random weights, in float64; `slowness` makes its decays approach 1."""
    torch.manual_seed(0)
    model = MegaModel(tiny_config(**fields)).double()
    layer = model.layers[0].mega_layer.ema_gate
    with torch.no_grad():
        layer.damping_factor.sub_(slowness * torch.rand_like(layer.damping_factor))
    return layer


def impulse_response(layer: MegaMultiDimensionDampedEma, length: int) -> torch.Tensor:
    """What the layer's recurrence makes, step by step, of a 1 in the middle: (2 * length - 1, d), lag 0 there too."""
    impulse = torch.zeros(1, 2 * length - 1, layer.residual_weight.numel(), dtype=torch.float64)
    impulse[0, length - 1] = 1.0
    with torch.no_grad():
        response, _ = ema(
            impulse,
            layer.coefficients(),
            bidirectional=layer.bidirectional,
            truncation=layer.truncation,
            backend="reference",
        )
    return response[0]


def seq2seq_config(**fields) -> MegaSeq2SeqConfig:
    sides = {name: tiny_config().to_dict() for name in ("encoder", "decoder")}
    sides["encoder"]["num_hidden_layers"] = 1
    return MegaSeq2SeqConfig(**sides, **fields)


MODELS = {
    "base": lambda: MegaModel(tiny_config(relative_positional_bias="simple", max_positions=32)),
    "masked": lambda: MegaForMaskedLM(tiny_config(final_norm=True, normalize_embeddings=True, embedding_size=8)),
    "untied": lambda: MegaForMaskedLM(tiny_config(tie_word_embeddings=False, use_normalized_ffn=False)),
    "causal": lambda: MegaForCausalLM(tiny_config(**CAUSAL, add_token_type_embeddings=True)),
    "clusters": lambda: MegaForCausalLM(
        tiny_config(**CAUSAL, adaptive_cutoffs=[10], adaptive_softmax=True, adaptive_input=True, hidden_size=16)
    ),
    "classifier": lambda: MegaForSequenceClassification(
        tiny_config(input_type="values", normalization_type="rmsnorm")
    ),
    "pairs": lambda: MegaForSequencePairClassification(tiny_config(classifier_head="blocks")),
    "choice": lambda: MegaForMultipleChoice(tiny_config()),
    "encoder-decoder": lambda: MegaForConditionalGeneration(seq2seq_config()),
    "apart": lambda: MegaSeq2SeqModel(seq2seq_config(share_embeddings=False)),
}


@pytest.mark.parametrize("name", MODELS)
def test_parameters_add_up(name: str) -> None:
    model = MODELS[name]()
    counts = count_parameters(model)
    assert sum(each.count for each in counts) == model.num_parameters()
    assert len({(each.side, each.layer, each.part) for each in counts}) == len(counts)


def test_parameters_are_counted_where_they_belong() -> None:
    model = MegaForConditionalGeneration(seq2seq_config())
    of = {(each.side, each.layer, each.part): each.count for each in count_parameters(model)}

    def size(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    block = model.model.decoder.layers[1]
    assert of["decoder", 2, "EMA"] == size(block.mega_layer.ema_gate)
    own = size(block.mega_layer) - size(block.mega_layer.ema_gate) - size(block.mega_layer.norm)
    assert of["decoder", 2, "gated attention"] == own
    assert of["decoder", 2, "cross-attention"] == size(block.cross_attn) - size(block.cross_attn.norm)
    assert of["decoder", 2, "feed-forward"] == size(block.nffn) - size(block.nffn.norm)
    norms = [part.norm for part in (block.mega_layer, block.cross_attn, block.nffn)]
    assert of["decoder", 2, "norms"] == sum(map(size, norms))
    assert of["encoder", None, "embeddings"] == size(model.get_input_embeddings())
    assert ("decoder", None, "embeddings") not in of  # shared
    assert not any(part == "head" for _, _, part in of)  # tied
    tanh_head = MegaForSequenceClassification(tiny_config())
    of = {(each.side, each.layer, each.part): each.count for each in count_parameters(tanh_head)}
    assert of["", None, "head"] == size(tanh_head.classifier)


@pytest.mark.parametrize(
    "fields",
    [{}, CAUSAL, {"truncation": 5}, {**CAUSAL, "truncation": 100}],
    ids=["both directions", "causal", "truncated", "causal, truncated"],
)
def test_kernels_are_the_layers_impulse_response(fields: dict) -> None:
    torch.manual_seed(0)
    model = MegaModel(tiny_config(**fields)).double()
    side = inspect_weights("", model)
    expected = impulse_response(model.layers[0].mega_layer.ema_gate, LENGTH)
    # an input at distance -3 is what the output 3 steps behind the impulse sees
    rows = LENGTH - 1 - side.kernel_distances
    torch.testing.assert_close(torch.tensor(side.layers[0].kernels.copy()), expected[rows].T, rtol=1e-9, atol=1e-12)
    assert list(side.kernel_distances) == sorted(side.kernel_distances)
    assert side.kernel_distances.max() == (0 if fields.get("is_decoder") else -side.kernel_distances.min())


def half_life_by_definition(kernel: np.ndarray, share: float) -> float:
    """Adds |k_0|, |k_1| ... one by one until a share of their sum is reached, by a part of the last one."""
    target, mass = share * sum(abs(kernel)), 0.0
    for lag, weight in enumerate(abs(kernel)):
        if mass + weight >= target:
            return lag + (target - mass) / weight
        mass += weight
    raise AssertionError("the mass is not reached")


@pytest.mark.parametrize("truncation", [None, 1, 3, 100])
@pytest.mark.parametrize("slowness", [0.0, 4.0])
def test_half_lives_are_those_of_the_impulse_response(slowness: float, truncation: int | None) -> None:
    length = 1500 if slowness and truncation is None else 200
    layer = ema_layer(slowness, truncation=truncation, hidden_size=4)
    forward, backward = exact_coefficients(layer)
    alone = copy.deepcopy(layer)
    for coefficients, other, step in ((forward, slice(4, 8), 1), (backward, slice(0, 4), -1)):
        with torch.no_grad():
            alone.kernel_projection_matrix.copy_(layer.kernel_projection_matrix)
            alone.kernel_projection_matrix[other] = 0.0
        kernels = impulse_response(alone, length).numpy()[length - 1 :: step]
        for share, times in zip((0.5, 0.95), mass_of_kernels(coefficients, (0.5, 0.95), truncation).times):
            expected = [half_life_by_definition(kernels[:, channel], share) for channel in range(4)]
            assert times.tolist() == pytest.approx(expected, rel=1e-4)


def test_half_life_of_one_exponential() -> None:
    """With a decay r, M(t) = (1 - r^t) / (1 - r) at whole t: the kernel's half-life is the exponential's."""
    half_lives = torch.tensor([[1.0], [7.0], [300.0], [20_000.0]], dtype=torch.float64)
    log_decay = math.log(0.5) / half_lives
    one = torch.ones_like(log_decay)
    coefficients = EMACoefficients(one, log_decay, one, log_decay.exp())
    torch.testing.assert_close(half_lives_of_components(coefficients), half_lives)
    times, total = mass_of_kernels(coefficients, (0.5, 0.75))
    assert times[0].tolist() == pytest.approx(half_lives.flatten().tolist(), rel=1e-9)
    assert times[1].tolist() == pytest.approx((2 * half_lives).flatten().tolist(), rel=1e-9)
    assert total.tolist() == pytest.approx((1 / (1 - log_decay.exp())).flatten().tolist(), rel=1e-9)


def test_memories_without_end_and_kernels_of_nothing() -> None:
    log_decay = torch.tensor([[-1e-9], [0.0], [-0.1], [-0.1]], dtype=torch.float64)
    weight = torch.tensor([[1.0], [1.0], [0.0], [1.0]], dtype=torch.float64)
    coefficients = EMACoefficients(weight, log_decay, torch.ones_like(weight), log_decay.exp())
    (times,) = mass_of_kernels(coefficients, (0.5,)).times
    assert math.isinf(times[0]) and math.isinf(times[1])
    assert math.isnan(times[2])
    assert times[3] < HORIZON


def test_lags_are_whole_and_denser_near_zero() -> None:
    lags = lags_by_octave(64)
    assert lags[:6].tolist() == [0, 1, 2, 3, 4, 5]
    assert lags[-1] == 64
    assert (np.diff(lags) > 0).all()
    assert lags_by_octave(1).tolist() == [0, 1]


@pytest.mark.parametrize("fields", [{}, CAUSAL, {"use_chunking": True, "chunk_size": 4}], ids=["", "causal", "chunks"])
@pytest.mark.parametrize("kind", ["simple", "rotary"])
def test_biases_are_what_is_added_to_scores(kind: str, fields: dict) -> None:
    """Of a layer whose queries and keys are 0, softmax weights are those of the bias alone."""
    torch.manual_seed(0)
    config = tiny_config(relative_positional_bias=kind, max_positions=6, initializer_range=1.0, **fields)
    model = MegaModel(config).eval()
    with torch.no_grad():
        layer = model.layers[0].mega_layer
        layer.qk_weight.zero_()
        layer.qk_bias.zero_()
        length = config.chunk_size if config.use_chunking else 6
        weights = model(torch.arange(length).unsqueeze(0) + 3, output_attentions=True).attentions[0][0, 0]
    bias = inspect_weights("", model).layers[0].position_bias
    assert bias.distances.tolist() == list(range(1 - length, 1 if config.is_decoder else length))
    of = dict(zip(bias.distances.tolist(), bias.values.tolist()))
    for query in range(length):
        seen = range(query + 1) if config.is_decoder else range(length)
        expected = torch.tensor([of[key - query] for key in seen]).softmax(0)
        torch.testing.assert_close(weights[query, : len(expected)], expected, rtol=1e-4, atol=1e-6)


def test_sides_have_names() -> None:
    assert list(sides_of(MODELS["masked"]())) == [""]
    assert list(sides_of(MODELS["encoder-decoder"]())) == ["encoder", "decoder"]
    with pytest.raises(ValueError, match="Linear contains no Mega"):
        sides_of(torch.nn.Linear(2, 2))


def test_weights_stay_as_they_are() -> None:
    model = MegaForMaskedLM(MegaConfig(**tiny_config().to_dict())).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inspect_weights("", model.mega)
    assert model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
