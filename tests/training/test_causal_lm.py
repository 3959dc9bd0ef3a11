"""Causal language models from end to end."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import mega_transformers
from mega_transformers.errors import RecipeError
from mega_transformers.evaluation.texts import encode_documents
from mega_transformers.training.blocks import NextTokenCollator, blocks_of
from mega_transformers.training.evaluate import evaluate_model
from mega_transformers.training.recipe import recipe_of
from mega_transformers.training.run import RunOptions, run
from mega_transformers.training.tasks import task_of


@pytest.fixture
def recipe(causal_recipe_dict):
    return recipe_of(causal_recipe_dict)


@pytest.fixture(scope="module")
def finished(module_recipe, data_dir, tmp_path_factory):
    output = tmp_path_factory.mktemp("finished") / "run"
    results = run(recipe_of(module_recipe("causal-lm")), RunOptions(data_dir, output, command="mega train tiny.yaml"))
    return output, results


def line_of(folder, data_dir):
    """All test documents as one line of ids."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    documents = (data_dir / "test.txt").read_text().splitlines()
    return [token for ids in encode_documents(tokenizer, documents) for token in (0, *ids, 2)]


def test_the_trainers_loss_is_the_mean_over_predicted_tokens(recipe, finished, data_dir):
    output, results = finished
    model = AutoModelForCausalLM.from_pretrained(output / "checkpoint-12").eval()
    rows = list(blocks_of(recipe, "validation", AutoTokenizer.from_pretrained(output / "tokenizer"), data_dir))
    batch = NextTokenCollator()(rows)
    with torch.no_grad():
        loss = model(**batch).loss.item()
        logits = model(batch["input_ids"], position_ids=batch["position_ids"]).logits[:, :-1]
    there = batch["labels"][:, 1:] != -100
    expected = torch.nn.functional.cross_entropy(logits[there], batch["labels"][:, 1:][there])
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    state = json.loads((output / "checkpoint-12" / "trainer_state.json").read_text())
    assert state["log_history"][-1]["eval_cross_entropy"] == pytest.approx(loss, rel=1e-5)
    assert state["log_history"][-1]["eval_tokens"] == int(there.sum())
    assert results["steps"] == 12


def test_every_token_of_the_text_counts(finished, data_dir):
    output, results = finished
    line = line_of(output / "model", data_dir)
    documents = (data_dir / "test.txt").read_text().splitlines()
    assert results["scores"]["test"].keys() == {"model", "model, state carried", "trigram"}
    for score in results["scores"]["test"].values():
        assert score["tokens"] == len(line) - 1
        assert score["characters"] == sum(map(len, documents))
        assert score["words"] == score["raw_words"] == sum(len(document.split()) for document in documents)
        nats = score["cross_entropy"] * score["tokens"]
        assert score["bits_per_character"] == pytest.approx(nats / math.log(2) / score["characters"])
        assert score["word_perplexity"] == pytest.approx(math.exp(nats / score["words"]))
    assert results["scores"]["validation"].keys() == results["scores"]["test"].keys()
    # the state carried on is one forward pass over everything
    ids = torch.tensor([line])
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(output / "checkpoint-12").eval()
        loss = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:]).item()
    assert results["scores"]["test"]["model, state carried"]["cross_entropy"] == pytest.approx(loss, rel=1e-5)


def test_the_trigram_model_is_counted_on_the_train_blocks(recipe, finished, data_dir):
    output, results = finished
    tokenizer = AutoTokenizer.from_pretrained(output / "tokenizer")
    train = np.concatenate([row["input_ids"] for row in blocks_of(recipe, "train", tokenizer, data_dir)]).tolist()
    line = line_of(output / "model", data_dir)
    from collections import Counter

    ordinary = len(tokenizer) - 3  # padding, the unknown token and the mask are never predicted
    grams = [Counter(zip(*(train[k:] for k in range(n)))) for n in (1, 2, 3)]
    followers = [None] + [Counter(gram[:-1] for gram in grams[n]) for n in (1, 2)]
    totals = [None]
    for n in (1, 2):
        total = Counter()
        for gram, count in grams[n].items():
            total[gram[:-1]] += count
        totals.append(total)

    def probability(gram):
        if len(gram) == 1:
            return (grams[0][gram] + 1) / (len(train) + ordinary)
        n, shorter = len(gram) - 1, probability(gram[1:])
        types = followers[n][gram[:-1]]
        return (grams[n][gram] + types * shorter) / (totals[n][gram[:-1]] + types) if types else shorter

    nats = -math.log(probability(tuple(line[:2])))
    nats -= sum(math.log(probability(tuple(line[place : place + 3]))) for place in range(len(line) - 2))
    assert results["scores"]["test"]["trigram"]["cross_entropy"] == pytest.approx(nats / (len(line) - 1))


def test_export_scores_alike(recipe, finished, data_dir):
    output, results = finished
    checkpoint = recipe.model_copy(update={"model": {"checkpoint": str(output / "model")}, "tokenizer": None})
    again = evaluate_model(checkpoint, data_dir)["scores"]["test"]
    assert again.keys() == results["scores"]["test"].keys()
    for name, score in again.items():
        assert score["cross_entropy"] == pytest.approx(results["scores"]["test"][name]["cross_entropy"], rel=1e-3)


def test_a_prompt_is_gone_on_with(finished):
    folder = finished[0] / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("the cat").input_ids[0] == tokenizer.bos_token_id
    assert tokenizer("the cat").input_ids[-1] != tokenizer.eos_token_id
    assert tokenizer.decode(tokenizer("the cat").input_ids, skip_special_tokens=True) == "the cat"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.use_cache and {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    (answer,) = pipeline("text-generation", model=str(folder), device="cpu")("the cat", max_new_tokens=5)
    assert answer["generated_text"].startswith("the cat")


def test_the_card_tells_what_was_done(finished):
    output, results = finished
    card = (output / "model" / "README.md").read_text()
    score = results["scores"]["test"]
    size = f"{results['parameters']:,}"
    for text in (
        "pipeline_tag: text-generation",
        "- causal-lm",
        "text: The cat",
        'model("The cat", max_new_tokens=50, do_sample=True)',
        "| bits per character | word perplexity | per raw word |",
        f"| test | tiny-clm | {size} | {score['model']['bits_per_character']:.4f} |",
        f"| test | tiny-clm, state carried | {size} | {score['model, state carried']['bits_per_character']:.4f} |",
        f"| test | trigram |  | {score['trigram']['bits_per_character']:.4f} |",
    ):
        assert text in card, text
    log = json.loads((output / "model" / "training_log.json").read_text())
    assert [entry["step"] for entry in log if "eval_loss" in entry] == [4, 8, 12]


def test_the_tokenizer_needs_ends_of_documents(recipe, data_dir, tiny_tokenizer_folder):
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_folder, config=mega_transformers.MegaConfig())
    tokenizer.mask_token = None
    task = task_of(recipe, data_dir)
    task.check_tokenizer(tokenizer)
    tokenizer.sep_token = None
    with pytest.raises(RecipeError, match="no sep_token, which causal-lm needs"):
        task.check_tokenizer(tokenizer)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("is_decoder", False, r"model\.is_decoder=False would let .* causal-lm needs model\.is_decoder=True"),
        ("bidirectional", True, "model: is_decoder=True needs bidirectional=False"),
    ],
)
def test_a_model_that_sees_the_future_is_refused_before_any_work(
    causal_recipe_dict, data_dir, tmp_path, field, value, message
):
    causal_recipe_dict["model"][field] = value
    with pytest.raises(RecipeError, match=message):
        run(recipe_of(causal_recipe_dict), RunOptions(data_dir, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
