"""What `model` can name: fields of a new Mega, other architectures, and checkpoints to go on from."""

from __future__ import annotations

import shutil

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForMaskedLM

from mega_transformers import MegaConfig, MegaForCausalLM, MegaForMaskedLM
from mega_transformers.assets import bundled_model, model_path
from mega_transformers.errors import RecipeError
from mega_transformers.training.models import build_config, special_ids
from mega_transformers.training.recipe import recipe_of
from mega_transformers.training.run import RunOptions, run
from mega_transformers.training.tasks import task_of
from mega_transformers.training.tokenizer import load_tokenizer

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16}
HEADS = {**SIZES, "num_attention_heads": 2}
SIDES = {
    "d_model": 16,
    "max_position_embeddings": 32,
    **{f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in (("layers", 1), ("ffn_dim", 16))},
    **{f"{side}_attention_heads": 2 for side in ("encoder", "decoder")},
}
ARCHITECTURES = {
    "gpt2": ("causal-lm", {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}, "GPT2LMHeadModel"),
    "mamba2": (
        "causal-lm",
        {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_heads": 4,
            "head_dim": 8,
            "state_size": 8,
            "n_groups": 1,
            "chunk_size": 8,
        },
        "Mamba2ForCausalLM",
    ),
    "llama": ("causal-lm", HEADS, "LlamaForCausalLM"),
    "modernbert": ("masked-lm", HEADS, "ModernBertForMaskedLM"),
    "bert": ("masked-lm", HEADS, "BertForMaskedLM"),
    "marian": ("text-to-text", SIDES, "MarianMTModel"),
    "bart": ("text-to-text", SIDES, "BartForConditionalGeneration"),
}


@pytest.fixture
def values_of(recipe_dict, causal_recipe_dict, pairs_recipe_dict):
    values = {"masked-lm": recipe_dict, "causal-lm": causal_recipe_dict, "text-to-text": pairs_recipe_dict}
    return values.__getitem__


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_architectures_are_trained(values_of, data_dir, pairs_dir, tmp_path, with_trainer, name):
    task, fields, class_name = ARCHITECTURES[name]
    values = values_of(task)
    mega = values["model"].get("mega", values["model"])
    values["model"] = {"architecture": name, "mega": mega, name: {"learning_rate": 0.005, **fields}}
    values["training"] |= {"max_steps": 2, "eval_steps": 2, "save_steps": 2, "logging_steps": 1, "warmup_steps": 0}
    if task != "text-to-text":
        values["packing"] = "wrapped"
    trainers = with_trainer()
    folder = pairs_dir if task == "text-to-text" else data_dir
    results = run(recipe_of(values), RunOptions(folder, tmp_path / "run"))
    (trainer,) = trainers
    assert type(trainer.model).__name__ == class_name and results["steps"] == 2
    assert trainer.args.learning_rate == 0.005  # of its own section
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    config = AutoModel.from_pretrained(tmp_path / "run" / "model").config
    assert config.model_type == name and config.vocab_size == len(tokenizer)
    assert config.pad_token_id == tokenizer.pad_token_id
    assert all(
        system.startswith("model") or "cross_entropy" in scores or "chrf" in scores
        for system, scores in results["scores"]["test"].items()
    )


def test_marian_begins_and_ends_as_bart(pairs_recipe_dict, pairs_dir):
    pairs_recipe_dict["model"] |= {"architecture": "marian", "marian": pairs_recipe_dict["model"].pop("bart")}
    task = task_of(recipe_of(pairs_recipe_dict), pairs_dir)
    model = task.build_model(task.train_tokenizer())
    assert type(model).__name__ == "MarianMTModel"
    assert model.generate(torch.tensor([[5, 6, 2]]), max_new_tokens=3, num_beams=2)[0, 0] == 2
    assert model.config.forced_eos_token_id is None


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"architecture": "lstm"}, "model: the architecture 'lstm' is unknown; "),
        ({"architecture": "modernbrt", "modernbrt": {}}, "'modernbrt' is unknown; did you mean modernbert"),
        ({"architecture": "bert"}, "model.bert must be a mapping of the model's fields; got None"),
        ({"architecture": "bert", "bert": 3}, "model.bert must be a mapping of the model's fields; got 3"),
        (
            {"architecture": "bert", "bert": {"hidden_sise": 3}},
            r"model\.bert\.hidden_sise is not a field of BertConfig; did you mean hidden_size",
        ),
        (
            {"mega": {"hidden_sise": 3}},
            r"model\.mega\.hidden_sise is not a field of MegaConfig; did you mean hidden_size",
        ),
        ({"architecture": "mega", "mega": {}, "bertt": {}}, "the architecture 'bertt' is unknown; did you mean bert"),
        ({"colour": 3}, r"model\.colour is not a field of MegaConfig; see its documentation"),
    ],
)
def test_models_that_cannot_be(recipe_dict, data_dir, model, message):
    recipe = recipe_of(recipe_dict | {"model": model})
    with pytest.raises(RecipeError, match=message):
        task_of(recipe, data_dir).check_model(None)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"mega": {"encoder": {"hidden_sise": 8}}}, r"model\.mega\.encoder\.hidden_sise is not a field of MegaConfig"),
        ({"mega": {"encoder": 8}}, r"model\.mega\.encoder must be a mapping of fields of MegaConfig; got 8"),
        ({"mega": {"share_embedings": True}}, r"model\.mega\.share_embedings .*; did you mean share_embeddings"),
        ({"mega": {"hidden_size": -8}}, r"model\.mega: .*hidden_size"),
        ({"hidden_size": 8, "num_hidden_layers": 2, "encoder": {"colour": 3}}, "encoder.colour is not a field"),
    ],
)
def test_pairs_of_models_that_cannot_be(pairs_recipe_dict, pairs_dir, model, message):
    recipe = recipe_of(pairs_recipe_dict | {"model": model})
    with pytest.raises(RecipeError, match=message):
        task_of(recipe, pairs_dir).check_model(None)


def test_an_architecture_without_the_task(recipe_dict, data_dir):
    recipe_dict["model"] = {"architecture": "llama", "llama": HEADS}
    task = task_of(recipe_of(recipe_dict), data_dir)
    with pytest.raises(RecipeError, match=r"model\.architecture='llama' has no model for masked-lm"):
        task.build_model(task.train_tokenizer())


def test_fields_of_both_sides_and_of_one(pairs_recipe_dict, pairs_dir):
    fields = {**SIZES, "nffn_hidden_size": 16, "shared_representation_size": 8, "ema_projection_size": 4}
    pairs_recipe_dict["model"] = {**fields, "decoder": {"num_hidden_layers": 3}, "share_embeddings": True}
    task = task_of(recipe_of(pairs_recipe_dict), pairs_dir)
    tokenizer = task.train_tokenizer()
    config = task.config(tokenizer)
    assert (config.encoder.num_hidden_layers, config.decoder.num_hidden_layers) == (1, 3)
    assert config.encoder.vocab_size == config.decoder.vocab_size == len(tokenizer)
    assert config.decoder_start_token_id == config.eos_token_id == tokenizer.eos_token_id
    model = task.build_model(tokenizer)
    assert model.get_encoder().get_input_embeddings().weight is model.get_decoder().get_input_embeddings().weight


@pytest.mark.parametrize("kind", ["masked-lm", "causal-lm"])
def test_a_checkpoint_is_fine_tuned(
    values_of, data_dir, tmp_path, with_trainer, tiny_checkpoint, tiny_causal_checkpoint, kind
):
    """It keeps its tokenizer; weights are the checkpoint's, fields that the recipe gives are changed."""
    folder, model_class = (
        (tiny_checkpoint, MegaForMaskedLM) if kind == "masked-lm" else (tiny_causal_checkpoint, MegaForCausalLM)
    )
    values = values_of(kind)
    del values["tokenizer"]
    values["model"] = {"checkpoint": str(folder), "hidden_dropout_prob": 0.25}
    values["training"] |= {"max_steps": 2, "learning_rate": 1e-30, "weight_decay": 0.0}
    trainers = with_trainer()
    run(recipe_of(values), RunOptions(data_dir, tmp_path / "run"))
    before = model_class.from_pretrained(folder).state_dict()
    for name, weight in trainers[0].model.state_dict().items():
        torch.testing.assert_close(weight, before[name], rtol=1e-5, atol=1e-8, msg=name)
    assert trainers[0].model.config.hidden_dropout_prob == 0.25
    assert not (tmp_path / "run" / "tokenizer").exists()
    kept, own = (AutoTokenizer.from_pretrained(path) for path in (tmp_path / "run" / "model", folder))
    assert kept.get_vocab() == own.get_vocab() and kept("the ship").input_ids == own("the ship").input_ids


def test_checkpoints_that_cannot_be(recipe_dict, data_dir, tmp_path, tiny_checkpoint):
    values = recipe_dict | {"model": {"checkpoint": str(tmp_path)}}
    with pytest.raises(RecipeError, match=f"model.checkpoint='{tmp_path}' cannot be loaded"):
        run(recipe_of(values), RunOptions(data_dir, tmp_path / "run"))
    values["model"] = {"checkpoint": str(tiny_checkpoint), "hidden_sise": 3}
    with pytest.raises(
        RecipeError, match=r"model\.hidden_sise is not a field of MegaConfig; did you mean hidden_size"
    ):
        run(recipe_of(values), RunOptions(data_dir, tmp_path / "run"))
    del values["tokenizer"]
    config = BertConfig(vocab_size=30, **HEADS)
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    values["model"] = {"checkpoint": str(tmp_path / "bert")}
    with pytest.raises(RecipeError, match=f"no tokenizer can be loaded from {tmp_path / 'bert'}"):
        run(recipe_of(values), RunOptions(data_dir, tmp_path / "run"))


def test_the_tokenizer_decides_the_special_ids(recipe_dict, data_dir):
    task = task_of(recipe_of(recipe_dict), data_dir)
    tokenizer = task.train_tokenizer()
    config = build_config(task.recipe, **special_ids(tokenizer))
    assert (config.vocab_size, config.bos_token_id, config.pad_token_id, config.eos_token_id) == (280, 0, 1, 2)
    tokenizer.mask_token = None
    with pytest.raises(RecipeError, match="the tokenizer has no mask_token, which masked-lm needs"):
        task.check_tokenizer(tokenizer)


def test_bundled_models_go_by_their_names(recipe_dict, data_dir, tmp_path, monkeypatch, tiny_checkpoint):
    """As checkpoints and as tokenizers; a folder of that name goes before them."""
    recipe = recipe_of({**recipe_dict, "tokenizer": None, "model": {"checkpoint": "mega-prose-5m"}})
    monkeypatch.chdir(tmp_path)
    tokenizer = load_tokenizer("mega-prose-5m")
    bundled = MegaConfig.from_pretrained(bundled_model("mega-prose-5m"))
    assert len(tokenizer) == bundled.vocab_size
    assert build_config(recipe, **special_ids(tokenizer)).hidden_size == bundled.hidden_size
    shutil.copytree(tiny_checkpoint, "mega-prose-5m")
    tokenizer = load_tokenizer("mega-prose-5m")
    own = MegaConfig.from_pretrained(tiny_checkpoint)
    assert len(tokenizer) == own.vocab_size != bundled.vocab_size
    assert build_config(recipe, **special_ids(tokenizer)).hidden_size == own.hidden_size


@pytest.mark.parametrize("where", ["model", "tokenizer"])
def test_misspelt_bundled_models_are_named(recipe_dict, data_dir, tmp_path, where):
    key = {"model": "checkpoint", "tokenizer": "path"}[where]
    recipe = recipe_of({**recipe_dict, where: {key: "mega-prose-5n"}})
    with pytest.raises(RecipeError, match=r"mega-prose-5n.*did you mean mega-prose-5m"):
        run(recipe, RunOptions(data_dir, tmp_path))


def test_a_hub_id_may_resemble_a_bundled_model():
    assert model_path("somebody/mega-prose-5m") == "somebody/mega-prose-5m"
