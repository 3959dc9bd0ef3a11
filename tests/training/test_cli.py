from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from mega_transformers.cli import train as module

app = typer.Typer()
app.command()(module.train)
app.command()(module.evaluate)


def mega(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def one_line(result):
    return " ".join(result.output.split())


def test_train_then_evaluate(recipe_dict, write_recipe, data_dir, tmp_path):
    recipe = write_recipe(recipe_dict)
    output, export = tmp_path / "run", tmp_path / "published"
    result = mega(
        "train",
        recipe,
        "--data-dir",
        data_dir,
        "--output-dir",
        output,
        "--export",
        export,
        "--set",
        "schedule.max_steps=4",
    )
    assert result.exit_code == 0, result.output
    assert "tiny on test" in result.output and "bigram" in result.output
    card = (export / "README.md").read_text()
    assert "mega train recipe.yaml --data-dir DATA --set schedule.max_steps=4" in card
    assert str(data_dir) not in card

    numbers = tmp_path / "scores.json"
    arguments = ["--documents", "lines", "--sequence-length", 32, "--seed", 3, "--baselines", data_dir / "train.txt"]
    result = mega("evaluate", export, "--data", data_dir / "test.txt", *arguments, "--json", numbers)
    assert result.exit_code == 0, result.output
    scores = json.loads(numbers.read_text())
    trained = json.loads((export / "results.json").read_text())["scores"]["test"]
    assert scores["model"]["cross_entropy"] == pytest.approx(trained["model"]["cross_entropy"], rel=1e-3)
    assert scores["unigram"]["accuracy"] == trained["unigram"]["accuracy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "schedule.max_stepz=4"], "schedule.max_stepz is unknown"),
        (["--max-hours", "nan"], "--max-hours nan must be above 0"),
        (["--max-hours", "0"], "--max-hours 0.0 must be above 0"),
        (["--until", "noon"], "--until noon must be a time of day"),
        (["--until", "23:35", "--max-hours", "1"], "exclude each other"),
        (["--data-dir", "nowhere"], "no file matches 'train.txt' in nowhere"),
        (["--data-dir", "DATA", "--set", "training.optim=magic"], "training: magic is not a valid"),
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
        (["--data", "none.txt"], "there is no file none.txt"),
        (["--data", "TEXT", "--clean", "soap"], "--clean soap is unknown"),
        (["--data", "TEXT", "--documents", "pages"], "--documents pages is unknown"),
        (["--data", "TEXT", "--mask", "nan"], "mask=nan and random=0.0 must be at least 0"),
        (["--data", "TEXT", "--probability", "2"], "evaluation_probability=2.0 must be"),
        (["--data", "TEXT", "--metric", "rouge"], "the metric 'rouge' is unknown"),
    ],
)
def test_evaluate_user_mistakes(data_dir, tmp_path, arguments, message):
    arguments = [data_dir / "test.txt" if argument == "TEXT" else argument for argument in arguments]
    result = mega("evaluate", tmp_path, *arguments)
    assert result.exit_code == 2
    assert message in one_line(result)
    assert "Traceback" not in result.output
