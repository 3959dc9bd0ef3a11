"""Texts from files: whole, by line or by column, with a sentence for every mistake."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest

from mega_transformers.errors import RecipeError
from mega_transformers.inference.texts import Text, read_file


def written(path: Path, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.txt.gz"])
def test_a_text_file_is_one_text_or_one_per_line(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, "\ufeffOne.\r\n\r\n  Two\u2028two. \nThree.")
    assert read_file(path) == [Text(str(path), "One.\r\n\r\n  Two\u2028two. \nThree.", whole=True)]
    assert read_file(path, lines=True) == [
        Text(f"{path}:1", "One."),
        Text(f"{path}:3", "Two\u2028two."),
        Text(f"{path}:4", "Three."),
    ]


def test_a_short_table_does_not_limit_those_that_others_read(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    read_file(written(tmp_path / "a.csv", "text\na\n"))
    assert csv.field_size_limit() == before > 100_000


def test_tables(tmp_path: Path) -> None:
    long = "word " * 40_000  # longer than the csv module's own limit
    rows = written(tmp_path / "a.csv", f'id,text,other\n1,"two\nlines, ""quoted""",x\n\n2,{long},y\n')
    assert read_file(rows) == [Text(f"{rows}:2", 'two\nlines, "quoted"'), Text(f"{rows}:5", long)]
    assert read_file(rows, ["other", "id"]) == [Text(f"{rows}:2", "x", "1"), Text(f"{rows}:5", "y", "2")]
    bare = written(tmp_path / "b.tsv.gz", 'a\t"b\nc\t"d"\n')
    assert read_file(bare, ["2"]) == [Text(f"{bare}:1", '"b'), Text(f"{bare}:2", '"d"')]
    objects = [{"text": "null", "text_pair": "b"}, {"text": "é\u2028", "text_pair": "d"}]
    lines = written(tmp_path / "c.jsonl", "\n".join(["", *(json.dumps(one, ensure_ascii=False) for one in objects)]))
    assert read_file(lines, ["text", "text_pair"]) == [
        Text(f"{lines}:2", "null", "b"),
        Text(f"{lines}:3", "é\u2028", "d"),
    ]
    assert read_file(lines)[1] == Text(f"{lines}:3", "é\u2028")


def test_pairs_of_plain_text_are_separated_by_a_tab(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", "a b\t c\n\nd\te\n")
    assert read_file(path, ["text", "text_pair"]) == [Text(f"{path}:1", "a b", "c"), Text(f"{path}:3", "d", "e")]


@pytest.mark.parametrize(
    ("name", "content", "columns", "message"),
    [
        ("a.txt", " \n", ["text"], "a.txt holds no text"),
        ("a.txt", b"caf\xe9", ["text"], "cannot read .*a.txt: 'utf-8' codec"),
        ("a.txt.gz", "", ["text"], "holds no text"),
        ("a.txt", "a\n", ["text", "text_pair"], "a.txt:1: expected two texts separated by a tab, got 1"),
        ("a.txt", "a\tb\tc\n", ["text", "text_pair"], "got 3"),
        ("a.csv", "", ["text"], "there is no column 'text'; there are none"),
        ("a.csv", "text\n", ["text"], "holds no text"),
        ("a.csv", "id,body\n1,a\n", ["text"], "a.csv: there is no column 'text'; there are 'id', 'body'"),
        ("a.csv", "id,texts\n1,a\n", ["text"], "did you mean texts?"),
        ("a.csv", "id,text\n1,a\n2, \n", ["text"], "a.csv, line 3: the column 'text' is empty"),
        ("a.csv", "id,text\n1\n", ["text"], "line 2: there is no column 2; the row has 1"),
        ("a.csv", "1,a\n", ["3"], "line 1: there is no column 3; the row has 2"),
        ("a.csv", 'text\n"a\nb', ["text"], "line 3: unexpected end of data"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', ["text"], "a.jsonl, line 2: not valid JSON"),
        ("a.jsonl", '["a"]\n', ["text"], "line 1: expected an object such as"),
        ("a.jsonl", '{"text": 3}\n', ["text"], "line 1: the column 'text' holds 3, which is not a text"),
        ("a.jsonl", '{"txt": "a"}\n', ["text"], "line 1: there is no column 'text'; did you mean txt?"),
    ],
)
def test_mistakes(tmp_path: Path, name: str, content: str | bytes, columns: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read_file(written(tmp_path / name, content), columns)


def test_files_that_are_not_there_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="No such file"):
        read_file(tmp_path / "none.txt")
    damaged = tmp_path / "a.txt.gz"
    damaged.write_bytes(gzip.compress(b"a text" * 100)[:-9])
    with pytest.raises(RecipeError, match="cannot read"):
        read_file(damaged)
