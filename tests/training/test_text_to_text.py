"""Training on pairs from end to end, with small models."""

from __future__ import annotations

import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, TrainerCallback
from typer.testing import CliRunner

import mega_transformers  # noqa: F401
from mega_transformers.cli import app
from mega_transformers.training import run as run_module
from mega_transformers.training import seq2seq_config, text_to_text
from mega_transformers.training.decoding import encode_sources, encode_targets, generate_outputs
from mega_transformers.training.evaluation import evaluate_pairs, pairs_of_recipe
from mega_transformers.training.pairs import read_file
from mega_transformers.training.recipe import load_recipe
from mega_transformers.training.run import RunOptions, run
from mega_transformers.training.schema import RecipeError
from mega_transformers.training.tokenizer import symbol_tokenizer, train_pair_tokenizer


@pytest.fixture
def recipe(pairs_recipe_dict, write_recipe):
    return load_recipe(write_recipe(pairs_recipe_dict))


@pytest.fixture(scope="module")
def finished_run(pairs_recipe_file, pairs_dir, tmp_path_factory):
    output = tmp_path_factory.mktemp("finished") / "run"
    return output, run(load_recipe(pairs_recipe_file), RunOptions(pairs_dir, output, command="mega train tiny.yaml"))


@pytest.fixture
def finished(recipe, finished_run):
    return recipe, *finished_run


def state_of(checkpoint):
    return json.loads((checkpoint / "trainer_state.json").read_text())


def weights_of(folder):
    return AutoModelForSeq2SeqLM.from_pretrained(folder).state_dict()


def with_trainer(monkeypatch, change):
    """Calls `change` with every trainer that is made; returns a list of them."""
    made = []
    original = run_module.RecipeTrainer.__init__

    def changed(self, *args, **kwargs):
        original(self, *args, **kwargs)
        made.append(self)
        change(self)

    monkeypatch.setattr(run_module.RecipeTrainer, "__init__", changed)
    return made


class SignalAfter(TrainerCallback):
    """Stands for a user's Ctrl-C in a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def test_interrupted_training_gives_the_same_weights(finished, pairs_dir, tmp_path, monkeypatch):
    recipe, whole, _ = finished
    output = tmp_path / "interrupted"
    with monkeypatch.context() as patch:
        with_trainer(patch, lambda trainer: trainer.add_callback(SignalAfter(9)))
        assert run(recipe, RunOptions(pairs_dir, output)) is None
    assert (output / "checkpoint-10").is_dir() and not (output / "model").exists()
    assert run(recipe, RunOptions(pairs_dir, output))["steps"] == 12
    expected, got = weights_of(whole / "checkpoint-12"), weights_of(output / "checkpoint-12")
    for name, weight in expected.items():
        assert torch.equal(weight, got[name]), name


def test_the_best_checkpoint_is_the_result(recipe, pairs_dir, tmp_path, monkeypatch):
    """The metric says that the model is best after step 8."""
    rates = iter([0.5, 0.2, 0.3])
    monkeypatch.setattr(
        text_to_text.PairMaterial, "compute_metrics", lambda self, prediction: {"symbol_error_rate": next(rates)}
    )
    trainers = with_trainer(monkeypatch, lambda trainer: None)
    results = run(recipe, RunOptions(pairs_dir, tmp_path / "run"))
    assert results["steps"] == 12
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-8"]
    best, last = weights_of(tmp_path / "run" / "checkpoint-8"), weights_of(tmp_path / "run" / "checkpoint-12")
    for name, weight in trainers[0].model.state_dict().items():
        assert torch.equal(weight, best[name]), name
    assert any(not torch.equal(best[name], last[name]) for name in best)
    # begun again, it trains nothing and ends with the same model
    assert run(recipe, RunOptions(pairs_dir, tmp_path / "run"))["steps"] == 12
    for name, weight in trainers[1].model.state_dict().items():
        assert torch.equal(weight, best[name]), name


def test_metrics_while_training_are_those_of_greedy_outputs(finished, pairs_dir):
    recipe, output, _ = finished
    material = text_to_text.material(recipe, pairs_dir)
    tokenizer = AutoTokenizer.from_pretrained(output / "tokenizer")
    model = AutoModelForSeq2SeqLM.from_pretrained(output / "checkpoint-12").eval()
    examples = material.examples["validation"][:10]
    sources = encode_sources(tokenizer, [example.source for example in examples])
    outputs = dict(generate_outputs(model, tokenizer, sources, max_new_tokens=12, num_beams=1, do_sample=False))
    expected = text_to_text.score(
        [outputs[index][0] for index in range(10)],
        [example.references for example in examples],
        recipe.generation.metrics,
    )
    logged = state_of(output / "checkpoint-12")["log_history"][-1]
    for name, value in expected.items():
        assert logged[f"eval_{name}"] == pytest.approx(value), name

    nats, tokens = 0.0, 0
    for source, example in zip(sources, examples):
        labels = torch.tensor(encode_targets(tokenizer, [example.references[0]]))
        with torch.no_grad():
            nats += model(input_ids=torch.tensor([source]), labels=labels).loss.item() * labels.numel()
        tokens += labels.numel()
    assert logged["eval_loss"] == pytest.approx(nats / tokens, rel=1e-4)  # not smoothed


@pytest.mark.parametrize("architecture", ["mega", "bart"])
def test_the_training_loss_is_the_smoothed_cross_entropy(recipe, pairs_dir, tmp_path, monkeypatch, architecture):
    recipe.model["architecture"] = architecture
    recipe.schedule.max_steps = 1
    recipe.training |= {"eval_steps": 1, "save_steps": 1, "logging_steps": 1}
    seen = []

    def change(trainer):
        original = trainer.compute_loss

        def compute_loss(model, inputs, **kwargs):
            state = torch.get_rng_state()
            inputs = dict(inputs)
            labels = inputs["labels"]
            with torch.no_grad():
                logits = model(**inputs).logits
            torch.set_rng_state(state)
            loss = original(model, inputs, **kwargs)
            expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)
            seen.append((loss.item(), expected.item(), model.training, inputs["decoder_input_ids"][:, 0].unique()))
            return loss

        trainer.compute_loss = compute_loss

    with_trainer(monkeypatch, change)
    run(recipe, RunOptions(pairs_dir, tmp_path / "run"))
    ((loss, expected, training, starts),) = seen
    assert training and starts.tolist() == [2]
    assert loss == pytest.approx(expected, rel=1e-5)


def test_export_scores_alike(finished, pairs_dir):
    recipe, output, results = finished
    folder = output / "model"
    assert results["scores"].keys() == {"validation", "test"}
    assert results["scores"]["test"].keys() == {"model, greedy", "model, 2 beams", "nearest neighbour"}
    examples = pairs_of_recipe(recipe, pairs_dir)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    scores, signatures = evaluate_pairs(AutoModelForSeq2SeqLM.from_pretrained(folder), tokenizer, examples, recipe)
    assert signatures == results["signatures"] and signatures.keys() == {"chrf"}
    assert scores["model, greedy"]["sources"] == results["test_sources"] == 30
    for name, score in scores.items():
        assert score == pytest.approx(results["scores"]["test"][name], rel=0.05), name
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    settings = model.generation_config
    assert (settings.num_beams, settings.max_new_tokens, settings.use_cache) == (2, 12, True)
    # `generate` as it is makes the outputs of the card
    for sample in results["samples"]:
        ids = model.generate(**tokenizer(sample["source"], return_tensors="pt"))[0]
        assert tokenizer.decode(ids, skip_special_tokens=True) == sample["output"]
    assert results["samples"][0]["source"] == "abba"


def test_the_card_tells_what_was_done(finished):
    _, output, results = finished
    card = (output / "model" / "README.md").read_text()
    score = results["scores"]["test"]
    for text in (
        "pipeline_tag: text2text-generation",
        'mega text2text "abba" --model path/to/tiny-pairs',
        'tokenizer("abba".lower(), return_tensors="pt")',
        f"| test | tiny-pairs, 2 beams | {results['parameters']:,} | "
        f"{score['model, 2 beams']['sequence_error_rate']:.2%} |",
        f"| test | nearest neighbour |  | {score['nearest neighbour']['sequence_error_rate']:.2%} |",
        f"| abba | {results['samples'][0]['output']} |",
        results["signatures"]["chrf"],
        "150 different sources to train on, 20 for validation and 30 for the test",
        "`mega train tiny.yaml`",
        "| pairs seen | 192 ",
        "Licence: CC0. Nobody.",
        "architecture: mega",
    ):
        assert text in card, text
    assert "bart" not in card
    log = json.loads((output / "model" / "training_log.json").read_text())
    assert [entry["step"] for entry in log if "eval_symbol_error_rate" in entry] == [4, 8, 12]


def test_another_architecture_stands_beside_it(finished, pairs_dir, pairs_recipe_dict, write_recipe, tmp_path):
    recipe, whole, before = finished
    output = tmp_path / "run"
    shutil.copytree(whole, output)
    pairs_recipe_dict |= {"name": "tiny-bart"}
    pairs_recipe_dict["model"]["architecture"] = "bart"
    peer = load_recipe(write_recipe(pairs_recipe_dict))
    results = run(peer, RunOptions(pairs_dir, tmp_path / "peer"))
    state = state_of(tmp_path / "peer" / "checkpoint-12")
    assert state["log_history"][0]["learning_rate"] < 0.005  # of the peer's own section
    # the section of the peer may change after a run was begun
    recipe.model["bart"]["learning_rate"] = 0.004
    again = run(recipe, RunOptions(pairs_dir, output, compare=[tmp_path / "peer"]))
    assert again["scores"] == before["scores"]
    (other,) = again["compared"]
    assert (other["architecture"], other["learning_rate"]) == ("bart", 0.005)
    assert other["scores"] == results["scores"] and other["parameters"] == results["parameters"]
    card = (output / "model" / "README.md").read_text()
    assert f"| tiny-bart | bart | {results['parameters']:,} | 0.005 | 12 |" in card
    assert f"| test | tiny-bart, greedy | {results['parameters']:,} |" in card

    peer.training["label_smoothing_factor"] = 0.2
    run_module.write_json(tmp_path / "peer" / "recipe.json", {**vars_of(peer)})
    with pytest.raises(RecipeError, match=r"it was trained with training=.*so that more than the model differs"):
        run(recipe, RunOptions(pairs_dir, output, compare=[tmp_path / "peer"]))
    with pytest.raises(RecipeError, match="this is not the output folder of a finished run"):
        run(recipe, RunOptions(pairs_dir, output, compare=[tmp_path]))


def vars_of(recipe):
    import dataclasses

    return dataclasses.asdict(recipe)


def test_marian_is_built_too(recipe):
    recipe.model |= {"architecture": "marian", "marian": recipe.model.pop("bart")}
    model = seq2seq_config.build_model(recipe, text_to_text.build_config(recipe, 30))
    assert type(model).__name__ == "MarianMTModel"
    ids = torch.tensor([[5, 6, 2]])
    assert model.generate(ids, max_new_tokens=3, num_beams=2)[0, 0] == 2
    assert model.config.forced_eos_token_id is None


def mega(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_evaluate_judges_files_and_recipes(finished_run, pairs_recipe_file, pairs_dir, tmp_path):
    output, results = finished_run
    numbers = tmp_path / "scores.json"
    arguments = ["evaluate", output / "model", "--recipe", pairs_recipe_file, "--data-dir", pairs_dir]
    result = mega(*arguments, "--json", numbers)
    assert result.exit_code == 0, result.output
    found = json.loads(numbers.read_text())
    assert found["signatures"] == results["signatures"]
    assert found["scores"]["model, 2 beams"].keys() == results["scores"]["test"]["model, 2 beams"].keys()
    assert found["scores"]["model, 2 beams"]["sources"] == 30

    file = tmp_path / "some.csv"
    file.write_text("n,word,symbols\n1,abba,AH BH\n2,abba,AH\n3,cd,CH DH\n")
    options = ["--source", "word", "--target", 3, "--metric", "exact_match", "--num-beams", 1, "--json", numbers]
    result = mega("evaluate", output / "model", "--data", file, *options)
    assert result.exit_code == 0, result.output
    scores = json.loads(numbers.read_text())["scores"]
    assert scores.keys() == {"model, greedy"} and scores["model, greedy"].keys() == {"exact_match", "sources"}
    assert scores["model, greedy"]["sources"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data or --recipe: give a file of pairs"),
        (["--data", "none.tsv"], "there is no file none.tsv"),
        (["--data", "WORDS", "--source", "word"], "there is no column 'word' in the first line"),
        (["--data", "WORDS", "--source", 1, "--target", 2, "--metric", "rouge"], "the metric 'rouge' is unknown"),
        (["--data", "EMPTY", "--source", 1, "--target", 2], "there is no pair in"),
    ],
)
def test_mistakes_of_evaluate_are_one_message(finished_run, pairs_dir, tmp_path, arguments, message):
    (tmp_path / "empty.tsv").write_text("\n")
    files = {"WORDS": pairs_dir / "words.tsv", "EMPTY": tmp_path / "empty.tsv"}
    result = mega("evaluate", finished_run[0] / "model", *(files.get(argument, argument) for argument in arguments))
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.architecture", "lstm", "model.architecture='lstm' is unknown; known are mega, bart, marian"),
        ("model.hidden_size", 8, "model.hidden_size is unknown; known are architecture, mega"),
        ("model.mega", 8, "model.mega must be a mapping of the model's fields; got 8"),
        ("model.mega.colour", 8, "model.mega.colour is not a field of MegaConfig"),
        ("model.mega.encoder.colour", 8, r"model\.mega\.encoder\.colour is not a field of MegaConfig"),
        ("model.mega.encoder", 8, r"model\.mega\.encoder must be a mapping"),
        ("model.mega.hidden_size", -8, r"model\.mega: .*hidden_size"),
        ("model.mega.learning_rate", "fast", r"model\.mega\.learning_rate must be a number; got 'fast'"),
        ("generation.best_by", "bleu", "best_by='bleu' is not among metrics"),
        ("generation.metrics", ["rouge"], "the metric 'rouge' is unknown; known are bleu, chrf"),
        ("generation.num_beams", 0, "num_beams=0 must be at least 1"),
        ("generation.num_beams", 10**6, "num_beams=1000000 must be at most 1000"),
        (
            "model.mega.hidden_sise",
            8,
            r"model\.mega\.hidden_sise is not .*; did you mean hidden_size",
        ),
        ("model.mega.encoder.hidden_sise", 8, "is not a field of MegaConfig; did you mean hidden_size"),
        ("model.mega.share_embedings", True, "did you mean share_embeddings"),
        ("model.mega.learning_rate", -1, r"model\.mega\.learning_rate=-1 must be above 0"),
        ("data", [{"name": "a", "license": "b", "train": "c"}], "data is for another task"),
        ("pairs", [], "pairs: no source has the role train"),
        ("tokenizer.vocab_size", 300, "kind='symbols' takes its entries from the train texts"),
        ("tokenizer.kind", "letters", "kind='letters' is unknown; known are bpe, symbols"),
        ("training.save_steps", 3, "training: .*load_best_model_at_end"),
        ("pairs.0.divide", ["nothing.tsv"], r"no file matches 'nothing\.tsv'"),
        ("pairs.0.target", 3, r"words\.tsv, line 1: there is no column 3, it has 2"),
        ("split.test", 0.99, "leave nothing to train on"),
    ],
)
def test_mistakes_are_told_before_any_work(pairs_recipe_dict, write_recipe, pairs_dir, tmp_path, key, value, message):
    from mega_transformers.training.recipe import _assign

    _assign(pairs_recipe_dict, key, value)
    with pytest.raises(RecipeError, match=message):
        run(load_recipe(write_recipe(pairs_recipe_dict)), RunOptions(pairs_dir, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_other_tasks_take_no_pairs(recipe_dict, pairs_recipe_dict, write_recipe):
    recipe_dict["pairs"] = pairs_recipe_dict["pairs"]
    with pytest.raises(RecipeError, match="pairs is for another task; leave it out for masked-lm"):
        load_recipe(write_recipe(recipe_dict))


def test_a_bpe_of_pairs_reads_and_writes_any_text(pairs_dir, tmp_path):
    texts = ["¿Qué hora es?", "The hour is late.", "It's what it is, Qué Qué The The hour hour is is"] * 3
    train_pair_tokenizer(texts, 280, 64).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert [tokenizer.convert_tokens_to_ids(token) for token in ("<s>", "<pad>", "</s>", "<unk>")] == [0, 1, 2, 3]
    for text in [*texts, "naïve 中文", "</s> <pad>", '"quoted" - (so)']:
        (ids,) = encode_targets(tokenizer, [text])
        assert ids[-1] == 2 and ids.count(2) == 1 and 3 not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    # a word at the start is the word behind a space
    assert encode_targets(tokenizer, ["The"])[0][:-1] == encode_targets(tokenizer, ["is The"])[0][-2:-1]
    with pytest.raises(RecipeError, match="vocab_size=5000, but the train texts only give"):
        train_pair_tokenizer(texts, 5000, 64)


def test_symbols_are_letters_and_runs_of_capitals(tmp_path):
    symbol_tokenizer(["cab's", "K AE B Z", "a", "AH"], 16).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    (ids,) = encode_sources(tokenizer, ["Cab's"])
    assert tokenizer.convert_ids_to_tokens(ids) == ["c", "a", "b", "'", "s", "</s>"]
    (ids,) = encode_targets(tokenizer, ["K AE B Z"])
    assert tokenizer.convert_ids_to_tokens(ids) == ["K", "AE", "B", "Z", "</s>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "K AE B Z"
    assert encode_sources(tokenizer, ["é3"]) == [[3, 3, 2]]
    assert len(tokenizer) == 4 + len("abcs'") + len(["K", "AE", "B", "Z", "AH"])


def test_long_pairs_are_left_out_of_training_only(recipe, pairs_dir, tmp_path):
    recipe.sequence_length = 8
    lines = list(read_file(pairs_dir / "words.tsv", 1, 2))
    long = sum(max(len(source), len(target.split())) >= 8 for source, target in lines)
    material = text_to_text.material(recipe, pairs_dir)
    material.prepare(material.train_tokenizer(console := run_module.Console(quiet=True)), tmp_path, console)
    train = material.pairs["train"]
    too_long = [pair for pair in train if max(len(pair[0]), len(pair[1].split())) >= 8]
    assert 0 < len(too_long) <= long and len(material.train) == len(train) - len(too_long)
    assert len(material.validation) == 10
    assert np.all(np.diff([len(example.source) for example in material.judged]) >= 0)
