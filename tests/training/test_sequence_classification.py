from __future__ import annotations

import csv
import gzip
import io
import json
import re
import wave

import numpy as np
import pytest
import torch
from datasets import Audio, ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Picture
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score, f1_score, mean_squared_error
from task_data import MODEL, WORDS, recipe, texts, train, train_bundled, write_rows
from transformers import AutoModelForSequenceClassification, AutoTokenizer, EvalPrediction, pipeline

from mega_transformers import MegaConfig, MegaForMaskedLM, MegaForSequenceClassification
from mega_transformers.errors import RecipeError
from mega_transformers.training import data
from mega_transformers.training.evaluate import evaluate_model
from mega_transformers.training.recipe import Normalization, recipe_of
from mega_transformers.training.tasks import task_of
from mega_transformers.training.tasks.sequence_classification import Collator
from mega_transformers.training.tokenizer import byte_tokenizer, train_tokenizer

TASK = "sequence-classification"


def prepared(values, folder):
    """The task of a recipe with its rows, and its tokenizer."""
    task = task_of(recipe_of(values), folder)
    tokenizer = None
    if task.recipe.input == "tokens":
        tokenizer = task.train_tokenizer()
    task.prepare(tokenizer)
    return task, tokenizer


def fails(values, folder, *parts):
    with pytest.raises(RecipeError) as error:
        prepared(values, folder)
    for part in parts:
        assert part in str(error.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`train.jsonl` and `test.jsonl`: texts of three classes."""
    path = tmp_path_factory.mktemp("rows")
    write_rows(path / "train.jsonl", texts(400))
    write_rows(path / "test.jsonl", texts(100, 1))
    return path


ROWS = {"train": "train.jsonl", "test": "test.jsonl"}


@pytest.fixture(scope="module")
def finished(folder):
    values = recipe(TASK, ROWS, tokenizer={"vocab_size": 300}, training={"max_steps": 60})
    return values, *train(values, folder)


def test_toy_is_learnt_and_served(folder, finished):
    _, results, text = finished
    assert results["scores"]["test"]["model"]["accuracy"] > 0.9
    assert results["scores"]["test"]["most frequent class"]["accuracy"] < 0.5
    assert "rows are cut" not in text
    config = json.loads((folder / "run" / "model" / "config.json").read_text())
    assert config["problem_type"] == "single_label_classification"
    assert config["id2label"] == {"0": "air", "1": "land", "2": "sea"}
    model = pipeline("text-classification", model=str(folder / "run" / "model"))
    assert [model(f"the old {word} of")[0]["label"] for word in ("ship", "horse", "kite")] == ["sea", "land", "air"]
    card = (folder / "run" / "model" / "README.md").read_text()
    assert 'pipeline("text-classification"' in card and "Labels: air, land, sea." in card


def test_evaluating_gives_the_results_of_the_run(folder, finished):
    values, results, _ = finished
    changed = recipe_of(values).model_copy(
        update={"tokenizer": None, "model": {"checkpoint": str(folder / "run/model")}}
    )
    found = evaluate_model(changed, folder)["scores"]["test"]
    assert found["most frequent class"] == results["scores"]["test"]["most frequent class"]
    # the weights were rounded to half precision
    assert found["model"] == pytest.approx(results["scores"]["test"]["model"], abs=0.01)


def test_metrics_are_sklearns_on_the_finished_model(folder, finished):
    model = AutoModelForSequenceClassification.from_pretrained(folder / "run" / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "run" / "model")
    rows = texts(100, 1)
    with torch.no_grad():
        logits = model(**tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")).logits
    guesses = [model.config.id2label[int(index)] for index in logits.argmax(-1)]
    wanted = [row["label"] for row in rows]
    found = finished[1]["scores"]["test"]["model"]
    assert found["accuracy"] == pytest.approx(accuracy_score(wanted, guesses), abs=0.011)
    assert found["f1_macro"] == pytest.approx(f1_score(wanted, guesses, average="macro"), abs=0.02)


def test_other_labels_than_the_models_are_refused_in_evaluations(folder, finished):
    write_rows(folder / "other.jsonl", [{"text": "a", "label": "fire"}, {"text": "b", "label": "sea"}])
    values = {**finished[0], "data": [{"name": "Other", "license": "", "train": "other.jsonl"}]}
    changed = recipe_of(values).model_copy(
        update={"tokenizer": None, "model": {"checkpoint": str(folder / "run/model")}}
    )
    with pytest.raises(RecipeError, match=r"train row 1: the label is 'fire'; .* air, land, sea"):
        evaluate_model(changed, folder)


def test_causal_model_learns_and_cut_rows_are_counted(folder):
    model = {"is_decoder": True, "bidirectional": False, "classifier_pooling": "cls"}
    values = recipe(
        TASK, ROWS, sequence_length=16, tokenizer={"vocab_size": 300}, model=model, training={"max_steps": 60}
    )
    results, text = train(values, folder, "causal")
    assert results["scores"]["test"]["model"]["accuracy"] > 0.9
    tokenizer = AutoTokenizer.from_pretrained(folder / "causal" / "tokenizer")
    for role, rows in (("train", texts(400)), ("test", texts(100, 1))):
        longer = sum(len(tokenizer(row["text"])["input_ids"]) > 16 for row in rows)
        assert f"{role}: {longer:,} rows are cut to sequence_length=16 tokens" in text


@pytest.mark.parametrize("ending", ["csv", "tsv", "csv.gz", "jsonl.gz", "parquet", "arrow"])
def test_kinds_of_files(tmp_path, ending):
    rows = [{"text": f"{'small' if i % 3 else 'big, old'} {i}", "label": i % 3} for i in range(30)]
    name = f"rows.{ending}"
    if ending == "parquet":
        Dataset.from_list(rows).to_parquet(tmp_path / name)
    elif ending == "arrow":
        Dataset.from_list(rows).save_to_disk(tmp_path / "rows")
        name = "rows/*.arrow"
    else:
        text = io.StringIO()
        if "jsonl" in ending:
            text.write("".join(json.dumps(row) + "\n" for row in rows))
        else:
            writer = csv.DictWriter(text, ["text", "label"], delimiter="\t" if ending == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
        written = text.getvalue().encode()
        (tmp_path / name).write_bytes(gzip.compress(written) if ending.endswith("gz") else written)
    task, tokenizer = prepared(recipe(TASK, {"train": name}), tmp_path)
    assert task.labels == ["0", "1", "2"] and task.problem_type == "single_label_classification"
    assert task.rows["train"]["labels"][:].tolist() == [i % 3 for i in range(30)]
    assert tokenizer.decode(task.rows["train"][0]["input_ids"], skip_special_tokens=True) == "big, old 0"


def test_class_labels_keep_their_order_and_each_role_its_names(tmp_path):
    for name, names in (("train", ["no", "maybe", "ay"]), ("test", ["ay", "no", "maybe"])):
        features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
        rows = [{"text": label, "label": label} for label in ("ay", "no", "maybe", "ay")]
        Dataset.from_list(rows, features=features).to_parquet(tmp_path / f"{name}.parquet")
    task, _ = prepared(recipe(TASK, {"train": "train.parquet", "test": "test.parquet"}), tmp_path)
    assert task.labels == ["no", "maybe", "ay"]
    assert task.rows["train"]["labels"][:].tolist() == task.rows["test"]["labels"][:].tolist() == [2, 0, 1, 2]
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "ay"])})
    unlabelled = Dataset.from_dict({"text": ["a", "b"], "label": [0, -1]}, features=features)
    unlabelled.to_parquet(tmp_path / "test.parquet")
    fails(recipe(TASK, {"train": "train.parquet", "test": "test.parquet"}), tmp_path, "test row 2", "-1", "maybe")


@pytest.mark.parametrize(
    ("train_labels", "test_labels", "problem", "parts"),
    [
        (["a", "b"], ["a", "c"], None, ["test row 2", "'c'", "one of the classes a, b"]),
        (["a", ""], ["a", "a"], None, ["only one class", "['a']"]),
        (["a", "b", ""], ["a"], None, ["train row 3", "''"]),
        ([["a"], ["b", None]], [["a"]], None, ["train row 2", "None"]),
        ([["a"], ["b"]], [["a", "c"]], None, ["test row 1", "['a', 'c']"]),
        ([["a"], ["b", "a"]], [["a"]], "single_label_classification", ["train row 2", "one of"]),
        ([0.5, 1.5], [float("nan")], None, ["test row 1", "1 finite number"]),
        (["1.5", "x"], ["1"], "regression", ["train row 2", "'x'"]),
        ([[0.5, 1.0], [1.5]], [[1.0, 1.0]], None, ["train row 2", "2 finite numbers"]),
        (["a", "a"], ["a"], None, ["only one class"]),
    ],
)
def test_wrong_labels_name_role_and_row(tmp_path, train_labels, test_labels, problem, parts):
    for name, labels in (("train", train_labels), ("test", test_labels)):
        write_rows(tmp_path / f"{name}.jsonl", [{"text": "x", "label": label} for label in labels])
    fails(recipe(TASK, ROWS, problem_type=problem), tmp_path, *parts)


def test_missing_label_names_file_and_line(tmp_path):
    write_rows(tmp_path / "train.jsonl", [{"text": "x", "label": "a"}, {"text": "y", "label": None}])
    fails(recipe(TASK, {"train": "train.jsonl"}), tmp_path, "train.jsonl, line 2", "label is missing")


def metrics_of(task, logits, labels):
    return task._metrics(EvalPrediction(np.asarray(logits), np.asarray(labels)))


def test_multi_label(tmp_path):
    names, other = [*WORDS], texts(300, 5)
    rows = [
        {"text": f"{one['text']} {two['text']}", "label": sorted({one["label"], two["label"]})}
        for one, two in zip(texts(300), other)
    ]
    write_rows(tmp_path / "rows.jsonl", [*rows, {"text": "none at all", "label": []}])
    split = {"validation": 0, "test": 60}
    values = recipe(
        TASK, {"divide": "rows.jsonl"}, split=split, tokenizer={"vocab_size": 300}, training={"max_steps": 120}
    )
    results, _ = train(values, tmp_path)
    assert results["scores"]["test"]["model"]["f1_micro"] > 0.9
    config = MegaConfig.from_pretrained(tmp_path / "run" / "model")
    assert config.problem_type == "multi_label_classification" and sorted(config.label2id) == sorted(names)
    model = pipeline("text-classification", model=str(tmp_path / "run" / "model"), top_k=None)
    assert {one["label"] for one in model(["the ship of the horse"])[0][:2]} == {"sea", "land"}
    task, _ = prepared({**values, "split": {"validation": 1, "test": 1}}, tmp_path)
    logits, labels = np.random.default_rng(0).normal(size=(2, 50, 3))
    found = metrics_of(task, logits, labels > 0)
    assert found["accuracy"] == accuracy_score(labels > 0, logits > 0)
    for kind in ("macro", "micro"):
        assert found[f"f1_{kind}"] == f1_score(labels > 0, logits > 0, average=kind)


@pytest.mark.parametrize("several", [False, True])
def test_regression(tmp_path, several):
    def label(row):
        number = [*WORDS].index(row["label"]) - 0.5
        return [number, number / 2] if several else number

    for name, rows in (("train", texts(400)), ("test", texts(100, 1))):
        write_rows(tmp_path / f"{name}.jsonl", [{"text": row["text"], "label": label(row)} for row in rows])
    values = recipe(TASK, ROWS, tokenizer={"vocab_size": 300}, training={"max_steps": 100})
    results, _ = train(values, tmp_path)
    found = results["scores"]["test"]["model"]
    assert found["spearman"] > 0.85 and found["mean_squared_error"] < 0.2
    config = MegaConfig.from_pretrained(tmp_path / "run" / "model")
    assert (config.problem_type, config.num_labels) == ("regression", 1 + several)
    logits, labels = np.random.default_rng(0).normal(size=(2, 50, 1 + several))
    task, _ = prepared(values, tmp_path)
    found = metrics_of(task, logits, labels if several else labels[:, 0])
    assert found["mean_squared_error"] == pytest.approx(mean_squared_error(labels, logits))
    rho = np.mean([spearmanr(logits[:, i], labels[:, i]).statistic for i in range(1 + several)])
    assert found["spearman"] == pytest.approx(rho)
    assert metrics_of(task, np.ones((4, 1)), np.arange(4))["spearman"] == 0


PAIRS = {"train": "pairs.jsonl", "text": "a", "text_pair": "b"}


def test_pairs_together_have_a_separator(tmp_path):
    write_rows(tmp_path / "pairs.jsonl", [{"a": "one", "b": "two", "label": i} for i in range(2)])
    task, tokenizer = prepared(recipe(TASK, PAIRS), tmp_path)
    assert tokenizer.decode(task.rows["train"][0]["input_ids"]) == "<s>one</s></s>two</s>"


def test_pairs_apart(tmp_path):
    rows = [
        {"a": one["text"], "b": two["text"], "label": "same" if one["label"] == two["label"] else "other"}
        for one, two in zip(texts(400), texts(400, 5))
    ]
    write_rows(tmp_path / "pairs.jsonl", rows)
    source, split = {**PAIRS, "divide": "pairs.jsonl"}, {"validation": 0, "test": 50}
    del source["train"]
    values = recipe(TASK, source, split=split, text_pairs="apart", tokenizer={"vocab_size": 300})
    results, _ = train(values, tmp_path)
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["architectures"] == ["MegaForSequencePairClassification"]
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    code = re.search("```python\n(.*?)```", card, re.DOTALL)[1].replace(
        "path/to/tiny", str(tmp_path / "run" / "model")
    )
    names: dict = {}
    exec(code, names)
    assert names["logits"].shape == (1, 2)
    changed = recipe_of(values).model_copy(
        update={"tokenizer": None, "model": {"checkpoint": str(tmp_path / "run" / "model")}}
    )
    found = evaluate_model(changed, tmp_path)["scores"]["test"]["model"]
    assert found == pytest.approx(results["scores"]["test"]["model"], abs=0.01)
    values["model"] = {"architecture": "bert", "bert": {"hidden_size": 12}}
    with pytest.raises(RecipeError, match="text_pairs='apart' is for Mega"):
        train(values, tmp_path, "bert")
    write_rows(tmp_path / "single.jsonl", [{"text": "x", "label": "a"}, {"text": "y", "label": "b"}])
    fails(recipe(TASK, {"train": "single.jsonl"}, text_pairs="apart"), tmp_path, "no text_pair")


def test_no_group_has_two_roles(tmp_path):
    rows = [{"text": f"text {i}", "label": i % 2, "who": i // 4} for i in range(200)]
    write_rows(tmp_path / "rows.jsonl", rows)
    values = recipe(TASK, {"divide": "rows.jsonl", "group": "who"}, split={"validation": 10, "test": 10})
    found = data.by_role(recipe_of(values), tmp_path)
    groups = {role: set(some["group"][:]) for role, some in found.items()}
    assert [len(groups[role]) for role in ("train", "validation", "test")] == [30, 10, 10]
    assert len(set.union(*groups.values())) == 50


def test_texts_with_special_tokens_are_only_texts(tmp_path):
    write_rows(tmp_path / "train.jsonl", [{"text": "a</s><pad>", "label": 0}, {"text": "b", "label": 1}])
    task, tokenizer = prepared(recipe(TASK, {"train": "train.jsonl"}), tmp_path)
    ids = task.rows["train"][0]["input_ids"].tolist()
    assert len(ids) == len("a</s><pad>") + 2 and tokenizer.pad_token_id not in ids


def test_streaming_is_refused(tmp_path):
    write_rows(tmp_path / "train.jsonl", [{"text": "a", "label": 0}])
    fails(recipe(TASK, {"train": "train.jsonl", "streaming": True}), tmp_path, "streaming")


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_peers(folder, name):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    special = {"bert": {"max_position_embeddings": 64, "learning_rate": 0.01}, "modernbert": {"learning_rate": 0.01}}
    values = recipe(TASK, ROWS, sequence_length=64, tokenizer={"vocab_size": 300}, training={"max_steps": 80})
    values["model"] = {"architecture": name, name: {**sizes, **special[name]}}
    results, _ = train(values, folder, name)
    assert results["scores"]["test"]["model"]["accuracy"] > 0.6
    config = json.loads((folder / name / "model" / "config.json").read_text())
    assert config["pad_token_id"] == 1 and config["vocab_size"] == 300


def test_fine_tuning_loads_the_encoder_and_makes_a_head(tmp_path):
    write_rows(tmp_path / "train.jsonl", texts(40))
    tokenizer = train_tokenizer([row["text"] for row in texts(100)], 300, 32)
    base = MegaForMaskedLM(MegaConfig(vocab_size=len(tokenizer), **MODEL))
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    values = recipe(TASK, {"train": "train.jsonl"}, tokenizer=None)
    values["model"] = {"checkpoint": str(tmp_path / "base"), "classifier_pooling": "mean"}
    task = task_of(recipe_of(values), tmp_path)
    task.prepare(tokenizer)
    model = task.build_model(tokenizer)
    assert isinstance(model, MegaForSequenceClassification) and model.config.num_labels == 3
    assert model.config.id2label == {0: "air", 1: "land", 2: "sea"}
    for name, weight in base.mega.state_dict().items():
        torch.testing.assert_close(model.mega.state_dict()[name], weight, rtol=0, atol=0)
    results, _ = train(values, tmp_path)
    assert results["steps"] == 2


# values


def squares(count, seed=0, size=8):
    """Images with a bright upper or lower half."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        label, image = int(rng.integers(2)), rng.integers(0, 60, (size, size)).astype(np.uint8)
        image[: size // 2] += np.uint8(100 * label)
        image[size // 2 :] += np.uint8(100 * (1 - label))
        rows.append({"values": image, "label": label})
    return rows


@pytest.mark.parametrize("way", ["values", "pixels"])
def test_images(tmp_path, way):
    features = Features({"picture": Image(), "label": ClassLabel(names=["low", "high"])})
    for name, count, seed in (("train", 200, 0), ("test", 50, 1)):
        rows = [
            {"picture": Picture.fromarray(row["values"]).convert("RGB"), "label": row["label"]}
            for row in squares(count, seed)
        ]
        Dataset.from_list(rows, features=features).to_parquet(tmp_path / f"{name}.parquet")
    source = {"train": "train.parquet", "test": "test.parquet", "values": "picture"}
    values = recipe(
        TASK,
        source,
        input=way,
        sequence_length=64,
        tokenizer=None,
        normalize={"mean": 0.4, "std": 0.25} if way == "values" else None,
        training={"max_steps": 100},
    )
    results, _ = train(values, tmp_path)
    assert results["scores"]["test"]["model"]["accuracy"] > 0.9
    task, _ = prepared(values, tmp_path)
    batch = task.trainer_fields(None, None, None)["data_collator"]([task.rows["test"][i] for i in range(3)])
    pixels = np.stack([row["values"].ravel() for row in squares(50, 1)[:3]])
    if way == "pixels":
        np.testing.assert_array_equal(batch["input_ids"], pixels)
    else:
        np.testing.assert_allclose(batch["input_values"], (pixels / 255 - 0.4) / 0.25, rtol=1e-5, atol=1e-6)
    assert "attention_mask" not in batch
    code = task.usage()
    assert ("values / 255 - 0.4) / 0.25" if way == "values" else "input_ids=values") in code


def test_numbers_in_lists_are_taken_as_they_are(tmp_path):
    rows = [{"values": [[1.5, 2], [300, -4]], "label": 0}, {"values": [[1, 2], [3, 4]], "label": 1}]
    write_rows(tmp_path / "train.jsonl", rows)
    source = {"train": "train.jsonl", "values": "values"}
    task, _ = prepared(recipe(TASK, source, input="values", tokenizer=None), tmp_path)
    np.testing.assert_array_equal(task.rows["train"][0]["input_values"], [1.5, 2, 300, -4])
    assert not task.grey
    fails(recipe(TASK, source, input="pixels", tokenizer=None), tmp_path, "train row 1", "0 to 255")
    write_rows(tmp_path / "train.jsonl", [{"values": [0.5] * 9, "label": 0}, {"values": [], "label": 1}])
    fails(recipe(TASK, source, input="values", tokenizer=None), tmp_path, "train row 2", "0 values")
    fails(recipe(TASK, source, input="values", tokenizer=None, sequence_length=8), tmp_path, "train row 1", "9 values")
    write_rows(tmp_path / "train.jsonl", [{"values": [1.5], "label": 0}, {"values": [float("inf")], "label": 1}])
    fails(recipe(TASK, source, input="values", tokenizer=None), tmp_path, "train row 2", "not finite")


def wav(samples):
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes((samples * 32767).astype("<i2").tobytes())
    return file.getvalue()


def sounds(count, seed=0):
    """Sounds of different lengths, high or low."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        label, length = int(rng.integers(2)), int(rng.integers(40, 64))
        pitch = 0.2 + 1.0 * label
        yield ["low", "high"][label], np.sin(np.arange(length) * pitch + rng.uniform(0, 6)) * rng.uniform(0.5, 1)


def test_sound_of_a_folder_and_of_a_data_set_are_the_same(tmp_path):
    rows = list(sounds(160))
    for index, (label, samples) in enumerate(rows):
        path = tmp_path / "wavs" / label / f"{index:03}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(wav(samples))
    values = recipe(
        TASK, {"train": "wavs", "test": "wavs", "reader": "wav"}, input="values", sequence_length=64, tokenizer=None
    )
    results, _ = train({**values, "training": {**values["training"], "max_steps": 100}}, tmp_path)
    assert results["scores"]["test"]["model"]["accuracy"] > 0.9
    folder = prepared(values, tmp_path)[0].rows["train"]
    # what the reader read is not kept when a folder below has other files
    (tmp_path / "wavs" / "low" / "zzz.wav").write_bytes(wav(np.zeros(5)))
    assert len(prepared(values, tmp_path)[0].rows["train"]) == len(folder) + 1
    ordered = sorted(range(160), key=lambda index: (rows[index][0], index))
    table = [{"values": {"bytes": wav(rows[i][1]), "path": None}, "label": rows[i][0]} for i in ordered]
    # without the package that Audio itself would decode with
    Dataset.from_list(table).cast_column("values", Audio(decode=False)).to_parquet(tmp_path / "sound.parquet")
    other = recipe(
        TASK, {"train": "sound.parquet", "values": "values"}, input="values", sequence_length=64, tokenizer=None
    )
    for one, two in zip(folder, prepared(other, tmp_path)[0].rows["train"]):
        np.testing.assert_array_equal(one["input_values"], two["input_values"])


@pytest.mark.parametrize("name", ["input_values", "input_ids", "pair_input_ids"])
def test_padding_changes_no_row(name):
    torch.manual_seed(0)
    kind = {"input_values": "values"}.get(name, "tokens")
    config = MegaConfig(vocab_size=257, pad_token_id=256, input_type=kind, **MODEL)
    if name == "pair_input_ids":
        from mega_transformers import MegaForSequencePairClassification as Model
    else:
        Model = MegaForSequenceClassification
    model = Model(config).eval()
    collate = Collator(256, Normalization(mean=10, std=3), 1, single=True)
    rng = np.random.default_rng(0)
    rows = [{name: rng.integers(0, 256, length), "labels": 1} for length in (30, 7, 19)]
    if name == "pair_input_ids":
        rows = [{**row, "input_ids": np.arange(4 + 3 * i)} for i, row in enumerate(rows)]
    with torch.no_grad():
        together = model(**collate(rows)).logits
        alone = torch.cat([model(**collate([row])).logits for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


# tokenizers


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain",
        "Ünïcödé — 漢字 🙂",
        "a\n\tb\x00\x7f  ",
        "<s> </s><mask>",
        "e\u0301 \u202e",
        "".join(map(chr, range(1, 700))),
    ],
)
def test_byte_tokenizer_is_one_id_a_byte(text):
    tokenizer = byte_tokenizer(10_000)
    ids = tokenizer(text, split_special_tokens=True)["input_ids"]
    assert len(ids) == len(text.encode()) + 2 and len(tokenizer) == 261
    inner = ids[1:-1]
    assert tokenizer.decode(inner, clean_up_tokenization_spaces=False) == text
    assert not text or min(inner) >= 5


def test_bundled_recipe(tmp_path):
    assert train_bundled("classify-smoke", tmp_path)["scores"]["test"]["model"]["examples"] == 100
