"""The Long Range Arena's recipes on small stand-ins of their files, and generated rows."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import yaml
from task_data import recipe, texts, train

from mega_transformers import MegaForSequencePairClassification
from mega_transformers.assets import RECIPES
from mega_transformers.errors import RecipeError
from mega_transformers.training import data, lra
from mega_transformers.training.lra import GENERATORS, listops_tokenizer
from mega_transformers.training.lra_generators import LISTOPS_VOCABULARY
from mega_transformers.training.recipe import recipe_of
from mega_transformers.training.tasks import task_of

TASK = "sequence-classification"
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "intermediate_size": 16,
    "nffn_hidden_size": 16,
    "shared_representation_size": 8,
    "ema_projection_size": 2,
    "truncation": 64,
    "classifier_hidden_sizes": [16],
}
TRAINING = {
    "max_steps": 2,
    "warmup_steps": 1,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "eval_steps": 2,
    "save_steps": 2,
    "use_cpu": True,
    "disable_tqdm": True,
}


def write_listops(folder):
    (folder / "listops").mkdir()
    for role, seed in (("train", 0), ("val", 1), ("test", 2)):
        rows = GENERATORS["listops"](8 if seed else 150, seed=seed, min_length=5, max_length=40)
        lines = "".join(f"{row['text']}\t{row['label']}\n" for row in rows)
        (folder / "listops" / f"basic_{role}.tsv").write_text(f"Source\tTarget\n{lines}")


def write_text(folder):
    for role, seed in (("train", 0), ("test", 1)):
        for index, row in enumerate(texts(8, seed)):
            path = folder / "aclImdb" / role / ("pos" if index % 2 else "neg") / f"{index}_{index}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(row["text"])


def write_retrieval(folder):
    (folder / "aan").mkdir()
    for role, seed in (("train", 0), ("eval", 1), ("test", 2)):
        pairs = zip(texts(8, seed), texts(8, seed + 9))
        lines = [f"{float(i % 2)}\t1\t2\t{one['text']}\t{two['text']}\n" for i, (one, two) in enumerate(pairs)]
        (folder / "aan" / f"new_aan_pairs.{role}.tsv").write_text("".join(lines))


def write_image(folder):
    path = folder / "cifar-10-batches-bin"
    path.mkdir()
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        rows = rng.integers(0, 256, (4, 3073), dtype=np.uint8)
        rows[:, 0] = np.arange(4)
        (path / f"{name}.bin").write_bytes(rows.tobytes())


@pytest.mark.parametrize(
    ("name", "write", "classes"),
    [
        ("listops", write_listops, 10),
        ("text", write_text, 2),
        ("retrieval", write_retrieval, 2),
        ("image", write_image, 4),
    ],
)
def test_recipes_train(tmp_path, name, write, classes):
    write(tmp_path)
    values = yaml.safe_load((RECIPES / "lra" / f"{name}.yaml").read_text())
    values["model"] |= SMALL
    values["training"] |= TRAINING
    results, _ = train(values, tmp_path)
    found = results["scores"]["test"]
    assert 0 <= found["model"]["accuracy"] <= 1 and found["model"]["examples"] == (4 if name == "image" else 8)
    config = yaml.safe_load((tmp_path / "run" / "model" / "config.json").read_text())
    assert len(config["id2label"]) <= classes and config["classifier_head"] == "blocks"
    architecture = "MegaForSequencePairClassification" if name == "retrieval" else "MegaForSequenceClassification"
    assert config["architectures"] == [architecture]
    if name == "retrieval":
        MegaForSequencePairClassification.from_pretrained(tmp_path / "run" / "model")


@pytest.mark.parametrize("name", [path.stem for path in sorted((RECIPES / "lra").glob("*.yaml"))])
def test_recipes_have_models(name, tmp_path):
    """Without files: the configuration of each is right, and no key unknown."""
    values = yaml.safe_load((RECIPES / "lra" / f"{name}.yaml").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "check", lambda recipe, folder: None)
        task = task_of(recipe_of(values), tmp_path)
    task.check_model(None)


GENERATED = {
    "listops": ({"min_length": 4, "max_length": 30}, "tokens"),
    "pathfinder": ({}, "values"),
    "images": ({"size": 8}, "values"),
}


def source(name, **changes):
    return {"reader": f"generated-{name}", "options": {"seed": 3, **GENERATED[name][0]}, **changes}


@pytest.mark.parametrize("name", GENERATED)
@pytest.mark.parametrize("ways", [{"divide": 60}, {"train": "40", "validation": 10, "test": [4, "6"]}])
def test_generated_rows_have_one_role(tmp_path, name, ways):
    column = "text" if name == "listops" else "values"
    values = recipe(TASK, source(name, **ways), split={"validation": 10, "test": 10})
    rows = data.by_role(recipe_of(values), tmp_path)
    assert {role: len(some) for role, some in rows.items()} == {"train": 40, "validation": 10, "test": 10}
    found = [str(row) for some in rows.values() for row in some[column][:]]
    assert len(set(found)) == 60
    options = GENERATED[name][0]
    assert set(found) == {
        str(row[column] if name == "listops" else row[column].tolist())
        for row in GENERATORS[name](60, seed=3, **options)
    }


def test_other_options_give_other_rows(tmp_path):
    def first(**options):
        values = recipe(TASK, {"train": 5, "reader": "generated-listops", "options": options})
        return data.by_role(recipe_of(values), tmp_path)["train"]["text"][:]

    short = first(min_length=4, max_length=20)
    assert short == first(min_length=4, max_length=20) != first(min_length=4, max_length=20, seed=1)
    assert (
        max(len(text.split()) for text in short)
        < 20
        < min(len(t.split()) for t in first(min_length=30, max_length=99))
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": "many"}, "takes a number of rows; got 'many'"),
        ({"train": 5, "options": {"sede": 1}}, "options of reader='generated-images'.*sede"),
        ({"train": 5, "reader": "idx", "options": {"sede": 1}}, "options of reader='idx'.*sede"),
        ({"train": 5, "reader": None}, "options=.* are for a reader"),
        ({"train": 5, "options": {"seed": 1}, "reader": "generated-image"}, "generated-image' is unknown"),
    ],
)
def test_wrong_options_are_refused(tmp_path, changes, message):
    with pytest.raises(RecipeError, match=message):
        task_of(recipe_of(recipe(TASK, {**source("images"), **changes}, input="values", tokenizer=None)), tmp_path)


def test_generated_images_are_learnt(tmp_path):
    """Stripes of ten directions: far more than one in ten is right."""
    values = recipe(
        TASK,
        {"reader": "generated-images", "options": {"size": 8}, "train": 600, "test": 100},
        input="values",
        sequence_length=64,
        tokenizer=None,
        normalize={"mean": 0.5, "std": 0.25},
        training={"max_steps": 100},
    )
    results, _ = train(values, tmp_path)
    scores = results["scores"]["test"]
    assert scores["model"]["accuracy"] > 0.3 > scores["most frequent class"]["accuracy"]


def test_generated_listops_train(tmp_path):
    values = recipe(TASK, source("listops", divide=200), tokenizer={"kind": "listops"}, split={"test": 20})
    results, text = train(values, tmp_path)
    assert results["scores"]["test"]["model"]["examples"] == 20 and "rows are cut" not in text


def test_idx_pixels_reach_the_model(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 5), dtype=np.uint8)
    for name, values in (("images-idx3", pixels), ("labels-idx1", np.arange(6, dtype=np.uint8) % 2)):
        head = struct.pack(">BBBB", 0, 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
        (tmp_path / f"train-{name}-ubyte").write_bytes(head + values.tobytes())
    values = recipe(TASK, {"train": "train-images*", "reader": "idx"}, input="values", tokenizer=None)
    task = task_of(recipe_of(values), tmp_path)
    task.prepare(None)
    batch = task.trainer_fields(None, None, None)["data_collator"](list(task.rows["train"]))
    np.testing.assert_allclose(batch["input_values"], pixels.reshape(6, 20) / 255, rtol=1e-6)
    assert batch["labels"].tolist() == [0, 1, 0, 1, 0, 1]


def test_listops_tokenizer():
    tokenizer = listops_tokenizer(50)
    text = "[MAX 4 [SM 7 9 ] 0 ]"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.split()) + 1 and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[:-1]) == text and tokenizer.model_max_length == 50
    assert len(tokenizer) == len(LISTOPS_VOCABULARY) + 4
    assert len(set(tokenizer(" ".join(LISTOPS_VOCABULARY))["input_ids"])) == len(LISTOPS_VOCABULARY) + 1
    assert tokenizer("[AVG")["input_ids"][0] == tokenizer.unk_token_id
    assert lra.READERS.keys().isdisjoint(data.GENERATED)
