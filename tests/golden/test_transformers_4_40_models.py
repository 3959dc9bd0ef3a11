"""Checkpoints of transformers 4.40.2 through the Auto classes: its numbers where it was right, else the right ones."""

from __future__ import annotations

import logging

import pytest
import torch
import transformers
from golden_io import (
    GRADIENT_TOLERANCE,
    TRANSFORMERS,
    Case,
    assert_close,
    assert_outputs,
    read_case,
)

from mega_transformers.models.mega.compat_mega import CACHE_NAME

AUTO = {
    "MegaModel": transformers.AutoModel,
    "MegaForCausalLM": transformers.AutoModelForCausalLM,
    "MegaForMaskedLM": transformers.AutoModelForMaskedLM,
    "MegaForSequenceClassification": transformers.AutoModelForSequenceClassification,
    "MegaForTokenClassification": transformers.AutoModelForTokenClassification,
    "MegaForMultipleChoice": transformers.AutoModelForMultipleChoice,
    "MegaForQuestionAnswering": transformers.AutoModelForQuestionAnswering,
}
CASES = sorted(path.parent.name for path in TRANSFORMERS.glob("*/io.safetensors"))
CROSS = [name for name in CASES if name.startswith("causal_lm_cross_")]
CAUSAL = [name for name in CASES if name.startswith("causal_lm_") and name not in CROSS]
ENCODERS = [name for name in CASES if not name.startswith(("causal_lm_", "encoder_decoder_"))]
RMSNORM = [name for name in CASES if "rmsnorm" in name]
WITH_GRADIENTS = ["masked_lm_default_tied", "seq_cls_single_label"]


def read_model_case(name: str, device: str) -> Case:
    return read_case(TRANSFORMERS / name / "io.safetensors", device)


def load_model(name: str, case: Case, device: str, **kwargs) -> transformers.PreTrainedModel:
    if not case.meta.get("add_pooling_layer", True):
        kwargs["add_pooling_layer"] = False
    model, info = AUTO[case.meta["cls"]].from_pretrained(TRANSFORMERS / name, output_loading_info=True, **kwargs)
    assert type(model).__name__ == case.meta["cls"]
    assert not any(info.values()), info  # nothing missing, unexpected or mismatched
    return model.to(device).eval()


def left_padded(case: Case) -> torch.Tensor | None:
    """(rows,) bool, True where a row starts with padding; None without a mask."""
    mask = case.input.get("attention_mask")
    return None if mask is None else mask.flatten(0, -2)[:, 0] == 0


def comparable(case: Case, use_chunking: bool) -> torch.Tensor | slice:
    """The rows in which 4.40.2 was right.

    It counted chunks from padding where that stands first, so that left padding changed what the real tokens see.
    """
    padded = left_padded(case)
    wrong = padded is not None and bool(padded.any()) and use_chunking
    return ~padded if wrong else slice(None)


def assert_model_outputs(outputs, reference: dict[str, torch.Tensor], case: Case, use_chunking: bool) -> None:
    """Compares everything in `reference`, whose lists are stored as `name.index`."""
    lengths = {}
    for key, expected in reference.items():
        name, _, index = key.partition(".")
        if name not in outputs:
            continue
        actual = outputs[name][int(index)] if index else outputs[name]
        rows = comparable(case, use_chunking) if expected.dim() else ...
        assert actual.shape == expected.shape
        assert_outputs(actual[rows], expected[rows], key)
        lengths[name] = lengths.get(name, 0) + 1
    for name in ("hidden_states", "attentions"):
        if name in outputs:
            assert len(outputs[name]) == lengths[name]


@pytest.mark.parametrize("name", ENCODERS)
def test_outputs(name, device, attn_implementation):
    case = read_model_case(name, device)
    model = load_model(name, case, device, attn_implementation=attn_implementation)
    reference = case.fixed or case.output
    with torch.no_grad():
        everything = model(**case.input, output_hidden_states=True, output_attentions=True)
        # without weights to return, other code runs
        outputs = model(**case.input)
    assert {key.partition(".")[0] for key in reference} == everything.keys()
    assert_model_outputs(everything, reference, case, model.config.use_chunking)
    assert_model_outputs(outputs, reference, case, model.config.use_chunking)


@pytest.mark.parametrize("name", [name for name in ENCODERS if name.endswith("_pad")])
def test_left_padding_changes_nothing(name, device, attn_implementation):
    """Where 4.40.2's numbers are not compared: rows padded on the left are computed as without their padding."""
    case = read_model_case(name, device)
    model = load_model(name, case, device, attn_implementation=attn_implementation)
    padded = left_padded(case)
    assert padded.any()
    with torch.no_grad():
        outputs = model(**case.input)
        for row in padded.nonzero().flatten().tolist():
            real = case.input["attention_mask"][row].bool()
            alone = model(**{key: value[row : row + 1, real] for key, value in case.input.items()})
            assert_outputs(outputs.last_hidden_state[row, real], alone.last_hidden_state[0], "last_hidden_state")


@pytest.mark.parametrize("name", RMSNORM)
def test_rmsnorm_that_does_not_normalise(name, device, attn_implementation):
    case = read_model_case(name, device)
    kwargs = {"attn_implementation": attn_implementation, "legacy_unnormalized_rmsnorm": True}
    model = load_model(name, case, device, **kwargs)
    with torch.no_grad():
        outputs = model(**case.input, output_hidden_states=True, output_attentions=True)
    assert_model_outputs(outputs, case.output, case, model.config.use_chunking)


@pytest.mark.parametrize("name", CAUSAL)
def test_hidden_states_of_a_causal_model(name, device, attn_implementation):
    """The trunk of a causal language model over whole rows, at real tokens."""
    case = read_model_case(name, device)
    kwargs = {"attn_implementation": attn_implementation, "add_pooling_layer": False}
    model = transformers.AutoModel.from_pretrained(TRANSFORMERS / name, **kwargs).to(device).eval()
    mask = case.input["attention_mask"]
    with torch.no_grad():
        outputs = model(
            case.input["input_ids"], attention_mask=mask, output_hidden_states=True, output_attentions=True
        )
    assert model.config.is_decoder
    assert len(outputs.hidden_states) == model.config.num_hidden_layers + 1
    for index, states in enumerate(outputs.hidden_states):
        reference = case.output[f"hidden_states.{index}"]
        assert_outputs(states[mask.bool()], reference[mask.bool()], f"hidden_states.{index}")
    for index, weights in enumerate(outputs.attentions):
        reference = case.output[f"attentions.{index}"]
        assert weights.shape == reference.shape
        real = mask.view(weights.shape[:3]).bool()
        assert_outputs(weights[real], reference[real], f"attentions.{index}")


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_language_model(name, device, attn_implementation):
    """Logits and loss of whole rows; 4.40.2 read padding behind the rows as we do."""
    case = read_model_case(name, device)
    model = load_model(name, case, device, attn_implementation=attn_implementation)
    ids, mask = case.input["input_ids"], case.input["attention_mask"]
    with torch.no_grad():
        outputs = model(ids, attention_mask=mask, labels=case.input["labels"])
        unpadded = model(case.input["nopad_input_ids"]).logits
    real = mask.bool()
    assert_outputs(outputs.logits[real], case.output["logits"][real], "logits")
    assert_outputs(outputs.loss, case.output["loss"], "loss")
    assert_outputs(unpadded, case.output["nopad_logits"], "nopad_logits")


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("sizes", [[1] * 16, [5, 1, 7, 3], [16], [9, 7]])
def test_cached_logits(name, sizes, device):
    """In pieces: what 4.40.2 gave token by token where it was right, else what it gives at once."""
    case = read_model_case(name, device)
    model = load_model(name, case, device)
    ids = case.input["nopad_input_ids"]
    cache, logits, start = None, [], 0
    with torch.no_grad():
        for size in sizes:
            outputs = model(ids[:, start : start + size], cache=cache, use_cache=True)
            cache, start = outputs.cache, start + size
            logits.append(outputs.logits)
    logits = torch.cat(logits, dim=1)
    assert_outputs(logits, case.output["nopad_logits"], "nopad_logits")
    if "cached_logits" in case.fixed:
        assert_outputs(logits, case.fixed["cached_logits"], "cached_logits")
    elif "cached_logits" in case.output and "truncation" not in name:
        assert_outputs(logits, case.output["cached_logits"], "cached_logits")


@pytest.mark.parametrize("name", CROSS)
def test_cross_attention(name, device, attn_implementation):
    """A decoder with an encoder's states, a row of them padded on the left: at once, and from its cache."""
    case = read_model_case(name, device)
    model = load_model(name, case, device, attn_implementation=attn_implementation)
    assert model.config.cross_attention_counts_padding
    source = {key: case.input[key] for key in ("encoder_hidden_states", "encoder_attention_mask")}
    ids = case.input["input_ids"]
    with torch.no_grad():
        everything = model(**case.input, output_hidden_states=True, output_attentions=True)
        outputs = model(**case.input)
        cache, logits = None, []
        for start, stop in ((0, 1), (1, 2), (2, 6), (6, 9)):
            step = model(ids[:, start:stop], cache=cache, use_cache=True, **(source if start == 0 else {}))
            cache = step.cache
            logits.append(step.logits)
    expected = dict(case.output)
    del expected["cached_logits"]
    weights = {key for key in expected if key.startswith("cross_attentions")}
    for key in weights:  # 4.40.2 had no dimension of heads there
        expected[key] = expected[key].unsqueeze(1)
    assert len(everything.cross_attentions) == len(weights) == model.config.num_hidden_layers
    assert_model_outputs(everything, expected, case, model.config.use_chunking)
    assert_outputs(outputs.logits, expected["logits"], "logits")
    assert_outputs(torch.cat(logits, dim=1), case.fixed["cached_logits"], "cached_logits")


@pytest.mark.parametrize("name", ["encoder_decoder_model"])
def test_generic_encoder_decoder(name, device, attn_implementation):
    """transformers' `EncoderDecoderModel` of two Megas: at once, and from its cache; a source padded on the left."""
    case = read_model_case(name, device)
    model, info = transformers.EncoderDecoderModel.from_pretrained(
        TRANSFORMERS / name, output_loading_info=True, attn_implementation=attn_implementation
    )
    # the encoder was saved without a pooler, which nothing here reads
    assert all("encoder.pooler" in key for key in info["missing_keys"]) and not info["unexpected_keys"]
    model = model.to(device).eval()
    ids = case.input["decoder_input_ids"]
    with torch.no_grad():
        outputs = model(**case.input)
        cache, logits = None, []
        for step in ids.split(1, dim=1):
            given = {**case.input, "decoder_input_ids": step}
            part = model(**given, **{CACHE_NAME: cache}, use_cache=True)  # a class of transformers, so its own name
            cache = part[CACHE_NAME]
            logits.append(part.logits)
    real = case.input["attention_mask"].bool()
    reference = case.output["encoder_last_hidden_state"]
    assert_outputs(outputs.encoder_last_hidden_state[real], reference[real], "encoder_last_hidden_state")
    assert_outputs(outputs.logits, case.output["logits"], "logits")
    assert_outputs(torch.cat(logits, dim=1), case.output["logits"], "logits from the cache")


def test_what_generate_gave(device):
    """Greedy and beam search of 4.40.2, where its cached steps were right."""
    name = "causal_lm_softmax_simple"
    case = read_model_case(name, device)
    model = load_model(name, case, device)
    for key, beams in (("generate_greedy", 1), ("generate_beam3", 3)):
        expected = case.output[key]
        prompt = case.input["nopad_input_ids"][:, :5]
        assert torch.equal(prompt, expected[:, :5])
        for use_cache in (True, False):
            got = model.generate(
                prompt, max_length=expected.shape[1], num_beams=beams, do_sample=False, use_cache=use_cache
            )
            assert torch.equal(got, expected), key


@pytest.mark.parametrize("name", [name for name in CAUSAL if "softmax_simple" in name or "relu2" in name])
def test_tuples_of_transformers_4(name, device):
    """What 4.40.2 returned as past_key_values is what ours holds, and can be gone on with."""
    case = read_model_case(name, device)
    model = load_model(name, case, device)
    ids = case.input["nopad_input_ids"]
    layers = range(model.config.num_hidden_layers)
    past = tuple(
        tuple(case.output[f"prefill5_past.{layer}.{part}"] for part in ("key", "value", "ema")) for layer in layers
    )
    with torch.no_grad():
        ours = model(ids[:, :5], use_cache=True).cache
        with pytest.warns(FutureWarning, match="DynamicCache"):
            outputs = model(ids[:, 5:9], past_key_values=past)
    for layer, (keys, values, state) in zip(ours.layers, past):
        assert_outputs(layer.keys[:, 0], keys, "keys")
        assert_outputs(layer.values[:, 0], values, "values")
        assert_outputs(layer.state, state, "state")
    assert_outputs(outputs.logits, case.output["nopad_logits"][:, 5:9], "logits")
    assert outputs.cache.get_seq_length() == 9


@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_gradients(name, device, attn_implementation):
    case = read_model_case(name, device)
    model = load_model(name, case, device, attn_implementation=attn_implementation)
    model(**case.input).loss.backward()
    parameters = dict(model.named_parameters())
    assert parameters.keys() == case.grad.keys()
    for key, parameter in parameters.items():
        assert_close(parameter.grad, case.grad[key], GRADIENT_TOLERANCE, f"gradient of {key}")


@pytest.fixture
def warnings_of_loading(caplog):
    """Loads a configuration and returns the messages logged; `warning_once` starts afresh."""

    def load(name: str, **kwargs) -> str:
        transformers.utils.logging.warning_once.cache_clear()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            AUTO[read_model_case(name, "cpu").meta["cls"]].from_pretrained(TRANSFORMERS / name, **kwargs)
        return caplog.text

    return load


@pytest.mark.parametrize("name", RMSNORM)
def test_rmsnorm_of_an_old_checkpoint_warns(name, warnings_of_loading):
    assert "legacy_unnormalized_rmsnorm" in warnings_of_loading(name)


@pytest.mark.parametrize("name", RMSNORM)
@pytest.mark.parametrize("legacy", [True, False])
def test_no_warning_once_the_user_has_decided(name, legacy, warnings_of_loading):
    assert "rmsnorm" not in warnings_of_loading(name, legacy_unnormalized_rmsnorm=legacy)


def test_no_warning_for_other_norms(warnings_of_loading):
    assert "rmsnorm" not in warnings_of_loading("masked_lm_default_tied")
