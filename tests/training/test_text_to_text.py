"""Training on pairs from end to end, with small models."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from typer.testing import CliRunner

import mega_transformers  # noqa: F401
from mega_transformers.cli import app
from mega_transformers.errors import RecipeError
from mega_transformers.evaluation.decoding import encode_sources, encode_targets, generate_outputs
from mega_transformers.evaluation.metrics import score
from mega_transformers.training.export import write_json
from mega_transformers.training.recipe import _set, plain, recipe_of
from mega_transformers.training.run import RunOptions, run
from mega_transformers.training.tasks import task_of


@pytest.fixture
def recipe(pairs_recipe_dict):
    return recipe_of(pairs_recipe_dict)


@pytest.fixture(scope="module")
def finished_run(module_recipe, pairs_dir, tmp_path_factory):
    output = tmp_path_factory.mktemp("finished") / "run"
    recipe = recipe_of(module_recipe("text-to-text"))
    return output, run(recipe, RunOptions(pairs_dir, output, command="mega train tiny.yaml"))


@pytest.fixture
def finished(recipe, finished_run):
    return recipe, *finished_run


def state_of(checkpoint):
    return json.loads((checkpoint / "trainer_state.json").read_text())


def weights_of(folder):
    return AutoModelForSeq2SeqLM.from_pretrained(folder).state_dict()


def test_interrupted_training_gives_the_same_weights(finished, pairs_dir, tmp_path, with_trainer, signal_after):
    recipe, whole, results = finished
    output = tmp_path / "interrupted"
    first = []

    def interrupt_the_first(trainer):
        if not first:
            trainer.add_callback(signal_after(9))
        first.append(trainer)

    with_trainer(interrupt_the_first)
    assert run(recipe, RunOptions(pairs_dir, output)) is None
    assert (output / "checkpoint-10").is_dir() and not (output / "model").exists()
    again = run(recipe, RunOptions(pairs_dir, output))
    assert again["steps"] == 12 and again["scores"] == results["scores"]
    expected, got = weights_of(whole / "checkpoint-12"), weights_of(output / "checkpoint-12")
    for name, weight in expected.items():
        assert torch.equal(weight, got[name]), name


def test_the_best_checkpoint_is_the_result(recipe, pairs_dir, tmp_path, with_trainer):
    """The metric says that the model is best after step 8."""
    rates = iter([0.5, 0.2, 0.3])

    def change(trainer):
        trainer.compute_metrics = lambda prediction: {"symbol_error_rate": next(rates)}

    trainers = with_trainer(change)
    output = tmp_path / "run"
    assert run(recipe, RunOptions(pairs_dir, output))["steps"] == 12
    assert sorted(path.name for path in output.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-8"]
    best, last = weights_of(output / "checkpoint-8"), weights_of(output / "checkpoint-12")
    for name, weight in trainers[0].model.state_dict().items():
        assert torch.equal(weight, best[name]), name
    assert any(not torch.equal(best[name], last[name]) for name in best)
    # begun again, it trains nothing and ends with the same model
    assert run(recipe, RunOptions(pairs_dir, output))["steps"] == 12
    for name, weight in trainers[1].model.state_dict().items():
        assert torch.equal(weight, best[name]), name


def test_metrics_while_training_are_those_of_greedy_outputs(finished, pairs_dir):
    recipe, output, _ = finished
    task = task_of(recipe, pairs_dir)
    tokenizer = AutoTokenizer.from_pretrained(output / "tokenizer")
    task.prepare(tokenizer)
    assert len(task.shown) == 10
    model = AutoModelForSeq2SeqLM.from_pretrained(output / "checkpoint-12").eval()
    sources = encode_sources(tokenizer, [source for source, _ in task.shown])
    outputs = dict(generate_outputs(model, tokenizer, sources, max_new_tokens=12, num_beams=1, do_sample=False))
    references = [targets for _, targets in task.shown]
    expected = score([outputs[index][0] for index in range(10)], references, recipe.generation.metrics)
    logged = state_of(output / "checkpoint-12")["log_history"][-1]
    for name, value in expected.items():
        assert logged[f"eval_{name}"] == pytest.approx(value), name

    # the loss is of the first references, each token alike, and not smoothed as in training
    nats, tokens = 0.0, 0
    for source, targets in zip(sources, references):
        labels = torch.tensor(encode_targets(tokenizer, targets[:1]))
        with torch.no_grad():
            nats += model(input_ids=torch.tensor([source]), labels=labels).loss.item() * labels.numel()
        tokens += labels.numel()
    assert recipe.training["label_smoothing_factor"] > 0
    assert logged["eval_loss"] == pytest.approx(nats / tokens, rel=1e-4)


@pytest.mark.parametrize("architecture", ["mega", "bart"])
def test_the_training_loss_is_the_smoothed_cross_entropy(
    pairs_recipe_dict, pairs_dir, tmp_path, with_trainer, architecture
):
    pairs_recipe_dict["model"]["architecture"] = architecture
    pairs_recipe_dict["training"] |= {"max_steps": 1, "eval_steps": 1, "save_steps": 1, "logging_steps": 1}
    seen = []

    def change(trainer):
        original = trainer.compute_loss

        def compute_loss(model, inputs, *args, **kwargs):
            if not model.training:
                return original(model, inputs, *args, **kwargs)
            state = torch.get_rng_state()
            inputs = dict(inputs)
            labels = inputs["labels"]
            with torch.no_grad():
                logits = model(**inputs).logits
            torch.set_rng_state(state)
            loss = original(model, inputs, *args, **kwargs)
            expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)
            seen.append((loss.item(), expected.item(), inputs["decoder_input_ids"][:, 0].unique()))
            return loss

        trainer.compute_loss = compute_loss

    with_trainer(change)
    run(recipe_of(pairs_recipe_dict), RunOptions(pairs_dir, tmp_path / "run"))
    ((loss, expected, starts),) = seen
    assert starts.tolist() == [2]
    assert loss == pytest.approx(expected, rel=1e-5)


def test_export_scores_alike(finished):
    _, output, results = finished
    folder = output / "model"
    assert results["scores"].keys() == {"validation", "test"}
    assert results["scores"]["test"].keys() == {"model, greedy", "model, 2 beams", "nearest neighbour"}
    assert {scores["sources"] for scores in results["scores"]["test"].values()} == {30}
    assert results["signatures"].keys() == {"chrf"}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    settings = model.generation_config
    assert (settings.num_beams, settings.max_new_tokens, settings.use_cache) == (2, 12, True)
    # `generate` as it is makes the outputs of the card
    for sample in results["samples"]:
        ids = model.generate(**tokenizer(sample["source"], return_tensors="pt"))[0]
        assert tokenizer.decode(ids, skip_special_tokens=True) == sample["output"]
    assert results["samples"][0] == {**results["samples"][0], "source": "abba", "references": []}
    assert len(results["samples"]) == 9 and all(sample["references"] for sample in results["samples"][1:])


def test_the_card_tells_what_was_done(finished):
    _, output, results = finished
    card = (output / "model" / "README.md").read_text()
    found = results["scores"]["test"]
    for text in (
        "pipeline_tag: text2text-generation",
        'mega text2text "abba" --model path/to/tiny-pairs',
        'tokenizer("abba".lower(), return_tensors="pt")',
        f"| test | tiny-pairs, 2 beams | {results['parameters']:,} | {found['model, 2 beams']['chrf']:.1f} | "
        f"{found['model, 2 beams']['sequence_error_rate']:.2%} |",
        f"| test | nearest neighbour |  | {found['nearest neighbour']['chrf']:.1f} |",
        f"| abba | {results['samples'][0]['output']} |",
        results["signatures"]["chrf"],
        "150 different sources to train on, 20 for validation and 30 for the test",
        "`mega train tiny.yaml`",
        "| examples seen | 192 ",
        "Licence: CC0. Nobody.",
    ):
        assert text in card, text
    log = json.loads((output / "model" / "training_log.json").read_text())
    assert [entry["step"] for entry in log if "eval_symbol_error_rate" in entry] == [4, 8, 12]


def test_another_architecture_stands_beside_it(finished, pairs_dir, pairs_recipe_dict, tmp_path):
    recipe, whole, before = finished
    output = tmp_path / "run"
    shutil.copytree(whole, output)
    pairs_recipe_dict["name"] = "tiny-bart"
    pairs_recipe_dict["model"]["architecture"] = "bart"
    peer = recipe_of(pairs_recipe_dict)
    results = run(peer, RunOptions(pairs_dir, tmp_path / "peer"))
    state = state_of(tmp_path / "peer" / "checkpoint-12")
    assert state["log_history"][0]["learning_rate"] < 0.005  # of the peer's own section
    again = run(recipe, RunOptions(pairs_dir, output, compare=(tmp_path / "peer",)))
    assert again["scores"] == before["scores"]
    (other,) = again["compared"]
    assert (other["name"], other["scores"]) == ("tiny-bart", results["scores"])
    card = (output / "model" / "README.md").read_text()
    assert f"| tiny-bart | bart | {results['parameters']:,} | 12 |" in card
    assert f"| test | tiny-bart, greedy | {results['parameters']:,} |" in card

    values = plain(peer)
    values["training"]["label_smoothing_factor"] = 0.2
    write_json(tmp_path / "peer" / "recipe.json", values)
    with pytest.raises(RecipeError, match=r"it was trained with training=.*so that more than the model differs"):
        run(recipe, RunOptions(pairs_dir, output, compare=(tmp_path / "peer",)))
    with pytest.raises(RecipeError, match="this is not the output folder of a finished run"):
        run(recipe, RunOptions(pairs_dir, output, compare=(tmp_path,)))


def mega(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_evaluate_judges_files_and_recipes(finished_run, pairs_recipe_file, pairs_dir, tmp_path):
    output, results = finished_run
    numbers = tmp_path / "scores.json"
    arguments = ["evaluate", output / "model", "--recipe", pairs_recipe_file, "--data-dir", pairs_dir]
    result = mega(*arguments, "--json", numbers)
    assert result.exit_code == 0, result.output
    found = json.loads(numbers.read_text())
    assert found["signatures"] == results["signatures"] and found["scores"].keys() == results["scores"].keys()
    for name, scores in found["scores"]["test"].items():
        assert scores == pytest.approx(results["scores"]["test"][name], rel=0.05), name

    file = tmp_path / "some.csv"
    file.write_text("n,word,symbols\n1,abba,AH BH\n2,abba,AH\n3,cd,CH DH\n")
    options = ["--source", "word", "--target", "symbols", "--metric", "exact_match", "--num-beams", 1]
    result = mega("evaluate", output / "model", "--data", file, *options, "--json", numbers)
    assert result.exit_code == 0, result.output
    scores = json.loads(numbers.read_text())["scores"]["test"]
    assert scores.keys() == {"model, greedy"} and scores["model, greedy"].keys() == {"exact_match", "sources"}
    assert scores["model, greedy"]["sources"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data or --recipe: give files, or a recipe"),
        (["--data", "none.tsv"], "there is no file none.tsv"),
        (["--data", "WORDS", "--source", "word"], "there is no column 'word'; there are"),
        (["--data", "WORDS", "--source", 1, "--target", 9], "line 1: there is no column 9; the line has"),
        (["--data", "WORDS", "--source", 1, "--target", 2, "--metric", "rouge"], "'rouge' is unknown"),
        (["--data", "EMPTY", "--source", 1, "--target", 2], "empty.tsv"),
    ],
)
def test_mistakes_of_evaluate_are_one_message(finished_run, pairs_dir, tmp_path, arguments, message):
    (tmp_path / "empty.tsv").write_text("")
    files = {"WORDS": pairs_dir / "words.tsv", "EMPTY": tmp_path / "empty.tsv"}
    result = mega("evaluate", finished_run[0] / "model", *(files.get(argument, argument) for argument in arguments))
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.mega.colour", 8, r"model\.mega\.colour is not a field of MegaConfig"),
        ("model.mega.learning_rate", "fast", r"training\.learning_rate: Input should be a valid number"),
        ("model.mega.learning_rate", -1, r"training\.learning_rate: Input should be greater than 0; got -1"),
        ("training.save_steps", 3, "training: .*load_best_model_at_end"),
        ("data.0.divide", ["nothing.tsv"], r"no file matches 'nothing\.tsv'"),
        ("data.0.target", 3, r"words\.tsv, line 1: there is no column 3; the line has 2"),
        ("split.test", 0.99, "leave nothing to train on"),
    ],
)
def test_mistakes_are_told_before_any_work(pairs_recipe_dict, pairs_dir, tmp_path, key, value, message):
    _set(pairs_recipe_dict, key.split("."), value, key)
    with pytest.raises(RecipeError, match=message):
        run(recipe_of(pairs_recipe_dict), RunOptions(pairs_dir, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_tokenizer_must_end_a_text(recipe, pairs_dir, tiny_tokenizer_folder):
    task = task_of(recipe, pairs_dir)
    tokenizer = task.train_tokenizer()
    task.check_tokenizer(tokenizer)
    tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(RecipeError, match="puts no </s> after a text, which text-to-text needs"):
        task.check_tokenizer(tokenizer)


def test_long_pairs_are_left_out_of_training_only(pairs_recipe_dict, pairs_dir):
    pairs_recipe_dict["sequence_length"] = 8
    task = task_of(recipe_of(pairs_recipe_dict), pairs_dir)
    task.prepare(task.train_tokenizer())
    too_long = [pair for pair in task.pairs["train"] if max(len(pair[0]), len(pair[1].split())) >= 8]
    assert too_long and len(task.rows["train"]) == len(task.pairs["train"]) - len(too_long)
    assert len(task.rows["validation"]) == 10
    assert np.all(np.diff([len(source) for source, _ in task.shown]) >= 0)


def test_every_pair_may_not_be_too_long(pairs_recipe_dict, tmp_path):
    (tmp_path / "words.tsv").write_text("\n".join(f"{'abcdef' * 3}{letter}\tAH" for letter in "abcdefgh"))
    pairs_recipe_dict["split"] = {"validation": 1, "test": 1}
    task = task_of(recipe_of(pairs_recipe_dict), tmp_path)
    with pytest.raises(RecipeError, match="every train pair has more than sequence_length=16 tokens"):
        task.prepare(task.train_tokenizer())


def test_batches_have_similar_lengths_and_an_order_of_their_own(recipe, pairs_dir, tmp_path, with_trainer):
    recipe.training["max_steps"] = 1
    trainers = with_trainer()
    run(recipe, RunOptions(pairs_dir, tmp_path / "run"))
    (trainer,) = trainers
    lengths = np.array(trainer.train_dataset["length"])

    def order(epoch):
        trainer.own_epoch.number = epoch
        return list(trainer._get_train_sampler())

    first = order(0)
    assert first == order(0) != order(1)
    assert set(first) == set(range(len(lengths)))
    batches = [lengths[first[start : start + 16]] for start in range(0, len(first) // 16 * 16, 16)]
    shuffled = np.random.default_rng(0).choice(lengths, (50, 16))
    assert np.mean([np.ptp(batch) for batch in batches]) < 0.8 * np.mean(np.ptp(shuffled, axis=1))
