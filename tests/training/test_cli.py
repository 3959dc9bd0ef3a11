"""`mega train` and `mega evaluate`: what they write and say."""

from __future__ import annotations

import json
import os
import re
import signal

import pytest
import yaml
from typer.testing import CliRunner

from mega_transformers.cli import app
from mega_transformers.cli.train import bundled_recipes


def mega(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def one_line(result):
    return " ".join(result.output.split())


def test_train_then_evaluate(recipe_dict, write_recipe, data_dir, tmp_path):
    recipe_dict["packing"] = "wrapped"  # as `mega evaluate` reads files
    recipe = write_recipe(recipe_dict)
    output, export = tmp_path / "run", tmp_path / "published"
    arguments = ["train", recipe, "--data-dir", data_dir, "--output-dir", output, "--set", "training.max_steps=4"]
    result = mega(*arguments, "--export", export)
    assert result.exit_code == 0, result.output
    assert "tiny on test" in result.output and "bigram" in result.output
    card = (export / "README.md").read_text()
    assert "mega train recipe.yaml --data-dir DATA --set training.max_steps=4" in card
    assert str(data_dir) not in card and str(tmp_path) not in card
    assert not (output / "model").exists()

    numbers = tmp_path / "scores.json"
    arguments = ["--documents", "lines", "--sequence-length", 32, "--seed", 3, "--baselines", data_dir / "train.txt"]
    result = mega("evaluate", export, "--data", data_dir / "test.txt", *arguments, "--json", numbers)
    assert result.exit_code == 0, result.output
    scores = json.loads(numbers.read_text())["scores"]["test"]
    trained = json.loads((export / "results.json").read_text())["scores"]["test"]
    assert scores["model"]["cross_entropy"] == pytest.approx(trained["model"]["cross_entropy"], rel=1e-3)
    assert scores["unigram"] == trained["unigram"] and scores["bigram"] == trained["bigram"]
    # without baselines, the model alone
    result = mega("evaluate", export, "--data", data_dir / "test.txt", *arguments[:-2], "--json", numbers)
    assert result.exit_code == 0, result.output
    assert json.loads(numbers.read_text())["scores"]["test"].keys() == {"model"}
    # by the recipe, on all of its roles
    result = mega("evaluate", export, "--recipe", recipe, "--data-dir", data_dir, "--json", numbers)
    assert result.exit_code == 0, result.output
    assert json.loads(numbers.read_text())["scores"]["test"]["bigram"] == trained["bigram"]
    assert "tiny, validation" in result.output


def test_a_causal_model_is_evaluated_by_its_recipe(causal_recipe_dict, write_recipe, data_dir, tmp_path):
    causal_recipe_dict["training"]["max_steps"] = 1
    recipe, output = write_recipe(causal_recipe_dict), tmp_path / "run"
    arguments = ["--data-dir", data_dir]
    result = mega("train", recipe, *arguments, "--output-dir", output)
    assert result.exit_code == 0, result.output
    result = mega("evaluate", output / "model", "--recipe", recipe, *arguments, "--json", tmp_path / "scores.json")
    assert result.exit_code == 0, result.output
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    trained = json.loads((output / "results.json").read_text())["scores"]
    for name, score in trained["test"].items():
        assert scores["test"][name]["cross_entropy"] == pytest.approx(score["cross_entropy"], rel=1e-3), name
    result = mega("evaluate", output / "model", "--data", data_dir / "test.txt")
    assert result.exit_code in (1, 2) and "Traceback" not in result.output


def test_a_dry_run_says_what_it_takes(recipe_dict, write_recipe, data_dir, tmp_path):
    output = tmp_path / "run"
    result = mega("train", write_recipe(recipe_dict), "--data-dir", data_dir, "--output-dir", output, "--dry-run")
    assert result.exit_code == 0, result.output
    for words in (
        r"parameters \S* 7,650",
        r"steps \S* 12 ",
        r"seconds a step \S* 0\.\d+",
        r"memory, at its peak .* GB",
    ):
        assert re.search(words, one_line(result)), words
    assert not output.exists()


def test_time_that_is_up_and_the_same_command_again(recipe_dict, write_recipe, data_dir, tmp_path):
    arguments = ["train", write_recipe(recipe_dict), "--data-dir", data_dir, "--output-dir", tmp_path / "run"]
    result = mega(*arguments, "--max-hours", 1e-9)
    assert result.exit_code == 130, result.output
    assert "Stopped after step 1; the same command continues there." in one_line(result)
    result = mega(*arguments, "--no-resume")
    assert result.exit_code == 2 and "--no-resume, but" in one_line(result)
    result = mega(*arguments, "--max-hours", 1)
    assert result.exit_code == 0, result.output
    assert "Continuing from" in result.output and (tmp_path / "run" / "model").is_dir()


def test_ctrl_c_saves_a_checkpoint(recipe_dict, write_recipe, data_dir, tmp_path, with_trainer, signal_after):
    with_trainer(lambda trainer: trainer.add_callback(signal_after(2)))
    handler = signal.getsignal(signal.SIGTERM)
    result = mega("train", write_recipe(recipe_dict), "--data-dir", data_dir, "--output-dir", tmp_path / "run")
    assert result.exit_code == 130
    assert "SIGTERM: saving a checkpoint after this step" in one_line(result)
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-3"]
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--data-dir", "DATA", "--set", "training.max_stepz=4"],
            "training.max_stepz is unknown; did you mean max_steps",
        ),
        (["--set", "schedule.max_steps=4"], "unknown key 'schedule'; it is now part of training"),
        (["--set", "colour"], "--set colour must be key=value, such as training.max_steps=100"),
        (["--max-hours", "nan"], "--max-hours nan must be above 0"),
        (["--max-hours", "0"], "--max-hours 0.0 must be above 0"),
        (["--until", "noon"], "No such option"),
        (["--data-dir", "nowhere"], "no file matches 'train.txt' in nowhere"),
        (["--data-dir", "DATA", "--set", "training.optim=magic"], "training: magic is not a valid"),
        (
            ["--data-dir", "DATA", "--set", "training.learning_rate=-1"],
            "training.learning_rate: Input should be greater",
        ),
        (["--data-dir", "DATA", "--compare", "nowhere"], "--compare nowhere: this is not the output folder"),
    ],
)
def test_user_mistakes_are_one_message(recipe_dict, write_recipe, data_dir, tmp_path, arguments, message):
    arguments = [data_dir if argument == "DATA" else argument for argument in arguments]
    result = mega("train", write_recipe(recipe_dict), "--output-dir", tmp_path / "run", *arguments)
    assert result.exit_code == 2
    assert message in one_line(result)
    assert "Traceback" not in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data or --recipe: give files, or a recipe with validation or test rows"),
        (["--data", "none.txt"], "there is no file none.txt"),
        (["--data", "TEXT", "--clean", "soap"], "'soap' is unknown; the known values are wikitext"),
        (["--data", "TEXT", "--documents", "pages"], "documents: Input should be 'whole', 'lines'"),
        (["--data", "TEXT", "--mask", "nan"], "masking.mask: Input should be a finite number; got nan"),
        (
            ["--data", "TEXT", "--probability", "2"],
            "masking.evaluation_probability: Input should be less than 1; got 2.0",
        ),
        (["--recipe", "nothing"], "cannot read the recipe nothing"),
        (
            ["--data", "TEXT", "--sequence-length", 100_000],
            "the test texts are shorter than one block of sequence_length=100000",
        ),
    ],
)
def test_evaluate_user_mistakes(tiny_checkpoint, data_dir, arguments, message):
    arguments = [data_dir / "test.txt" if argument == "TEXT" else argument for argument in arguments]
    result = mega("evaluate", tiny_checkpoint, *arguments)
    assert result.exit_code == 2
    assert message in one_line(result)
    assert "Traceback" not in result.output


def test_recipes_are_completed():
    assert bundled_recipes("mlm-s") == ["mlm-smoke"]
    assert {"lra/text", "lra/image"} <= set(bundled_recipes("lra/"))


def test_a_bundled_recipe_finds_its_own_texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEGA_DATA_DIR", raising=False)
    small = {"hidden_size": 8, "num_hidden_layers": 1, "shared_representation_size": 8}
    options = ["training.max_steps=1", f"model={yaml.safe_dump(small, default_flow_style=True).strip()}"]
    options += ["tokenizer.vocab_size=300", "name=x"]
    result = mega("train", "mlm-smoke", *(part for option in options for part in ("--set", option)))
    assert result.exit_code == 0, result.output
    assert os.listdir("runs") == ["x"]
    assert "`mega train mlm-smoke --set training.max_steps=1" in (tmp_path / "runs/x/model/README.md").read_text()
