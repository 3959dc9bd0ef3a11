from __future__ import annotations

import gzip

import numpy as np
import pytest

from mega_transformers.training import data
from mega_transformers.training.cleaning import documents_of, emphasis, unwrap, wikitext
from mega_transformers.training.recipe import Masking, Source
from mega_transformers.training.schema import RecipeError
from mega_transformers.training.tokenizer import SPECIAL_TOKENS, encode_documents, load_tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer((data_dir / "train.txt").read_text().splitlines(), 280, 32).save_pretrained(folder)
    return load_tokenizer(folder)


def test_wikitext_reads_as_written():
    raw = (
        " The \" role @-@ playing \" game sold 1 @,@ 000 copies ( or 1 @.@ 5 % ) ; it didn 't end , the boys ' plot . "
    )
    clean = "The \"role-playing\" game sold 1,000 copies (or 1.5%); it didn't end, the boys' plot."
    assert wikitext(raw).strip() == clean
    assert documents_of(" \n = = Game = = \n Text . \n", ["wikitext"], "lines") == ["Game", "Text."]


def test_unwrap_joins_lines_but_not_paragraphs():
    assert unwrap("one\ntwo\n\n\nthree\nfour\n") == "one two\n\nthree four"


def test_emphasis_goes_but_words_stay():
    assert (
        emphasis("between _them_ and snake_case_name * THE PSALM, * of")
        == "between them and snake_case_name THE PSALM, of"
    )


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ("whole", ["a\nb\n\nc\n\n\nd"]),
        ("lines", ["a", "b", "c", "d"]),
        ("paragraphs", ["a\nb", "c", "d"]),
        ("sections", ["a\nb\n\nc", "d"]),
    ],
)
def test_documents(documents, expected):
    assert documents_of("a\nb\n\nc\n\n\nd\n", [], documents) == expected


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


def test_the_text_must_give_the_vocabulary():
    with pytest.raises(RecipeError, match=r"tokenizer\.vocab_size=5000"):
        train_tokenizer(["too little"], 5000, 32)


def test_documents_are_bounded_and_cut_into_blocks(tokenizer):
    texts = ["the cat", "a mat and", "rain"]
    tokens = data.tokenize(texts, tokenizer, "x")
    expected = [id_ for ids in encode_documents(tokenizer, texts) for id_ in (0, *ids, 2)]
    assert tokens.tolist() == expected
    blocks = data.to_blocks(tokens, 4)
    assert blocks.shape == (len(expected) // 4, 4)
    assert blocks.reshape(-1).tolist() == expected[: 4 * len(blocks)]


def source(**fields):
    return Source(name="x", license="y", **fields)


def test_files_of_all_kinds(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffone\ntwo\n", encoding="utf-8")
    with gzip.open(tmp_path / "b.txt.gz", "wt") as file:
        file.write("three\r\nfour")
    found = list(data.iterate_documents([source(train=["*.txt", "b.*"], documents="lines")], "train", tmp_path))
    assert found == ["one", "two", "three", "four"]
    with pytest.raises(RecipeError, match=r"no file matches 'c\*'.*--data-dir"):
        data.find_files([source(train=["c*"])], tmp_path)
    (tmp_path / "cut.gz").write_bytes((tmp_path / "b.txt.gz").read_bytes()[:-12])
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for name in ("cut.gz", "latin.txt"):
        with pytest.raises(RecipeError, match=name):
            list(data.iterate_documents([source(train=[name])], "train", tmp_path))


def test_tokens_are_cached_until_the_text_changes(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("the cat sat")
    sources, cache = [source(train=["a.txt"])], tmp_path / "cache"
    first = data.cached_tokens(sources, "train", tokenizer, tmp_path, cache, "x")
    stored = next(cache.iterdir())
    before = stored.stat().st_mtime_ns
    again = data.cached_tokens(sources, "train", tokenizer, tmp_path, cache, "x")
    assert np.array_equal(first, again) and stored.stat().st_mtime_ns == before
    (tmp_path / "a.txt").write_text("the dog ran on")
    assert not np.array_equal(first, data.cached_tokens(sources, "train", tokenizer, tmp_path, cache, "x"))


def test_masks_are_the_blocks_own(tokenizer):
    from mega_transformers.training.masked_lm import MaskingCollator

    tokens = data.tokenize(["the cat sat on a mat and the dog ran"] * 40, tokenizer, "x")
    blocks = data.Blocks(data.to_blocks(tokens, 32), seed=5)
    collate = MaskingCollator(tokenizer, Masking(probability=0.5))
    together = collate([blocks[0], blocks[1], blocks[2]])
    alone = collate([blocks[1]])
    assert together["input_ids"][1].equal(alone["input_ids"][0])
    assert together["labels"][1].equal(alone["labels"][0])
    hidden = together["labels"] != -100
    original = np.stack([blocks[index]["input_ids"] for index in range(3)])
    assert (together["input_ids"][hidden] == tokenizer.mask_token_id).all()
    assert np.array_equal(together["labels"][hidden].numpy(), original[hidden.numpy()])
    assert not np.isin(together["labels"][hidden].numpy(), tokenizer.all_special_ids).any()
    blocks.set_epoch(1)
    assert not collate([blocks[1]])["labels"].equal(alone["labels"])
