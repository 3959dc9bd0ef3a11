"""The plain float64 evaluation against the numbers of the authors' code and of transformers 4.40.2."""

from __future__ import annotations

import json

import pytest
import torch
from samples import CLASSIFIERS, FOLDERS, LANGUAGE_MODELS, TRANSFORMERS, TRANSLATION, read_case, read_sample

from mega_transformers import MegaConfig
from mega_transformers.convert import reference_fairseq as fairseq
from mega_transformers.convert import transformers_folder
from mega_transformers.convert.arguments import Arguments
from mega_transformers.convert.fairseq import DEFAULTS
from mega_transformers.convert.reference import BlockSettings, Weights, convolve, moving_average
from mega_transformers.convert.verification import deviation

TOLERANCE = 2e-6  # theirs are float32


def assert_near(actual: torch.Tensor, expected: torch.Tensor, mask: torch.Tensor | None = None) -> None:
    assert actual.dtype == torch.float64
    assert deviation(actual, expected.double(), mask) < TOLERANCE


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_language_model(name):
    case = read_sample(name)
    args, weights = Arguments(case.meta["args"], "args", DEFAULTS), Weights(case.param)
    ids = case.input["ids"]
    hidden = fairseq.side(weights, args, "decoder", ids, ids != 1)
    assert_near(hidden, case.output["features_btd"])
    whole = "logits" if "logits" in case.output else "log_probs_full"
    assert_near(fairseq.language_model_head(weights, args, hidden), case.output[whole])
    ids = case.input["ids_nopad"]
    assert_near(fairseq.side(weights, args, "decoder", ids, ids >= 0), case.output["features_nopad_btd"])


@pytest.mark.parametrize("name", TRANSLATION)
def test_encoder_decoder(name):
    case = read_sample(name)
    args, weights = Arguments(case.meta["args"], "args", DEFAULTS), Weights(case.param)
    ids, target = case.input["src"], case.input["prev_output"]
    source = fairseq.side(weights, args, "encoder", ids, ids != 1)
    assert_near(source.transpose(0, 1), case.output["encoder_out"])
    hidden = fairseq.side(weights, args, "decoder", target, target != 1, source, ids != 1)
    assert_near(fairseq.language_model_head(weights, args, hidden), case.output["logits"])


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier(name):
    case = read_sample(name)
    args, weights = Arguments(case.meta["args"], "args", DEFAULTS), Weights(case.param)
    inputs = case.input["src_tokens"]
    real = torch.ones_like(inputs, dtype=torch.bool) if inputs.is_floating_point() else inputs != 1

    def vector(inputs: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        return fairseq.sentence(args, fairseq.classifier_trunk(weights, args, inputs, real), real)

    vectors = vector(inputs, real)
    assert_near(vectors, case.output["sentence_rep"])
    if "src_tokens1" in case.input:
        second = case.input["src_tokens1"]
        vectors = torch.cat([vector(second, second != 1), vectors], dim=-1)
    assert_near(fairseq.classify(weights, args, vectors), case.output["logits"])


@pytest.mark.parametrize("name", ["adaptive_tied", "adaptive_untied"])
def test_adaptive_input_and_softmax(name):
    case = read_sample(name)
    weights = Weights(case.param)
    clusters = list(weights.numbered("embed_tokens.embeddings."))
    assert_near(fairseq.adaptive_embed(clusters, case.input["ids"]), case.output["embed_btd"])
    log_probabilities = fairseq.adaptive_log_probabilities(
        weights.within("adaptive_softmax."), case.input["hidden_btd"].double(), shared_projections=False
    )
    assert_near(log_probabilities, case.output["log_prob_full"])


@pytest.mark.parametrize("name", FOLDERS)
def test_transformers_4_40_2(name):
    folder = TRANSFORMERS / name
    case = read_case(folder / "io.safetensors")
    plan = transformers_folder.plan_transformers(folder, lambda *_: None)
    inputs = dict(case.input)
    if "inputs_embeds" in inputs:
        inputs["input_ids"] = inputs.pop("inputs_embeds")
    shape = inputs["input_ids"].shape[: 3 if name.startswith("multiple") else 2]
    inputs.setdefault("attention_mask", torch.ones(shape, dtype=torch.int64))
    if "decoder_input_ids" in inputs:
        inputs.setdefault("decoder_attention_mask", torch.ones_like(inputs["decoder_input_ids"]))
    weights = Weights(plan.tensors)
    if name.startswith("multiple"):  # any number of choices, where random inputs have two
        flat = {key: tensor.flatten(0, 1) for key, tensor in inputs.items() if tensor.dim() == 3}
        hidden, _ = plan.evaluate_trunk(weights, flat)["last_hidden_state"]
        pooled = transformers_folder.reference.pooled(weights.within("mega."), hidden)
        logits = pooled @ weights("classifier.weight").T + weights("classifier.bias")
        assert_near(logits.view(shape[:2]), case.output["logits"])
        return
    results = plan.evaluate(weights, inputs)
    compared = set()
    for key, (actual, mask) in results.items():
        expected = case.fixed.get(key, case.output.get(key))
        if expected is None:
            continue
        # 4.40.2 counted chunks from padding on the left, and a pooler reads the first column
        rows = torch.ones(len(actual), dtype=torch.bool)
        if plan.inputs.borders:
            rows = inputs["attention_mask"][:, 0] == 1
        assert_near(actual[rows], expected[rows], None if mask is None else mask[rows])
        compared.add(key)
    assert compared


def test_moving_average_is_the_recurrence():
    """The transform and the kernel against a loop over time, padding and truncation included."""
    torch.manual_seed(0)
    d, n, length = 3, 2, 9
    names = {"delta": (2 * d, n, 1), "alpha": (2 * d, n, 1), "beta": (2 * d, n, 1), "gamma": (2 * d, n), "omega": (d,)}
    weights = Weights({name: torch.randn(shape).double() for name, shape in names.items()})
    x, real = torch.randn(2, length, d).double(), torch.ones(2, length, dtype=torch.bool)
    real[1, 6:] = False
    settings = BlockSettings("silu", "softmax", "layernorm", True, True, False, False, None, 4, averages_both=True)
    step = torch.sigmoid(weights("delta")).squeeze(-1)
    decay = 1 - step * torch.sigmoid(weights("alpha")).squeeze(-1)
    seen = x * real.unsqueeze(-1)
    averaged = torch.zeros_like(x)
    for t in range(length):
        for lag in range(4):
            for direction, other in ((slice(0, d), t - lag), (slice(d, 2 * d), t + lag)):
                if 0 <= other < length:
                    kernel = weights("gamma") / n**0.5 * step * weights("beta").squeeze(-1) * decay**lag
                    averaged[:, t] += kernel.sum(-1)[direction] * seen[:, other]
    expected = averaged + weights("omega") * x
    torch.testing.assert_close(moving_average(weights, x, real, settings), expected * torch.sigmoid(expected))


def test_convolution_does_not_wrap_around():
    x = torch.tensor([[[1.0, 0.0, 0.0, 2.0]]], dtype=torch.float64)
    kernel = torch.tensor([[1.0, 10.0, 100.0]], dtype=torch.float64)
    torch.testing.assert_close(convolve(x, kernel), torch.tensor([[[1.0, 10.0, 100.0, 2.0]]], dtype=torch.float64))


def test_defaults_are_those_of_4_40_2():
    """A configuration without a field means what 4.40.2 meant."""
    settings = transformers_folder.reference.settings_of(Arguments({}, "config.json", MegaConfig().to_dict()))
    assert settings.norm == "scalenorm" and settings.rotary and settings.averages_both and settings.chunk is None
    assert json.loads(json.dumps(MegaConfig().to_dict()))["relative_positional_bias"] == "rotary"
