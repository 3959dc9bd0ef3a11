from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from mega_transformers.training import causal_lm, masked_lm, text_to_text
from mega_transformers.training.masked_lm import build_config
from mega_transformers.training.recipe import TASKS, find_recipe, load_recipe
from mega_transformers.training.schema import RecipeError

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_published_recipes_are_valid(path):
    recipe = load_recipe(path)
    task = {"masked_lm": masked_lm, "causal_lm": causal_lm, "text_to_text": text_to_text}[TASKS[recipe.task]]
    task.build_config(recipe, recipe.tokenizer.vocab_size or 70)


def test_the_guides_example_is_valid(write_recipe):
    guide = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```yaml\n(.*?)^```", guide, flags=re.MULTILINE | re.DOTALL)
    recipe = load_recipe(write_recipe({"name": "guide", "schedule": {"max_steps": 1}, **yaml.safe_load(example)}))
    config = text_to_text.build_config(recipe, recipe.tokenizer.vocab_size)
    assert (config.encoder.num_hidden_layers, config.decoder.num_hidden_layers) == (4, 2)
    assert recipe.pairs[1].roles == ["train"] and recipe.pairs[0].roles == ["train", "validation", "test"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("colour", "red", "colour is unknown; known are name, task"),
        ("task", "cooking", "task='cooking' is unknown; known are masked-lm, causal-lm, text-to-text"),
        ("name", "a/b", "name='a/b'"),
        ("sequence_length", "long", "sequence_length must be a whole number; got 'long'"),
        ("sequence_length", True, "sequence_length must be a whole number; got True"),
        ("sequence_length", 2, "sequence_length=2 must be at least 8"),
        ("masking.probability", 1.5, "masking.probability=1.5 must be above 0 and below 1"),
        ("masking.mask", 0.9, None),
        ("masking.random", 0.2, "masking.mask=1.0 and random=0.2"),
        ("schedule.shape", "wsd", "schedule.shape='wsd' is unknown; known are cosine, linear"),
        ("schedule.epochs", 3, "schedule.max_steps or epochs: give one of them"),
        ("schedule.max_hours", 0, "schedule.max_hours=0.0 must be above 0"),
        ("tokenizer.path", "x", "tokenizer.vocab_size to train a tokenizer, or path"),
        ("tokenizer.vocab_size", 100, "tokenizer.vocab_size=100 must be at least 261"),
        ("data.0.clean", ["soap"], "data.0.clean='soap' is unknown; known are wikitext"),
        ("data.0.documents", "pages", "data.0.documents='pages' is unknown; known are whole, lines"),
        ("data.0.train", [], "data: no source has the role train"),
        ("model.vocab_size", 300, "model.vocab_size comes from the tokenizer"),
        ("training.learning_rat", 0.1, "training.learning_rat is not a field of TrainingArguments; did you mean"),
        ("training.learning_rate", "fast", "training.learning_rate must be a number; got 'fast'"),
        ("training.learning_rate", -1, "training.learning_rate=-1 must be above 0"),
        ("schedule.max_hours", float("nan"), "schedule.max_hours must be a number; got nan"),
        ("training.learning_rate", "-1e-3", "training.learning_rate=-1e-3 must be above 0"),
        ("training.learning_rate", float("nan"), "training.learning_rate must be a number; got nan"),
        ("training.per_device_train_batch_size", 0, "training.per_device_train_batch_size=0 must be above 0"),
        ("training.save_steps", -4, "training.save_steps=-4 must be above 0"),
        ("training.weight_decay", -0.1, "training.weight_decay=-0.1 must be at least 0"),
        ("training.adam_beta2", 1, "training.adam_beta2=1 must be at least 0 and below 1"),
        ("sequence_lenght", 32, "sequence_lenght is unknown; did you mean sequence_length"),
        ("schedule.max_step", 3, "schedule.max_step is unknown; did you mean max_steps"),
        ("training.max_steps", 3, "training.max_steps is not set there but by schedule.max_steps"),
    ],
)  # fmt: skip
def test_errors_name_key_and_value(recipe_dict, write_recipe, key, value, message):
    import yaml

    path = write_recipe(recipe_dict)
    override = [f"{key}={yaml.safe_dump(value, default_flow_style=True).removesuffix('...' + chr(10)).strip()}"]
    if message is None:
        load_recipe(path, override)
        return
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, override)
    assert message in str(caught.value)


def test_masking_is_for_masked_lm(causal_recipe_dict, write_recipe):
    path = write_recipe(causal_recipe_dict)
    assert load_recipe(path).masking is None
    with pytest.raises(RecipeError, match="masking is for the task masked-lm; leave it out for causal-lm"):
        load_recipe(path, ["masking.probability=0.3"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.is_decoder=false", "model.is_decoder=False, with which .* causal-lm needs model.is_decoder=True"),
        ("model.bidirectional=true", "model: is_decoder=True needs bidirectional=False"),
    ],
)
def test_a_causal_model_does_not_see_the_future(causal_recipe_dict, write_recipe, override, message):
    recipe = load_recipe(write_recipe(causal_recipe_dict), [override])
    with pytest.raises(RecipeError, match=message):
        causal_lm.build_config(recipe, 280)


def test_a_missing_key_is_named(recipe_dict, write_recipe):
    del recipe_dict["data"][0]["license"]
    with pytest.raises(RecipeError, match=r"data\.0\.license is missing"):
        load_recipe(write_recipe(recipe_dict))


def test_exponents_without_a_point_are_numbers(recipe_dict, write_recipe):
    recipe = load_recipe(write_recipe(recipe_dict), ["training.learning_rate=1e-3", "masking.probability=2e-1"])
    assert recipe.training["learning_rate"] == 0.001
    assert recipe.masking.probability == 0.2


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden_sise", 8, "model.hidden_sise is not a field of MegaConfig; did you mean hidden_size"),
        ("normalization_type", "batch", "normalization_type='batch' is unknown"),
        ("hidden_size", "wide", "model.hidden_size must be a whole number; got 'wide'"),
    ],
)
def test_the_model_is_checked(recipe_dict, write_recipe, field, value, message):
    recipe_dict["model"][field] = value
    with pytest.raises(RecipeError, match=message):
        build_config(load_recipe(write_recipe(recipe_dict)), 280)


@pytest.mark.parametrize("text", ["a: [", "just text", "- 1"])
def test_what_is_no_recipe_is_refused(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError):
        load_recipe(path)
    with pytest.raises(RecipeError, match="cannot read"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="must look like key=value"):
        load_recipe(RECIPES[0], ["schedule.max_steps"])


def test_bundled_recipes_are_found_by_name(tmp_path, monkeypatch, recipe_dict, write_recipe):
    """In a folder without recipes, as after an installation; a file that is there goes first."""
    monkeypatch.chdir(tmp_path)
    for name in ("mlm-smoke", "recipes/mlm-smoke.yaml"):
        found = find_recipe(Path(name))
        assert load_recipe(found).name == "mlm-smoke"
        assert (found.parent / load_recipe(found).data[0].train[0]).is_file()
    own = write_recipe(recipe_dict).rename(tmp_path / "mlm-smoke.yaml")
    assert find_recipe(Path("mlm-smoke.yaml")) == Path(own.name)
    with pytest.raises(RecipeError, match=r"cannot read the recipe mlm-smok: .*; did you mean mlm-smoke"):
        load_recipe(find_recipe(Path("mlm-smok")))
    with pytest.raises(RecipeError, match="bundled are clm-prose, g2p-cmudict"):
        load_recipe(find_recipe(Path("cooking")))
