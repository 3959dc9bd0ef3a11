"""A text's vector is that of the text alone: pooled, in a batch, in pieces, by sentence-transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import CAUSAL, SIZES, tiny_config
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, GPT2Config, GPT2Model

from mega_transformers import MegaModel, long_inputs
from mega_transformers.inference import embedding
from mega_transformers.inference.embedding import POOLINGS, SentenceEncoder, TokenEncoder, normalized, pool

TEXTS = [
    "A whale.",
    "The captain of the ship gave an order, and the sailors obeyed.",
    "Speech",
    "It is </s> a truth universally acknowledged that a speech must end. " * 3,
]


def encoder(folder: Path, pooling: str | None = None, cut: int | None = None) -> TokenEncoder:
    return TokenEncoder(AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder), cut, pooling)


def by_hand(folder: Path, text: str, pooling: str) -> np.ndarray:
    """Of a forward pass with one text; what looks like a special token is text."""
    ids = AutoTokenizer.from_pretrained(folder)(text, split_special_tokens=True, return_tensors="pt").input_ids
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder).eval()(ids)[0][0]
    of = {"mean": states.mean(0), "first": states[0], "last": states[-1], "max": states.max(0).values}
    return of[pooling].numpy()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_in_a_batch_are_those_of_each_text_alone(
    tiny_checkpoint: Path, tiny_causal_checkpoint: Path, pooling: str
) -> None:
    for folder in (tiny_checkpoint, tiny_causal_checkpoint):
        vectors = encoder(folder, pooling).vectors([(text,) for text in TEXTS])
        assert vectors.dtype == np.float32 and vectors.shape == (4, 32)
        for text, vector in zip(TEXTS, vectors):
            expected = by_hand(folder, text, pooling)
            np.testing.assert_allclose(vector, expected, atol=1e-5 * np.abs(expected).max())


def test_pooling_without_a_choice(tiny_checkpoint: Path, tiny_causal_checkpoint: Path) -> None:
    assert encoder(tiny_checkpoint).pooling == "mean"
    assert encoder(tiny_causal_checkpoint).pooling == "last"
    sizes = {"vocab_size": 20, "initializer_range": 0.5}
    bert = BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, **sizes)
    )
    assert TokenEncoder(bert.eval(), None).pooling == "mean"
    assert TokenEncoder(GPT2Model(GPT2Config(n_embd=8, n_layer=1, n_head=1, **sizes)).eval(), None).pooling == "last"


def test_padding_counts_for_no_pooling() -> None:
    states = torch.randn(2, 5, 3, dtype=torch.bfloat16)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]])
    for pooling in POOLINGS:
        vectors = pool(states, mask, pooling)
        assert vectors.dtype == torch.float32
        for row, real in enumerate((slice(0, 3), slice(1, 5))):
            alone = pool(states[row : row + 1, real], mask[row : row + 1, real], pooling)
            torch.testing.assert_close(vectors[row], alone[0])


@pytest.mark.parametrize("chunks", [{"use_chunking": True, "chunk_size": 8}, {}])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_causal_model_reads_a_long_text_in_pieces(
    tiny_causal_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, pooling: str, chunks: dict
) -> None:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_checkpoint)
    model = MegaModel(tiny_config(**CAUSAL, **chunks, **{**SIZES, "vocab_size": len(tokenizer)})).eval()
    reader = TokenEncoder(model, tokenizer, pooling=pooling)
    text, told, lengths = " ".join(TEXTS) * 3, [], []
    whole = reader.vectors([(text,)])
    model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    monkeypatch.setattr(embedding, "PIECE", 37)
    pieces = reader.vectors([(text,)], told.append)
    assert max(lengths) == 37 and sum(lengths) == sum(told) == reader.count([(text,)])[0] > 300
    np.testing.assert_allclose(pieces, whole, atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_an_encoder_with_chunks_reads_a_long_text_layer_by_layer(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, pooling: str
) -> None:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    chunks = {"use_chunking": True, "chunk_size": 8}
    model = MegaModel(tiny_config(**{**SIZES, **chunks, "bidirectional": True, "vocab_size": len(tokenizer)})).eval()
    reader = TokenEncoder(model, tokenizer, pooling=pooling)
    text, told = " ".join(TEXTS) * 3, []
    whole = reader.vectors([(text,)])
    monkeypatch.setattr(embedding, "PIECE", 40)
    monkeypatch.setattr(long_inputs, "PIECE", 64)
    model.forward = lambda **_: pytest.fail("read as a whole")
    pieces = reader.vectors([(text,)], told.append)
    assert sum(told) == reader.count([(text,)])[0] > 300
    np.testing.assert_allclose(pieces, whole, atol=1e-5)


def test_cut_texts_are_those_without_their_ends(tiny_checkpoint: Path) -> None:
    cut = encoder(tiny_checkpoint, cut=5)
    assert cut.count([(TEXTS[1],)])[0] > 5
    shorter = AutoTokenizer.from_pretrained(tiny_checkpoint).decode(
        cut.encoded([(TEXTS[1],)])[0]["input_ids"][0][1:-1]
    )
    assert TEXTS[1].startswith(shorter)
    np.testing.assert_allclose(cut.vectors([(TEXTS[1],)]), encoder(tiny_checkpoint).vectors([(shorter,)]), atol=1e-6)


def test_sentence_transformers_folders(tiny_checkpoint: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    models = pytest.importorskip("sentence_transformers.models")
    transformer = models.Transformer(str(tiny_checkpoint), max_seq_length=40)
    model = sentence_transformers.SentenceTransformer(
        modules=[transformer, models.Pooling(32, pooling_mode="max"), models.Normalize()], device="cpu"
    )
    expected = model.encode(TEXTS)
    reader = SentenceEncoder(model)
    assert reader.limit == 40 and reader.capacity is None
    texts = [(text,) for text in TEXTS]
    assert reader.count(texts)[3] > 40
    np.testing.assert_allclose(reader.vectors(texts), expected, atol=1e-5)
    whole = SentenceEncoder(model, cut=200)
    assert np.abs(whole.vectors(texts) - expected).max(axis=1).round(3).tolist()[:3] == [0, 0, 0]
    by_max = normalized(encoder(tiny_checkpoint, "max").vectors(texts[:3]))
    np.testing.assert_allclose(whole.vectors(texts)[:3], by_max, atol=1e-5)


def test_vectors_of_length_1() -> None:
    vectors = np.array([[3, 4], [0, 0]], dtype=np.float32)
    np.testing.assert_allclose(normalized(vectors), [[0.6, 0.8], [0, 0]], atol=1e-7)
