"""Tokenizers that a training makes."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from mega_transformers.errors import RecipeError
from mega_transformers.evaluation.decoding import encode_sources, encode_targets
from mega_transformers.evaluation.texts import encode_documents
from mega_transformers.training.tokenizer import (
    SPECIAL_TOKENS,
    byte_tokenizer,
    load_tokenizer,
    symbol_tokenizer,
    train_pair_tokenizer,
    train_tokenizer,
)


@pytest.fixture(scope="module")
def tokenizer(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer((data_dir / "train.txt").read_text().splitlines(), 280, 32).save_pretrained(folder)
    return load_tokenizer(folder)


def test_special_tokens_are_robertas(tokenizer):
    assert tokenizer.convert_ids_to_tokens(list(range(5))) == list(SPECIAL_TOKENS)
    assert (tokenizer.cls_token_id, tokenizer.pad_token_id, tokenizer.sep_token_id) == (0, 1, 2)
    assert len(tokenizer) == 280
    ids = tokenizer("The <mask> of")["input_ids"]
    assert ids[0] == 0 and ids[-1] == 2
    place = ids.index(tokenizer.mask_token_id)
    # the space before the mask belongs to the mask, the one after it to the next word
    assert tokenizer.decode(ids[1:place]) == "The"
    assert tokenizer.decode(ids[place + 1 : -1]) == " of"


@pytest.mark.parametrize(
    "text", ["the cat sat.", "  two  blanks ", "naïve 戦場 \U0001f600\tx\n", "<s> is <mask> text"]
)
def test_tokens_give_the_text_back(tokenizer, text):
    (ids,) = encode_documents(tokenizer, [text])
    assert tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False) == text
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_bytes_are_tokens(tmp_path):
    byte_tokenizer(32).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert len(tokenizer) == 256 + len(SPECIAL_TOKENS)
    text = "naïve 戦 x"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode()) + 2
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_texts_that_are_continued_have_no_end(tmp_path):
    train_tokenizer(["the cat sat"] * 3, 265, 32, add_eos=False).save_pretrained(tmp_path)
    ids = load_tokenizer(tmp_path)("the cat")["input_ids"]
    assert ids[0] == 0 and ids[-1] != 2


def test_too_little_text_is_told():
    with pytest.raises(RecipeError, match="vocab_size=5000, but the train texts give only"):
        train_tokenizer(["a b c"], 5000, 32)


def test_what_is_no_tokenizer_is_told(tmp_path):
    with pytest.raises(RecipeError, match=f"no tokenizer can be loaded from {tmp_path}"):
        load_tokenizer(tmp_path)


def test_a_bpe_of_pairs_reads_and_writes_any_text(tmp_path):
    texts = ["¿Qué hora es?", "The hour is late.", "It's what it is, Qué Qué The The hour hour is is"] * 3
    train_pair_tokenizer(texts, 280, 64).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert [tokenizer.convert_tokens_to_ids(token) for token in ("<s>", "<pad>", "</s>", "<unk>")] == [0, 1, 2, 3]
    for text in [*texts, "naïve 中文", "</s> <pad>", '"quoted" - (so)']:
        (ids,) = encode_targets(tokenizer, [text])
        assert ids[-1] == 2 and ids.count(2) == 1 and 3 not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    # a word at the start is the word behind a space
    assert encode_targets(tokenizer, ["The"])[0][:-1] == encode_targets(tokenizer, ["is The"])[0][-2:-1]
    with pytest.raises(RecipeError, match="vocab_size=5000, but the train texts give only"):
        train_pair_tokenizer(texts, 5000, 64)


def test_symbols_are_letters_and_runs_of_capitals(tmp_path):
    symbol_tokenizer(["cab's", "K AE B Z", "a", "AH"], 16).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    (ids,) = encode_sources(tokenizer, ["Cab's"])
    assert tokenizer.convert_ids_to_tokens(ids) == ["c", "a", "b", "'", "s", "</s>"]
    (ids,) = encode_targets(tokenizer, ["K AE B Z"])
    assert tokenizer.convert_ids_to_tokens(ids) == ["K", "AE", "B", "Z", "</s>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "K AE B Z"
    assert encode_sources(tokenizer, ["é3"]) == [[3, 3, 2]]
    assert len(tokenizer) == 4 + len("abcs'") + len(["K", "AE", "B", "Z", "AH"])
