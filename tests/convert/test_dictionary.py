"""fairseq's dictionaries as tokenizers: the ids that fairseq's own rules give."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import save_language_model, save_sample
from transformers import AutoTokenizer

from mega_transformers.convert import ConversionError, convert_checkpoint
from mega_transformers.convert.dictionary import make_tokenizer, read_dictionary

WORDS = ["the", "ship", "Schiff@@", "<mask>", "\u2019", "日本", "a#b", "é", "<s>x", "##", "x\u00a0y"]


def encode_line(text: str, words: list[str]) -> list[int]:
    """What fairseq makes of a line, in its words: `Dictionary.encode_line` of `tokenize_line`."""
    ids = {word: index for index, word in enumerate(words)}
    return [ids.get(word, 3) for word in re.sub(r"\s+", " ", text).strip().split()]


@pytest.fixture(scope="module")
def dictionary(tmp_path_factory):
    path = tmp_path_factory.mktemp("dictionary") / "dict.txt"
    path.write_text("".join(f"{word} {100 - index}\n" for index, word in enumerate(WORDS)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def words(dictionary):
    return read_dictionary(dictionary)


def test_words(words):
    assert words == ["<s>", "<pad>", "</s>", "<unk>", *WORDS]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.one_of(st.sampled_from([*WORDS, "<s>", "</s>", "<pad>"]), st.text(max_size=4)), max_size=8), st.data()
)
def test_ids_are_those_of_fairseq(words, parts, data):
    separators = [
        data.draw(st.sampled_from([" ", "\n", "\t ", "\u3000", "\x1c", "\x85", "\u2028", ""])) for _ in parts
    ]
    text = "".join(part + separator for part, separator in zip(parts, separators))
    tokenizer = make_tokenizer(words, "<s>", None, closed=True, max_length=None)
    assert tokenizer(text, add_special_tokens=False).input_ids == encode_line(text, words)
    assert tokenizer(text).input_ids == [*encode_line(text, words), 2]


def test_language_model(dictionary, words, tmp_path):
    path = save_language_model(tmp_path / "a.pt", words=len(words))
    convert_checkpoint(path, tmp_path / "model", dictionaries=[dictionary])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert [tokenizer.convert_tokens_to_ids(word) for word in words] == list(range(len(words)))
    # fairseq goes on behind </s>, with which it also ends
    assert tokenizer("the  ship zzz").input_ids == [2, 4, 5, 3]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 2, 1)
    assert tokenizer.mask_token_id == words.index("<mask>")
    assert tokenizer.decode([4, 5, 2]) == "the ship </s>"
    assert tokenizer.model_max_length == 48  # of a simple bias without chunks


@pytest.fixture
def pair(tmp_path):
    """A translation model with vocabularies of one size."""
    save_sample("nmt_postnorm_shared_softmax", tmp_path / "a.pt")
    dictionaries = [tmp_path / f"dict.{language}.txt" for language in ("en", "de")]
    for path, start in zip(dictionaries, "ed"):
        path.write_text("".join(f"{start}{index} 5\n" for index in range(26)))
    return tmp_path / "a.pt", dictionaries


def test_translation(pair, tmp_path):
    path, (source, target) = pair
    convert_checkpoint(path, tmp_path / "one", dictionaries=[source])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "one")
    assert tokenizer(["e0 e3", "e1"], padding=True).input_ids == [[4, 7, 2], [5, 2, 1]]
    convert_checkpoint(path, tmp_path / "two", dictionaries=[source, target])
    other = AutoTokenizer.from_pretrained(tmp_path / "two" / "target_tokenizer")
    assert other("d2").input_ids == [6, 2]
    with pytest.raises(ConversionError, match="3 dictionaries are too many"):
        convert_checkpoint(path, tmp_path / "three", dictionaries=[source, target, target])


def test_dictionary_of_another_model(dictionary, tmp_path):
    path = save_language_model(tmp_path / "a.pt", words=31)
    with pytest.raises(ConversionError, match="makes 15 tokens, including fairseq's own 4, but the model has 31"):
        convert_checkpoint(path, tmp_path / "model", dictionaries=[dictionary])
    with pytest.raises(ConversionError, match="there is no dictionary"):
        convert_checkpoint(path, tmp_path / "model", dictionaries=[tmp_path / "none.txt"])
    with pytest.raises(ConversionError, match="2 dictionaries are too many"):
        convert_checkpoint(path, tmp_path / "model", dictionaries=[dictionary] * 2)
    with pytest.raises(ConversionError, match="a tokenizer or a dictionary, not both"):
        convert_checkpoint(path, tmp_path / "model", dictionaries=[dictionary], tokenizer=tmp_path)
    with pytest.raises(ConversionError, match="no tokenizer can be loaded"):
        convert_checkpoint(path, tmp_path / "model", tokenizer=tmp_path)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "line 1: expected a word and its count"),
        (b"the 5\nship\n", "line 2: expected a word and its count, as in 'ship 12', got 'ship'"),
        (b"the 5\nship many\n", "line 2: expected"),
        (b"the 5\n\nship 4\n", "line 2: expected"),
        (b"the 5\nthe 4\n", "line 2: 'the' occurs twice"),
        (b"<s> 4\n", "line 1: '<s>' occurs twice"),
        (b"the 4 #fairseq:overwrite\n", "line 1: expected"),
        (b"\xff\xfe 4\n", "is not valid UTF-8"),
    ],
)
def test_files_that_are_no_dictionary(content, message, tmp_path):
    path = tmp_path / "dict.txt"
    path.write_bytes(content)
    with pytest.raises(ConversionError, match=message):
        read_dictionary(path)
