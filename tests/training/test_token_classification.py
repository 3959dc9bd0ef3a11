from __future__ import annotations

import json
import random

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from task_data import FILLING, MODEL, WORDS, recipe, train, train_bundled, write_rows
from transformers import AutoTokenizer, EvalPrediction, pipeline

from mega_transformers import MegaConfig, MegaForMaskedLM
from mega_transformers.errors import RecipeError
from mega_transformers.training.evaluate import evaluate_model
from mega_transformers.training.recipe import recipe_of
from mega_transformers.training.tasks import task_of
from mega_transformers.training.tokenizer import train_tokenizer

TASK = "token-classification"
ROWS = {"train": "train.jsonl", "test": "test.jsonl"}


def sentences(count, seed=0):
    """Words of `WORDS` are entities of one or two words, others are none."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        tokens, tags = [], []
        for _ in range(rng.randint(3, 6)):
            if rng.random() < 0.4:
                kind, size = rng.choice([*WORDS]), rng.randint(1, 2)
                tokens += [rng.choice(WORDS[kind]) for _ in range(size)]
                tags += [f"B-{kind}", f"I-{kind}"][:size]
            tokens.append(rng.choice(FILLING))
            tags.append("O")
        rows.append({"tokens": tokens, "tags": tags})
    return rows


def prepared(values, folder):
    task = task_of(recipe_of(values), folder)
    tokenizer = task.train_tokenizer()
    task.check_tokenizer(tokenizer)
    task.prepare(tokenizer)
    return task, tokenizer


def test_toy_is_learnt_served_and_evaluated_again(tmp_path):
    write_rows(tmp_path / "train.jsonl", sentences(400))
    write_rows(tmp_path / "test.jsonl", sentences(100, 1))
    training = {"max_steps": 150, "learning_rate": 0.02}
    values = recipe(TASK, ROWS, sequence_length=64, tokenizer={"vocab_size": 320}, training=training)
    results, _ = train(values, tmp_path)
    found = results["scores"]["test"]["model"]
    assert found["accuracy"] > 0.95 and found["f1"] > 0.95
    assert found["words"] == sum(len(row["tags"]) for row in sentences(100, 1))
    folder = tmp_path / "run" / "model"
    model = pipeline("token-classification", model=str(folder), aggregation_strategy="first")
    groups = [(one["entity_group"], one["word"].strip()) for one in model("the ship wave of plough and kite")]
    assert groups == [("sea", "ship wave"), ("land", "plough"), ("air", "kite")]
    changed = recipe_of(values).model_copy(update={"tokenizer": None, "model": {"checkpoint": str(folder)}})
    assert evaluate_model(changed, tmp_path)["scores"]["test"]["model"] == pytest.approx(found, abs=0.01)
    assert "F1 of entities is seqeval's" in (folder / "README.md").read_text()


def test_tags_stand_at_the_first_token_of_a_word_and_long_sentences_are_cut(tmp_path):
    words = ["abc", "de", "<s>", "f"]
    write_rows(tmp_path / "train.jsonl", [{"tokens": words, "tags": ["B-X", "O", "I-X", "O"]}])
    task, tokenizer = prepared(recipe(TASK, {"train": "train.jsonl"}), tmp_path)
    row = task.rows["train"][0]
    # a space and the letters of every word, each one token
    assert tokenizer.decode(row["input_ids"]) == "<s> abc de <s> f</s>"
    none = -100
    # tags in the alphabet's order: B-X, I-X, O
    assert task.labels == ["B-X", "I-X", "O"]
    assert row["labels"] == [none, 0, none, none, none, 2, none, none, 1, none, none, none, 2, none, none]
    assert task.notes == []
    task, _ = prepared(recipe(TASK, {"train": "train.jsonl"}, sequence_length=8), tmp_path)
    assert task.rows["train"][0]["labels"] == [none, 0, none, none, none, 2, none, none]
    assert task.notes == ["train: 1 rows are cut to sequence_length=8 tokens"]


def test_words_of_any_tokenizer_stand_behind_spaces(tmp_path):
    """A masked language model's tokenizer would take each word for the start of a text."""
    write_rows(tmp_path / "train.jsonl", sentences(20))
    tokenizer = train_tokenizer([" ".join(row["tokens"]) for row in sentences(200)], 300, 32)
    tokenizer.save_pretrained(tmp_path / "base")
    MegaForMaskedLM(MegaConfig(vocab_size=len(tokenizer), **MODEL)).save_pretrained(tmp_path / "base")
    values = recipe(TASK, {"train": "train.jsonl"}, tokenizer=None)
    values["model"] = {"checkpoint": str(tmp_path / "base")}
    train(values, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    apart = loaded(["old", "ship"], is_split_into_words=True)["input_ids"]
    assert apart == tokenizer(" old ship")["input_ids"] == loaded("old ship")["input_ids"]


def test_class_labels(tmp_path):
    for name, names in (("train", ["O", "B-X"]), ("test", ["B-X", "O"])):
        features = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=names))})
        rows = [{"tokens": ["a", "b"], "tags": ["O", "B-X"]}]
        Dataset.from_list(rows, features=features).to_parquet(tmp_path / f"{name}.parquet")
    task, _ = prepared(recipe(TASK, {"train": "train.parquet", "test": "test.parquet"}), tmp_path)
    assert task.labels == ["O", "B-X"]
    for role in ("train", "test"):
        assert [tag for tag in task.rows[role][0]["labels"] if tag >= 0] == [0, 1]


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, ["test row 2", "2 tokens, but 1 tags"]),
        ({"tokens": ["a"], "tags": ["B-Y"]}, ["test row 2", "'B-Y'", "B-X, O"]),
        ({"tokens": ["a"], "tags": [None]}, ["test row 2", "None"]),
    ],
)
def test_wrong_rows_are_named(tmp_path, row, parts):
    good = {"tokens": ["a", "b"], "tags": ["O", "B-X"]}
    write_rows(tmp_path / "train.jsonl", [good])
    write_rows(tmp_path / "test.jsonl", [good, row])
    with pytest.raises(RecipeError) as error:
        prepared(recipe(TASK, ROWS), tmp_path)
    for part in parts:
        assert part in str(error.value)


def test_metrics_by_hand(tmp_path):
    tags = ["B-X", "B-Y", "I-X", "I-Y", "O"]
    write_rows(tmp_path / "train.jsonl", [{"tokens": list("abcde"), "tags": tags}])
    task, _ = prepared(recipe(TASK, {"train": "train.jsonl"}), tmp_path)
    number = {tag: index for index, tag in enumerate(task.labels)}
    # entities: X over 0-1, Y at 3; and X at 0, of which are found: X over 0-1, Y over 3-4 (wrong end), none
    wanted = [["B-X", "I-X", "O", "B-Y", "O"], ["B-X", "O"]]
    guesses = [["B-X", "I-X", "O", "B-Y", "I-Y"], ["O", "O"]]
    labels, logits = np.full((2, 7), -100), np.zeros((2, 7, 5))
    for row in range(2):
        for place, (tag, guess) in enumerate(zip(wanted[row], guesses[row]), start=1):
            labels[row, place] = number[tag]
            logits[row, place, number[guess]] = 1
    found = task._metrics(EvalPrediction(logits, labels))
    assert found["words"] == 7 and found["accuracy"] == pytest.approx(5 / 7)
    assert found["precision"] == pytest.approx(1 / 2) and found["recall"] == pytest.approx(1 / 3)
    assert found["f1"] == pytest.approx(0.4)
    # tags that mark no entities have no entity scores
    task.labels = ["ADJ", "DET", "NOUN", "VERB", "X"]
    assert set(task._metrics(EvalPrediction(logits, labels))) == {"loss", "accuracy", "f1_macro", "words"}


def test_no_sentence_has_two_roles(tmp_path):
    rows = sentences(60)
    write_rows(
        tmp_path / "rows.jsonl", [*rows, *[{**row, "tokens": [w.upper() for w in row["tokens"]]} for row in rows]]
    )
    split = {"validation": 10, "test": 10}
    task, _ = prepared(recipe(TASK, {"divide": "rows.jsonl"}, split=split, sequence_length=64), tmp_path)
    assert {role: len(some) for role, some in task.rows.items()} == {"train": 80, "validation": 20, "test": 20}


def test_config_of_the_run(tmp_path):
    write_rows(tmp_path / "train.jsonl", sentences(20))
    train(recipe(TASK, {"train": "train.jsonl"}), tmp_path)
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["architectures"] == ["MegaForTokenClassification"]
    assert list(config["id2label"].values()) == sorted({tag for row in sentences(20) for tag in row["tags"]})


def test_bundled_recipe(tmp_path):
    assert train_bundled("tag-smoke", tmp_path)["scores"]["test"]["model"]["words"] > 1000
