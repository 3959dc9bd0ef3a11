"""Labels, numbers and tags are those of each text alone, and of transformers' pipelines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import SIZES, tiny_config
from transformers import GPT2Config, GPT2ForSequenceClassification, pipeline

from mega_transformers import MegaForSequenceClassification, MegaForTokenClassification
from mega_transformers.inference.classification import MULTI, REGRESSION, SINGLE, Classifier, Tagger
from mega_transformers.training.tokenizer import byte_tokenizer

TEXTS = ["The whale, the ship.", "It is a truth.", "A speech must end, and the sailors' 2.5 ships (U.S.) obeyed it."]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer(64, add_prefix_space=True)


def config(tokenizer, **fields):
    torch.manual_seed(0)
    return tiny_config(**{**SIZES, "vocab_size": len(tokenizer), "initializer_range": 0.7}, **fields)


@pytest.mark.parametrize("fields", [{}, {"classifier_pooling": "mean", "use_chunking": True, "chunk_size": 16}])
@pytest.mark.parametrize(("problem", "labels"), [(SINGLE, 3), (None, 2), (MULTI, 3), (REGRESSION, 2), (None, 1)])
def test_scores_are_those_of_each_text_alone(tokenizer, problem: str | None, labels: int, fields: dict) -> None:
    model = MegaForSequenceClassification(config(tokenizer, num_labels=labels, problem_type=problem, **fields)).eval()
    reader = Classifier(model, tokenizer)
    texts = [(text,) for text in TEXTS] + [(TEXTS[0], TEXTS[1])]
    scores = np.concatenate([reader.scores(texts[:3]), reader.scores(texts[3:])])
    assert scores.dtype == np.float32 and scores.shape == (4, labels)
    for text, row in zip(texts, scores):
        with torch.no_grad():
            logits = model(**tokenizer(*text, return_tensors="pt")).logits[0]
        kind = reader.problem
        assert kind == (problem or {1: REGRESSION, 2: SINGLE}[labels])
        expected = {SINGLE: logits.softmax(-1), MULTI: logits.sigmoid(), REGRESSION: logits}[kind]
        np.testing.assert_allclose(row, expected, atol=1e-5)


def test_labels_are_the_pipelines(tokenizer) -> None:
    model = MegaForSequenceClassification(config(tokenizer, id2label={0: "a", 1: "b", 2: "c"})).eval()
    answers = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")(TEXTS, top_k=None)
    reader = Classifier(model, tokenizer)
    for row, answer in zip(reader.scores([(text,) for text in TEXTS]), answers):
        expected = {one["label"]: one["score"] for one in answer}
        assert dict(zip(reader.labels, row.tolist())) == pytest.approx(expected, abs=1e-5)


def test_models_without_padding_read_one_text_at_a_time(tokenizer) -> None:
    gpt2 = GPT2ForSequenceClassification(GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=1)).eval()
    assert Classifier(gpt2, tokenizer).max_rows == 1
    model = MegaForSequenceClassification(config(tokenizer)).eval()
    assert Classifier(model, tokenizer).max_rows is None


def test_tags_are_those_of_words_first_tokens(tokenizer) -> None:
    model = MegaForTokenClassification(config(tokenizer, num_labels=3)).eval()
    reader = Tagger(model, tokenizer)
    found = reader.tags([(text,) for text in TEXTS])
    words = " ".join(word.word for word in found[2])
    assert words == "A speech must end , and the sailors ' 2.5 ships ( U.S . ) obeyed it ."
    for text, some in zip(TEXTS, found):
        assert [text[word.start : word.end] for word in some] == [word.word for word in some]
        encoded = tokenizer([word.word for word in some], is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            scores = model(**encoded).logits[0].softmax(-1)
        for number, word in enumerate(some):
            first = scores[encoded.word_ids().index(number)]
            assert word.tag == model.config.id2label[int(first.argmax())]
            assert word.score == pytest.approx(first.max().item(), abs=1e-5)


def test_words_behind_the_cut_have_no_tag(tokenizer) -> None:
    model = MegaForTokenClassification(config(tokenizer)).eval()
    (words,) = Tagger(model, tokenizer, cut=12).tags([(TEXTS[0],)])
    assert [word.word for word in words] == ["The", "whale"]


def test_pairs_with_token_types(tmp_path: Path, tokenizer) -> None:
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "whale", "ship"]
    bert = BertTokenizer(vocab={name: index for index, name in enumerate(names)})
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = BertForSequenceClassification(BertConfig(vocab_size=8, initializer_range=0.9, **sizes)).eval()
    scores = Classifier(model, bert).scores([("the whale the ship", "ship"), ("ship", "whale")])
    with torch.no_grad():
        expected = model(**bert("ship", "whale", return_tensors="pt")).logits.softmax(-1)
    np.testing.assert_allclose(scores[1:], expected, atol=1e-5)
