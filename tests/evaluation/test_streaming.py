"""Texts of any length under causal models: carried state, independent pieces and sliding windows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertLMHeadModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from mega_transformers import MegaConfig, MegaForCausalLM
from mega_transformers.errors import RecipeError
from mega_transformers.evaluation import progress, streaming
from mega_transformers.evaluation.reading import Reading
from mega_transformers.evaluation.streaming import check_causal, read_tokens, score_text, score_tokens
from mega_transformers.evaluation.texts import TextSize

VOCABULARY = 40


def mega(**fields):
    config = MegaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        intermediate_size=24,
        nffn_hidden_size=24,
        shared_representation_size=8,
        ema_projection_size=4,
        is_decoder=True,
        bidirectional=False,
        initializer_range=0.5,
        **fields,
    )
    return MegaForCausalLM(config)


def gpt2():
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=128, initializer_range=0.5)
    )


def llama():
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            initializer_range=0.5,
        )
    )


MODELS = {
    "mega-chunks": lambda: mega(use_chunking=True, chunk_size=8),
    "mega-full": mega,
    "mega-simple": lambda: mega(use_chunking=True, chunk_size=8, relative_positional_bias="simple"),
    "gpt2": gpt2,
    "llama": llama,
}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param]().eval()


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(3, VOCABULARY, 102).astype(np.uint16)


def plain(model, tokens, begin=0, new=0, end=None):
    """Nats of tokens new + 1 to end under one forward pass, without a cache, over those from begin to end - 1."""
    ids = torch.from_numpy(tokens[begin:end].astype(np.int64))
    with torch.no_grad():
        logits = model(input_ids=ids[None, :-1], use_cache=False).logits[0]
    return F.cross_entropy(logits[new - begin :], ids[1 + new - begin :], reduction="sum").item()


@pytest.mark.parametrize("piece", [1, 7, 8, 64, 101, 500])
def test_full_is_one_forward_over_everything(model, tokens, piece):
    got = score_tokens(model, tokens, Reading("full", piece=piece))
    assert got == pytest.approx(plain(model, tokens), rel=1e-5)


def test_chunk_is_one_forward_for_each_piece(model, tokens):
    expected = sum(plain(model, tokens[begin : begin + 25]) for begin in range(0, 101, 24))
    assert score_tokens(model, tokens, Reading("chunk", window=24)) == pytest.approx(expected, rel=1e-5)
    # one piece that holds everything is everything
    assert score_tokens(model, tokens, Reading("chunk", window=101)) == pytest.approx(plain(model, tokens), rel=1e-5)


@pytest.mark.parametrize(("window", "stride"), [(24, 8), (24, 24), (24, 1), (30, 7)])
def test_sliding_scores_what_is_new_in_each_window(model, tokens, window, stride):
    expected = plain(model, tokens, 0, 0, window + 1)
    for begin in range(stride, 101, stride):
        new, end = begin + window - stride, min(begin + window, 101)
        if new < end:
            expected += plain(model, tokens, begin, new, end + 1)
    got = score_tokens(model, tokens, Reading("sliding", window=window, stride=stride))
    assert got == pytest.approx(expected, rel=1e-5)
    if stride == window:
        assert got == pytest.approx(score_tokens(model, tokens, Reading("chunk", window=window)), rel=1e-6)


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 100])
@pytest.mark.parametrize(
    "reading",
    [Reading("full", piece=8), Reading("chunk", window=8), *(Reading("sliding", 8, stride) for stride in (1, 3, 8))],
    ids=lambda reading: f"{reading.mode}-{reading.step}",
)
def test_every_input_predicts_once(reading, length):
    scored = []
    for begin, new, end in reading.spans(length):
        assert 0 <= begin <= new < end <= length
        assert end - begin <= 8
        if reading.mode == "sliding" and begin:
            assert new - begin == 8 - reading.step
        scored += range(new, end)
    assert scored == list(range(length))


def test_a_model_in_training_is_judged_without_dropout(tokens):
    torch.manual_seed(0)
    model = mega(use_chunking=True, chunk_size=8, hidden_dropout_prob=0.5).train()
    once, twice = (score_tokens(model, tokens, Reading("full", piece=20)) for _ in range(2))
    assert once == twice
    assert model.training


def storage(value):
    """Bytes of the different storages of all tensors in an object and in what it holds."""
    seen, sizes, open_values = set(), {}, [value]
    while open_values:
        value = open_values.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            memory = value.untyped_storage()
            sizes[memory.data_ptr()] = memory.nbytes()
        elif isinstance(value, (list, tuple)):
            open_values += value
        elif isinstance(value, dict):
            open_values += value.values()
        elif hasattr(value, "__dict__") and not isinstance(value, (type, torch.nn.Module, MegaConfig)):
            open_values += vars(value).values()
    return sum(sizes.values())


def test_long_texts_need_no_more_memory(monkeypatch):
    """What a model with chunks carries does not grow from 600 tokens to 6,000; what one without carries does."""
    made = []
    make_cache = streaming.DynamicCache
    monkeypatch.setattr(streaming, "DynamicCache", lambda **options: made.append(make_cache(**options)) or made[-1])
    generator = np.random.default_rng(0)

    def held(model, length):
        score_tokens(model, generator.integers(3, VOCABULARY, length + 1), Reading("full", piece=100))
        return storage(made[-1])

    chunked, whole = mega(use_chunking=True, chunk_size=8), mega()
    assert 0 < held(chunked, 6000) <= held(chunked, 600)
    assert held(whole, 6000) > 5 * held(whole, 600)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "whole"}, "mode='whole' is unknown; the known modes are full, chunk, sliding"),
        ({"window": 0}, "window=0 must be at least 1"),
        ({"piece": -1}, "piece=-1 must be at least 1"),
        ({"mode": "sliding", "window": 8, "stride": 9}, "stride=9 is above window=8"),
    ],
)
def test_readings_that_cannot_be(arguments, message):
    with pytest.raises(RecipeError, match=message):
        Reading(**arguments)


def test_limits_of_models_are_told(tokens):
    long = np.concatenate([tokens, tokens])
    with pytest.raises(RecipeError, match=r"203 tokens, but the model takes at most 128 .* sliding or chunk"):
        score_tokens(gpt2(), long, Reading("full"))
    with pytest.raises(RecipeError, match="window=150 is above the 128 tokens"):
        score_tokens(gpt2(), long, Reading("chunk", window=150))
    assert score_tokens(gpt2(), long, Reading("sliding", window=128)) > 0
    with pytest.raises(RecipeError, match="at most 64"):
        score_tokens(mega(relative_positional_bias="simple", max_positions=64), tokens, Reading("full"))
    with pytest.raises(RecipeError, match="1 tokens leave nothing to predict"):
        score_tokens(gpt2(), tokens[:1], Reading("full"))


def test_a_model_without_cache_cannot_carry(tokens, monkeypatch):
    class Forgetful(GPT2LMHeadModel):
        def forward(self, input_ids=None, use_cache=None):
            return super().forward(input_ids=input_ids)

    forgetful = Forgetful(gpt2().config)
    with pytest.raises(RecipeError, match="Forgetful takes no cache"):
        score_tokens(forgetful, tokens, Reading("full"))
    assert score_tokens(forgetful, tokens, Reading("chunk")) > 0


def test_models_that_see_the_future_are_found(model):
    check_causal(model)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    bert = BertLMHeadModel(BertConfig(vocab_size=VOCABULARY, initializer_range=0.5, **sizes)).eval()
    with pytest.raises(RecipeError, match="BertLMHeadModel sees the tokens that it predicts"):
        check_causal(bert)


def test_the_bar_only_appears_when_it_takes_long(tokens, monkeypatch, capsys):
    model = mega(use_chunking=True, chunk_size=8)
    score_tokens(model, tokens, Reading("chunk", window=8), "Quickly")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "SECONDS_WITHOUT_BAR", 0)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    score_tokens(model, tokens, Reading("chunk", window=8), "Slowly")
    captured = capsys.readouterr()
    assert "Slowly" in captured.err and captured.out == ""


class Words:
    """A tokenizer as `encode_documents` and `read_tokens` use it: one token a letter."""

    def __init__(self, **special):
        self.bos_token_id = self.eos_token_id = self.cls_token_id = self.sep_token_id = None
        vars(self).update(special)
        self.backend_tokenizer = self
        self.encode_special_tokens = False

    def __len__(self):
        return 128

    def encode_batch_fast(self, documents, add_special_tokens):
        assert not add_special_tokens and self.encode_special_tokens
        return [type("Encoding", (), {"ids": [ord(letter) for letter in document]}) for document in documents]


@pytest.mark.parametrize(
    ("special", "expected"),
    [
        ({"bos_token_id": 1, "eos_token_id": 2}, [1, 97, 2, 1, 98, 99, 2]),
        ({"cls_token_id": 1, "sep_token_id": 2}, [1, 97, 2, 1, 98, 99, 2]),
        ({"bos_token_id": 3, "eos_token_id": 3}, [3, 97, 3, 98, 99, 3]),
        ({"eos_token_id": 3}, [3, 97, 3, 98, 99, 3]),
        ({"bos_token_id": 3}, [3, 97, 3, 98, 99]),
        ({}, [97, 98, 99]),
    ],
)
def test_documents_as_one_line(special, expected):
    tokens, size = read_tokens(" a \n\nbc\n", Words(**special), [], "lines")
    assert tokens.tolist() == expected
    assert size == TextSize(characters=3, words=2, raw_words=2)
    with pytest.raises(RecipeError, match="holds no document"):
        read_tokens("\n \n", Words(**special), [], "lines")


def test_sizes_and_scores(model, tokens):
    size = TextSize()
    size.add(" = A heading = \n", ["A heading"])
    size.add("b\n", ["b"])
    assert size == TextSize(characters=10, words=3, raw_words=5)
    scores = size.scores(15 * math.log(2), 5)
    assert scores["cross_entropy"] == pytest.approx(3 * math.log(2))
    assert scores["perplexity"] == pytest.approx(8)
    assert scores["bits_per_character"] == pytest.approx(1.5)
    assert scores["word_perplexity"] == pytest.approx(32)
    assert scores["raw_word_perplexity"] == pytest.approx(8)
    assert TextSize(10_000, 1, 1).scores(1e4, 5)["word_perplexity"] == math.inf

    one = score_text(model, tokens, size, Reading("chunk"))
    both = one + one
    assert both.summary()["cross_entropy"] == pytest.approx(one.nats / 101)
    assert both.summary()["tokens"] == 202 and both.size.words == 6
    assert both.summary()["tokens_per_second"] == pytest.approx(one.tokens / one.seconds)
