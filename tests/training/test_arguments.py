"""A recipe's `training`: every field checked by its type and range, before transformers sees it."""

from __future__ import annotations

import re

import pytest
from transformers import Seq2SeqTrainingArguments, TrainingArguments

from mega_transformers.errors import RecipeError
from mega_transformers.training import arguments
from mega_transformers.training.arguments import RANGES, RESERVED, checked
from mega_transformers.training.recipe import recipe_of
from mega_transformers.training.tasks import task_of


@pytest.fixture
def build(data_dir, tmp_path):
    def made(values, **decided):
        recipe = recipe_of(values)
        return arguments.build(recipe, task_of(recipe, data_dir), tmp_path, **decided)

    return made


@pytest.mark.parametrize("key", RANGES)
def test_every_range_refuses_what_is_outside(key):
    for value in (-1, float("-inf"), "many", None if key not in ("eval_steps",) else "x"):
        with pytest.raises(RecipeError, match=rf"^training\.{key}: .*; got {re.escape(repr(value))}"):
            checked({key: value}, TrainingArguments)
    edge = {"gt": 0, "ge": None, "lt": 1}
    field = RANGES[key]
    for kind, value in edge.items():
        if value is not None and any(hasattr(rule, kind) for rule in field.metadata):
            with pytest.raises(RecipeError, match=rf"^training\.{key}: .*; got {value}"):
                checked({key: value}, TrainingArguments)
    fine = 1 if any(hasattr(rule, "gt") for rule in field.metadata) else 0
    assert checked({key: fine}, TrainingArguments) == {key: fine}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rates_are_finite(value):
    for key in ("learning_rate", "weight_decay", "max_grad_norm", "num_train_epochs"):
        with pytest.raises(RecipeError, match=rf"training\.{key}: Input should be .*; got {value}"):
            checked({key: value}, TrainingArguments)


@pytest.mark.parametrize("key", RESERVED)
def test_what_the_run_decides_is_not_given(key):
    with pytest.raises(RecipeError, match=rf"training\.{key} is not set there but by .*{re.escape(RESERVED[key])}"):
        checked({key: 1}, TrainingArguments)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("learning_rat", 0.1, "training.learning_rat is unknown; did you mean learning_rate"),
        ("colour", 1, "training.colour is unknown; see TrainingArguments"),
        ("predict_with_generate", True, "training.predict_with_generate is unknown"),
        ("bf16", "perhaps", "training.bf16: Input should be a valid boolean"),
        ("max_steps", 1.5, "training.max_steps: Input should be a valid integer"),
        ("learning_rate", "fast", "training.learning_rate: Input should be a valid number"),
    ],
)
def test_errors_name_key_and_value(key, value, message):
    with pytest.raises(RecipeError, match=re.escape(message)):
        checked({key: value}, TrainingArguments)


def test_values_get_their_types():
    # YAML reads an exponent without a point as text
    values = {"learning_rate": "1e-3", "max_steps": "12", "eval_steps": 0.5, "warmup_steps": 0.1, "bf16": "true"}
    assert checked(values, TrainingArguments) == {
        "learning_rate": 0.001,
        "max_steps": 12,
        "eval_steps": 0.5,
        "warmup_steps": 0.1,
        "bf16": True,
    }
    assert checked({"predict_with_generate": True}, Seq2SeqTrainingArguments) == {"predict_with_generate": True}


def test_defaults_give_way_to_the_recipe_and_the_recipe_to_the_run(build, recipe_dict):
    args = build(recipe_dict)
    assert (args.seed, args.learning_rate, args.lr_scheduler_type.value) == (3, 0.01, "cosine")
    assert (args.eval_strategy.value, args.report_to, args.remove_unused_columns) == ("steps", [], False)
    assert not args.logging_nan_inf_filter and not args.load_best_model_at_end
    recipe_dict["training"] |= {"lr_scheduler_type": "linear"}
    recipe_dict["early_stopping"] = 2
    args = build(recipe_dict, max_steps=3)
    assert (args.lr_scheduler_type.value, args.max_steps, args.metric_for_best_model) == ("linear", 3, "eval_loss")
    del recipe_dict["data"][0]["validation"], recipe_dict["early_stopping"]
    assert build(recipe_dict).eval_strategy.value == "no"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": "magic"}, "training: .*magic"),
        ({"lr_scheduler_type": "saw"}, "training: .*saw"),
        ({"eval_strategy": "often"}, "training: .*often"),
        ({"save_steps": 3, "load_best_model_at_end": True}, "training: .*load_best_model_at_end"),
        ({"report_to": "magic"}, "training.*magic"),
    ],
)
def test_what_transformers_refuses_is_one_sentence(build, recipe_dict, changes, message):
    recipe_dict["training"] |= changes
    with pytest.raises(RecipeError, match=message):
        build(recipe_dict)
