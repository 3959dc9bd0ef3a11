from __future__ import annotations

import json
import os
import random
import signal
import sys

import pytest
import torch
from safetensors.torch import load_file
from task_data import recipe, train, train_bundled, write_rows

from mega_transformers.errors import RecipeError
from mega_transformers.training.evaluate import evaluate_model
from mega_transformers.training.recipe import recipe_of
from mega_transformers.training.tasks import class_of, task_of

sentence_transformers = pytest.importorskip("sentence_transformers")

from sentence_transformers import SentenceTransformer  # noqa: E402
from sentence_transformers.evaluation import (  # noqa: E402
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
)
from transformers import TrainerCallback  # noqa: E402

TASK = "sentence-embedding"
WORDS = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("all", "en", "ip", "ock", "ull")]
SPLIT = {"validation": 40, "test": 60}


def rows_of(count, seed=0):
    """Four words, the same in another order, and four others."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        words = rng.sample(WORDS, 4)
        rows.append(
            {
                "anchor": " ".join(words),
                "positive": " ".join(rng.sample(words, 4)),
                "negative": " ".join(rng.sample(WORDS, 4)),
            }
        )
    return rows


def values_of(**changes):
    training = {"max_steps": 40, **changes.pop("training", {})}
    source = {"divide": "rows.jsonl", **changes.pop("source", {})}
    return recipe(
        TASK, source, split=SPLIT, sequence_length=64, tokenizer={"vocab_size": 400}, training=training, **changes
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs")
    write_rows(path / "rows.jsonl", rows_of(400))
    return path


@pytest.fixture(scope="module")
def finished(folder):
    return train(values_of(), folder)


def test_pairs_are_learnt_and_the_numbers_are_sentence_transformers(folder, finished):
    results, text = finished
    found = results["scores"]["test"]["model"]
    assert found["cosine_accuracy@1"] > 0.5 and found["examples"] == 60
    assert "SentenceTransformer:" in text
    task = task_of(recipe_of(values_of()), folder)
    task.prepare(None)
    rows = task.rows["test"]
    corpus = {str(i): row for i, row in enumerate(rows["positive"][:])}
    queries = {str(i): row for i, row in enumerate(rows["anchor"][:])}
    model = SentenceTransformer(str(folder / "run" / "model"))
    assert model.encode(["A text.", "Two."]).shape == (2, 24) and model.max_seq_length == 64
    evaluator = InformationRetrievalEvaluator(queries, corpus, {i: {i} for i in queries}, write_csv=False)
    # the weights were rounded to half precision
    for name, value in evaluator(model).items():
        if name in found:
            assert found[name] == pytest.approx(value, abs=0.02)


def test_evaluating_gives_the_results_of_the_run(folder, finished):
    changes = {"tokenizer": None, "model": {"checkpoint": str(folder / "run" / "model")}}
    found = evaluate_model(recipe_of(values_of()).model_copy(update=changes), folder)
    assert found["scores"]["test"]["model"] == pytest.approx(finished[0]["scores"]["test"]["model"], abs=0.02)


def test_card(folder, finished):
    card = (folder / "run" / "model" / "README.md").read_text()
    assert "library_name: sentence-transformers" in card and "pipeline_tag: sentence-similarity" in card
    assert 'SentenceTransformer("path/to/tiny")' in card
    assert "| part | system | parameters | found first | MRR@10 | nDCG@10 | examples |" in card
    log = json.loads((folder / "run" / "model" / "training_log.json").read_text())
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[0] > losses[-1]


def test_command_shows_a_table(folder, finished, tmp_path):
    import yaml
    from typer.testing import CliRunner

    from mega_transformers.cli.main import app

    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values_of()), encoding="utf-8")
    arguments = ["--recipe", str(tmp_path / "recipe.yaml"), "--data-dir", str(folder), "--device", "cpu"]
    found = CliRunner().invoke(app, ["evaluate", str(folder / "run" / "model"), *arguments])
    assert found.exit_code == 0, found.output
    for part in ("tiny, test", "found first", "MRR@10", "60"):
        assert part in found.output


def test_triples(folder):
    results, _ = train(values_of(source={"negative": "negative"}), folder, "triples")
    assert results["scores"]["test"]["model"]["cosine_accuracy@1"] > 0.5


def test_scores(folder):
    rows = [
        {"anchor": row["anchor"], "positive": row["negative" if i % 2 else "positive"], "score": float(1 - i % 2)}
        for i, row in enumerate(rows_of(400))
    ]
    write_rows(folder / "scored.jsonl", rows)
    values = values_of(source={"divide": "scored.jsonl", "score": "score"})
    results, _ = train(values, folder, "scored")
    found = results["scores"]["test"]["model"]["spearman_cosine"]
    assert found > 0.5
    task = task_of(recipe_of(values), folder)
    task.prepare(None)
    test = task.rows["test"]
    evaluator = EmbeddingSimilarityEvaluator(
        test["anchor"][:], test["positive"][:], test["score"][:], write_csv=False, main_similarity="cosine"
    )
    value = evaluator(SentenceTransformer(str(folder / "scored" / "model")))["spearman_cosine"]
    assert found == pytest.approx(float(value), abs=0.01)


def test_pooling_is_kept(folder):
    values = values_of(pooling="max", training={"max_steps": 1})
    train(values, folder, "max")
    config = json.loads((folder / "max" / "model" / "1_Pooling" / "config.json").read_text())
    assert config.get("pooling_mode") == "max" or config["pooling_mode_max_tokens"]


def test_a_signal_changes_nothing_but_the_time(folder):
    class Signal(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 5:
                os.kill(os.getpid(), signal.SIGTERM)

    values = values_of(training={"max_steps": 12, "eval_steps": 4, "save_steps": 4})
    train(values, folder, "whole")
    from mega_transformers.training import run as module

    made = module.make_trainer

    def signalled(*args, **kwargs):
        trainer = made(*args, **kwargs)
        trainer.add_callback(Signal())
        return trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "make_trainer", signalled)
        assert train(values, folder, "stopped")[0] is None
    results, text = train(values, folder, "stopped")
    assert "Continuing from" in text and results["steps"] == 12
    whole, stopped = (load_file(folder / name / "model" / "model.safetensors") for name in ("whole", "stopped"))
    assert whole.keys() == stopped.keys()
    for name, weight in whole.items():
        assert torch.equal(weight, stopped[name]), name


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"loss": "MultipleNegativesRankingLos"}, ["loss=", "MultipleNegativesRankingLoss"]),
        ({"loss": "MatryoshkaLoss"}, ["loss='MatryoshkaLoss'"]),
        ({"source": {"score": "positive", "positive": "negative"}}, ["train", "scores numbers"]),
    ],
)
def test_what_cannot_work_is_refused(folder, changes, parts):
    with pytest.raises(RecipeError) as error:
        task_of(recipe_of(values_of(**changes)), folder).prepare(None)
    for part in parts:
        assert part in str(error.value)


def test_missing_package_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    monkeypatch.delitem(sys.modules, "mega_transformers.training.tasks.sentence_embedding", raising=False)
    with pytest.raises(RecipeError, match=r"needs the package sentence-transformers: pip install 'mega-transformers"):
        class_of(recipe_of(values_of()))


def test_bundled_recipe(tmp_path):
    assert train_bundled("embed-smoke", tmp_path)["scores"]["test"]["model"]["examples"] == 60
