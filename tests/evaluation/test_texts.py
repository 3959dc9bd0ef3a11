"""Cleaning, cutting and reading of texts."""

from __future__ import annotations

import gzip

import pytest

from mega_transformers.errors import RecipeError
from mega_transformers.evaluation import texts
from mega_transformers.evaluation.texts import check_names, documents_of, emphasis, read_text, unwrap, wikitext


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
    assert documents_of("a\r\nb\r\n\r\nc\r\n\r\n\r\nd", [], documents) == expected


def test_articles_begin_with_a_heading_of_the_first_level():
    text = "\n = One = \n\n a @-@ b \n\n = = Part = = \n\n c \n\n = Two = \n\n d \n"
    assert documents_of(text, ["wikitext"], "articles") == ["One\n\n a-b \n\nPart\n\n c", "Two\n\n d"]


def test_files_are_read_packed_and_with_a_byte_order_mark(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffcafé".encode())
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("café".encode()))
    assert read_text(tmp_path / "a.txt") == read_text(tmp_path / "a.txt.gz") == "café"
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"one" * 100)[:-12])
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for name in ("cut.gz", "latin.txt", "none.txt"):
        with pytest.raises(RecipeError, match=f"cannot read .*{name}"):
            read_text(tmp_path / name)


def test_unknown_names_are_answered_with_the_known_ones():
    check_names(["wikitext", "unwrap"], "sections")
    with pytest.raises(RecipeError, match="--clean soap is unknown; the known values are wikitext, unwrap, emphasis"):
        check_names(["soap"], "lines")
    with pytest.raises(RecipeError, match="--documents pages is unknown; the known values are whole, lines"):
        check_names([], "pages")


def test_batches_hold_about_so_many_characters(monkeypatch):
    monkeypatch.setattr(texts, "CHARACTERS_PER_BATCH", 5)
    monkeypatch.setattr(texts, "encode_documents", lambda tokenizer, documents: documents)
    assert list(texts.encoded_batches(iter(["aa", "bbb", "cccccc", "d"]), None)) == [["aa", "bbb"], ["cccccc"], ["d"]]
    assert list(texts.encoded_batches([], None)) == []
