"""One language on every supported release of transformers: the cache under both names, saved outputs, keywords."""

from __future__ import annotations

import inspect
import io
import logging
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny import CAUSAL, tiny_config
from transformers import DynamicCache, EncoderDecoderCache
from transformers.utils import TransformersKwargs

import mega_transformers
from mega_transformers import MegaForCausalLM, MegaForConditionalGeneration, MegaPreTrainedModel, MegaSeq2SeqConfig
from mega_transformers.models.mega import compat_mega

IDS = torch.tensor([[5, 6, 7, 8, 9]])
CLASSES = sorted(
    set(mega_transformers.__all__) - {"MegaConfig", "MegaSeq2SeqConfig", "MegaPreTrainedModel", "__version__"}
)


def causal() -> MegaForCausalLM:
    torch.manual_seed(0)
    return MegaForCausalLM(tiny_config(**CAUSAL)).eval()


def seq2seq() -> MegaForConditionalGeneration:
    torch.manual_seed(0)
    side = tiny_config().to_dict()
    return MegaForConditionalGeneration(MegaSeq2SeqConfig(encoder=side, decoder=side, pad_token_id=1)).eval()


def made(name: str) -> tuple[MegaPreTrainedModel, dict[str, torch.Tensor]]:
    """A small model of a class, and inputs for it."""
    cls = getattr(mega_transformers, name)
    if cls.config_class is MegaSeq2SeqConfig:
        model = seq2seq()
        return (model if isinstance(model, cls) else model.model), {"input_ids": IDS, "decoder_input_ids": IDS}
    fields: dict[str, Any] = CAUSAL if name == "MegaForCausalLM" else {}
    inputs = {"input_ids": IDS}
    if name == "MegaForAudioClassification":
        fields, inputs = {"input_type": "values"}, {"input_values": torch.rand(1, 5)}
    elif name == "MegaForMultipleChoice":
        inputs = {"input_ids": IDS.expand(1, 2, 5)}
    elif name == "MegaForSequencePairClassification":
        inputs = {"input_ids": IDS, "pair_input_ids": IDS}
    return cls(tiny_config(**fields)).eval(), inputs


@contextmanager
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# -- the cache under both names


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_causal_model_takes_the_cache_by_either_name(name: str) -> None:
    model = causal()
    with torch.no_grad():
        whole = model(IDS).logits
        cache = model(IDS[:, :3], use_cache=True).cache
        continued = model(IDS[:, 3:], **{name: cache})
    torch.testing.assert_close(continued.logits, whole[:, 3:], atol=1e-5, rtol=0)
    assert continued.cache is cache
    assert continued["cache"] is cache


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_text_to_text_model_takes_the_cache_by_either_name(name: str) -> None:
    model = seq2seq()
    with torch.no_grad():
        whole = model(IDS, decoder_input_ids=IDS).logits
        first = model(IDS, decoder_input_ids=IDS[:, :2], use_cache=True)
        continued = model(IDS, decoder_input_ids=IDS[:, 2:], **{name: first.cache})
    torch.testing.assert_close(continued.logits, whole[:, 2:], atol=1e-5, rtol=0)
    assert isinstance(continued.cache, EncoderDecoderCache)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
@pytest.mark.parametrize("make", [causal, seq2seq])
def test_generate_takes_the_cache_by_either_name(make: Any, name: str) -> None:
    model = make()
    expected = model.generate(IDS, max_new_tokens=4, do_sample=False, use_cache=False)
    deprecated = name != "cache" and compat_mega.CACHE_NAME == "cache"  # from 5.24 on, as in transformers
    with pytest.warns(FutureWarning, match="past_key_values") if deprecated else no_warning():
        own = DynamicCache(config=model.config.get_text_config(decoder=True))
        cache = EncoderDecoderCache(own, DynamicCache()) if make is seq2seq else own
        got = model.generate(IDS, max_new_tokens=4, do_sample=False, **{name: cache})
    assert got.tolist() == expected.tolist()
    assert cache.get_seq_length() == got.shape[1] - 1


def test_the_inputs_of_a_step_take_the_cache_by_either_name() -> None:
    model, cache = causal(), object()
    for name in ("cache", "past_key_values"):
        assert model.prepare_inputs_for_generation(IDS, **{name: cache})[compat_mega.CACHE_NAME] is cache


def test_both_names_at_once_are_refused() -> None:
    for model, more in ((causal(), {}), (seq2seq(), {"decoder_input_ids": IDS})):
        cache = DynamicCache()
        with pytest.raises(ValueError, match="cache and past_key_values are both given"):
            model(IDS, cache=cache, past_key_values=cache, **more)
        with pytest.raises(ValueError, match="cache and past_key_values are both given"):
            model.generate(IDS, cache=cache, past_key_values=cache)


def test_outputs_keep_their_order_and_survive_saving() -> None:
    for model, more, name in ((causal(), {}, "hidden_states"), (seq2seq(), {"decoder_input_ids": IDS}, None)):
        with torch.no_grad():
            outputs = model(IDS, use_cache=True, output_hidden_states=True, **more)
            plain = model(IDS, use_cache=True, output_hidden_states=True, return_dict=False, **more)
        assert torch.equal(plain[0], outputs.logits)
        assert type(plain[1]) is type(outputs.cache)  # right behind the logits, as in every release
        if name is not None:
            assert len(plain[2]) == len(outputs[name])
        if name is None:
            continue  # the cache of a text-to-text model
        again = pickle.loads(pickle.dumps(outputs))
        assert torch.equal(again.logits, outputs.logits)
        assert again.cache.get_seq_length() == outputs.cache.get_seq_length() == 5
        file = io.BytesIO()
        torch.save({key: value for key, value in outputs.items() if torch.is_tensor(value)}, file)
        file.seek(0)
        assert torch.equal(torch.load(file, weights_only=True)["logits"], outputs.logits)


def test_outputs_answer_to_the_old_name() -> None:
    outputs = causal()(IDS, use_cache=True)
    assert outputs.past_key_values is outputs.cache is outputs["past_key_values"]


def test_own_code_uses_no_deprecated_name(caplog: pytest.LogCaptureFixture) -> None:
    from transformers.utils import logging as transformers_logging

    transformers_logging.enable_propagation()
    caplog.set_level(logging.WARNING)
    try:
        with no_warning():
            for model, more in ((causal(), {}), (seq2seq(), {"decoder_input_ids": IDS})):
                model(IDS, use_cache=True, return_dict=False, **more)
                model.generate(IDS, max_new_tokens=3, do_sample=False)
                model.generate(IDS, max_new_tokens=3, num_beams=2, return_dict_in_generate=True)
    finally:
        transformers_logging.disable_propagation()
    assert not [record for record in caplog.records if "deprecat" in record.getMessage().lower()]


def test_gradient_checkpointing_refuses_a_cache_that_it_would_drop() -> None:
    model = causal().train()
    cache = model(IDS, use_cache=True).cache
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="gradient checkpointing"):
        model(IDS, cache=cache)
    with torch.no_grad():
        assert model(IDS, cache=cache).cache.get_seq_length() == 10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_average_is_made_in_float32_or_wider(dtype: torch.dtype) -> None:
    model = MegaForCausalLM._from_config(tiny_config(**CAUSAL), dtype=dtype)
    for name, parameter in model.named_parameters():
        wanted = torch.promote_types(dtype, torch.float32) if ".ema_gate." in name else dtype
        assert parameter.dtype == wanted, name


# -- keywords


@pytest.mark.parametrize("name", CLASSES)
def test_a_keyword_that_nobody_reads_is_refused(name: str) -> None:
    model, inputs = made(name)
    for wrong in ("attention_masks", "input_id", "casche", "frobnicate"):
        with pytest.raises(TypeError, match=f"{type(model).__name__}.*{wrong}"):
            model(**inputs, **{wrong: None})
    model(**inputs)


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("MegaForMaskedLM", "attention_masks", "attention_mask"),
        ("MegaForMaskedLM", "lables", "labels"),
        ("MegaForCausalLM", "kache", "cache"),
        ("MegaForCausalLM", "output_hidden_state", "output_hidden_states"),
        ("MegaForQuestionAnswering", "start_position", "start_positions"),
        ("MegaForConditionalGeneration", "decoder_inputs_ids", "decoder_input_ids"),
    ],
)
def test_the_nearest_keyword_is_named(name: str, wrong: str, right: str) -> None:
    model, inputs = made(name)
    with pytest.raises(TypeError, match=f"'{wrong}'; did you mean {right}"):
        model(**inputs, **{wrong: None})


@pytest.mark.parametrize("name", CLASSES)
def test_what_transformers_declares_for_all_models_is_accepted(name: str) -> None:
    """With values that ask for nothing special."""
    model, inputs = made(name)
    keywords = {key: None for key in TransformersKwargs.__annotations__}
    model(**inputs, **keywords, return_dict=True)
    model(**inputs, output_hidden_states=True, output_attentions=True, return_dict=False)


def test_a_refusal_comes_before_any_work() -> None:
    model = causal()
    cache = model(IDS, use_cache=True).cache
    state = cache.layers[0].state.clone()
    with pytest.raises(TypeError, match="attention_masks"):
        model(IDS, cache=cache, attention_masks=None)
    assert cache.get_seq_length() == 5
    assert torch.equal(cache.layers[0].state, state)


def test_a_direction_that_the_configuration_does_not_have_is_refused() -> None:
    causal()(IDS, is_causal=True)
    with pytest.raises(ValueError, match="is_causal=False"):
        causal()(IDS, is_causal=False)


def test_signatures_are_those_of_the_newest_release() -> None:
    for name in ("MegaModel", "MegaForCausalLM", "MegaSeq2SeqModel", "MegaForConditionalGeneration"):
        parameters = inspect.signature(getattr(mega_transformers, name).forward).parameters
        assert "cache" in parameters
        assert "past_key_values" not in parameters
