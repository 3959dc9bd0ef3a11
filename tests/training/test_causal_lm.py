from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import mega_transformers
from mega_transformers.training.causal_lm import check_tokenizer, collator, evaluate
from mega_transformers.training.data import Blocks, text_size, to_blocks
from mega_transformers.training.recipe import load_recipe
from mega_transformers.training.run import RunOptions, run
from mega_transformers.training.schema import RecipeError


@pytest.fixture
def recipe(causal_recipe_dict, write_recipe):
    return load_recipe(write_recipe(causal_recipe_dict))


@pytest.fixture
def finished(recipe, data_dir, tmp_path):
    output = tmp_path / "run"
    results = run(recipe, RunOptions(data_dir, output, command="mega train tiny.yaml"))
    model = AutoModelForCausalLM.from_pretrained(output / "model").eval()
    tokens = np.load(next((output / "tokens").glob("test-*.npy")))
    return output, results, model, tokens


def test_batches_are_their_own_labels(recipe):
    blocks = Blocks(np.arange(40, dtype=np.uint16).reshape(5, 8), seed=0)
    batch = collator(recipe, None, evaluation=False)([blocks[index] for index in (3, 1)])
    assert batch["input_ids"].tolist() == [list(range(24, 32)), list(range(8, 16))]
    assert batch["labels"].tolist() == [[-100, *range(25, 32)], [-100, *range(9, 16)]]


def test_the_trainers_loss_is_the_mean_over_predicted_tokens(recipe, finished):
    _, _, model, tokens = finished
    blocks = Blocks(to_blocks(tokens, 32), seed=0)
    batch = collator(recipe, None, evaluation=True)([blocks[index] for index in range(4)])
    with torch.no_grad():
        loss = model(**batch).loss.item()
        logits = model(batch["input_ids"]).logits
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten())
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def test_every_token_of_the_text_counts(recipe, finished, data_dir):
    _, results, _, tokens = finished
    documents = (data_dir / "test.txt").read_text().split("\n")[:-1]
    assert results["steps"] == 12
    for name in ("model", "model, state carried", "trigram"):
        score = results["scores"]["test"][name]
        assert score["tokens"] == len(tokens) - 1
        assert score["characters"] == sum(map(len, documents))
        assert score["words"] == score["raw_words"] == sum(len(document.split()) for document in documents)
        nats = score["cross_entropy"] * score["tokens"]
        assert score["bits_per_character"] == pytest.approx(nats / math.log(2) / score["characters"])
        assert score["word_perplexity"] == pytest.approx(math.exp(nats / score["words"]))
    assert results["scores"]["validation"].keys() == results["scores"]["test"].keys()


def test_export_scores_alike(recipe, finished, data_dir):
    _, results, model, tokens = finished
    again = evaluate(model, tokens, text_size(recipe.data, "test", data_dir), recipe.sequence_length)
    assert again.keys() == {"model", "model, state carried"}
    for name, score in again.items():
        assert score["cross_entropy"] == pytest.approx(results["scores"]["test"][name]["cross_entropy"], rel=1e-3)


def test_a_prompt_is_gone_on_with(finished):
    folder = finished[0] / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("the cat").input_ids[0] == tokenizer.bos_token_id
    assert tokenizer("the cat").input_ids[-1] != tokenizer.eos_token_id
    assert tokenizer.decode(tokenizer("the cat").input_ids, skip_special_tokens=True) == "the cat"
    write = pipeline("text-generation", model=str(folder), device="cpu")
    (answer,) = write("the cat", max_new_tokens=5, do_sample=False)
    assert answer["generated_text"].startswith("the cat")


def test_the_card_tells_what_was_done(finished):
    output, results, _, _ = finished
    card = (output / "model" / "README.md").read_text()
    score = results["scores"]["test"]
    for text in (
        "pipeline_tag: text-generation",
        "- causal-lm",
        "text: The cat",
        'write("The cat", max_new_tokens=50, do_sample=True)',
        "| bits per character | word perplexity | per raw word |",
        f"| Sentences, test | tiny-clm | {score['model']['bits_per_character']:.3f} |",
        f"| Sentences, test | tiny-clm, state carried | {score['model, state carried']['bits_per_character']:.3f} |",
        f"| Sentences, test | trigram | {score['trigram']['bits_per_character']:.3f} |",
    ):
        assert text in card
    assert "mask" not in card.replace("masked", "")
    log = json.loads((output / "model" / "training_log.json").read_text())
    assert [entry["step"] for entry in log if "eval_loss" in entry] == [4, 8, 12]


def test_the_tokenizer_needs_ends_of_documents(tiny_tokenizer_folder):
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_folder, config=mega_transformers.MegaConfig())
    tokenizer.mask_token = None
    check_tokenizer(tokenizer)
    tokenizer.sep_token = None
    with pytest.raises(RecipeError, match="no sep_token, which causal-lm needs"):
        check_tokenizer(tokenizer)


def test_a_model_that_sees_the_future_is_refused_before_any_work(recipe, data_dir, tmp_path):
    recipe.model["is_decoder"] = False
    with pytest.raises(RecipeError, match=r"causal-lm needs model\.is_decoder=True"):
        run(recipe, RunOptions(data_dir, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
