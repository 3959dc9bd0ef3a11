"""A run from its recipe to the exported model; what interrupts it, and how it continues."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import signal

import numpy as np
import pytest
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForMaskedLM, AutoTokenizer, Trainer, TrainerCallback

from mega_transformers.errors import RecipeError
from mega_transformers.training import run as run_module
from mega_transformers.training.blocks import blocks_of
from mega_transformers.training.evaluate import dry_run, evaluate_model
from mega_transformers.training.recipe import recipe_of
from mega_transformers.training.run import RunOptions, run
from mega_transformers.training.tasks import task_of
from mega_transformers.training.trainer import Stop, decayed_parameters, last_checkpoint


@pytest.fixture(scope="module")
def finished_run(module_recipe, data_dir, tmp_path_factory):
    output = tmp_path_factory.mktemp("finished") / "run"
    recipe = recipe_of(module_recipe("masked-lm"))
    return output, run(recipe, RunOptions(data_dir, output, command="mega train tiny.yaml"))


@pytest.fixture
def finished(recipe, finished_run):
    return recipe, *finished_run


def weights_of(folder):
    return AutoModelForMaskedLM.from_pretrained(folder).state_dict()


def assert_same_weights(first, second):
    first, second = weights_of(first), weights_of(second)
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name


def losses_of(output):
    state = json.loads((last_checkpoint(output) / "trainer_state.json").read_text())
    return [(entry["step"], entry.get("loss"), entry.get("eval_loss")) for entry in state["log_history"]]


def test_interrupted_training_gives_the_same_weights(finished, data_dir, tmp_path, with_trainer, signal_after):
    recipe, whole, _ = finished
    # interrupted in the second epoch
    assert 9 / 12 * json.loads((whole / "checkpoint-12" / "trainer_state.json").read_text())["epoch"] > 1
    output = tmp_path / "interrupted"
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        original = run_module.make_trainer

        def with_signal(*args):
            trainer = original(*args)
            trainer.add_callback(signal_after(9))
            return trainer

        patch.setattr(run_module, "make_trainer", with_signal)
        assert run(recipe, RunOptions(data_dir, output)) is None
    assert signal.getsignal(signal.SIGTERM) is handler
    assert (output / "checkpoint-10").is_dir() and not (output / "model").exists()

    before = seconds_of(output / "checkpoint-10")
    results = run(recipe, RunOptions(data_dir, output))
    assert results["steps"] == 12
    assert_same_weights(whole / "checkpoint-12", output / "checkpoint-12")
    assert losses_of(output) == losses_of(whole)
    # the seconds of all parts count
    assert before["steps"] == 10 and seconds_of(output / "checkpoint-12")["steps"] == 12
    assert results["seconds_per_step"] * 12 > before["total"] > 0
    assert results["processor_seconds_per_step"] * 12 > before["processor_total"] > 0


def seconds_of(checkpoint):
    return json.loads((checkpoint / "trainer_state.json").read_text())["stateful_callbacks"]["StepTimes"]["attributes"]


def test_a_checkpoint_of_an_older_version_has_no_seconds(finished, data_dir, tmp_path):
    recipe, whole, _ = finished
    output = tmp_path / "run"
    assert run(recipe, RunOptions(data_dir, output, max_seconds=0)) is None
    state = json.loads((output / "checkpoint-1" / "trainer_state.json").read_text())
    del state["stateful_callbacks"]["StepTimes"]
    (output / "checkpoint-1" / "trainer_state.json").write_text(json.dumps(state))
    assert run(recipe, RunOptions(data_dir, output))["steps"] == 12
    assert seconds_of(output / "checkpoint-12")["steps"] == 11
    assert_same_weights(whole / "checkpoint-12", output / "checkpoint-12")


def test_a_checkpoint_cut_short_is_passed_over(recipe, data_dir, tmp_path):
    output = tmp_path / "run"
    before = run(recipe, RunOptions(data_dir, output))
    for name, content in (("checkpoint-99", None), ("checkpoint-98", "{"), ("checkpoint-x", "{}")):
        (output / name).mkdir()
        (output / name / "model.safetensors").write_bytes(b"cut")
        if content is not None:
            (output / name / "trainer_state.json").write_text(content)
    assert last_checkpoint(output) == output / "checkpoint-12"
    assert last_checkpoint(tmp_path) is None
    # what is finished is evaluated and exported again, and not trained
    assert run(recipe, RunOptions(data_dir, output))["scores"] == before["scores"]


def test_time_ends_a_run_and_the_next_one_continues(finished, data_dir, tmp_path):
    """The time is up at once, so that each run makes one step."""
    recipe, whole, _ = finished
    output = tmp_path / "run"
    for step in (1, 2, 3):
        assert run(recipe, RunOptions(data_dir, output, max_seconds=0)) is None
        assert last_checkpoint(output).name == f"checkpoint-{step}"
    assert run(recipe, RunOptions(data_dir, output))["steps"] == 12
    assert_same_weights(whole / "checkpoint-12", output / "checkpoint-12")


def test_a_second_signal_ends_at_once():
    said = []
    with Stop(said.append):
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            signal.getsignal(signal.SIGTERM)  # the handler runs before this returns
    assert len(said) == 1 and said[0].startswith("SIGTERM: saving a checkpoint")


def test_export_loads_as_float32_and_scores_alike(finished, data_dir):
    recipe, output, results = finished
    folder = output / "model"
    model = AutoModelForMaskedLM.from_pretrained(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.sparse_prediction is False and not model.training

    with safe_open(folder / "model.safetensors", framework="pt") as file:
        dtypes = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert {dtype for name, dtype in dtypes.items() if "ema_gate." in name} == {"F32"}
    assert {dtype for name, dtype in dtypes.items() if "ema_gate." not in name} == {"F16"}
    trained = weights_of(output / "checkpoint-12")
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, trained[name], rtol=1e-3, atol=1e-6, msg=name)

    checkpoint = recipe.model_copy(update={"model": {"checkpoint": str(folder)}, "tokenizer": None})
    again = evaluate_model(checkpoint, data_dir, per_device_eval_batch_size=3)["scores"]
    assert again.keys() == results["scores"].keys() == {"validation", "test"}
    for role, systems in again.items():
        for name, score in systems.items():
            assert score == pytest.approx(results["scores"][role][name], rel=1e-3), (role, name)


def test_the_evaluation_is_the_models_loss(finished, data_dir):
    recipe, output, results = finished
    model = AutoModelForMaskedLM.from_pretrained(output / "checkpoint-12").eval()
    model.config.sparse_prediction = False
    tokenizer = AutoTokenizer.from_pretrained(output / "tokenizer")
    task = task_of(recipe, data_dir)
    rows = list(blocks_of(recipe, "validation", tokenizer, data_dir))
    batch = task._collator(tokenizer, None)(rows)
    with torch.no_grad():
        found = model(**batch)
    hidden = batch["labels"] != -100
    score = results["scores"]["validation"]["model"]
    assert score["cross_entropy"] == pytest.approx(found.loss.item(), rel=1e-5)
    assert score["perplexity"] == pytest.approx(math.exp(score["cross_entropy"]))
    assert score["accuracy"] == pytest.approx(
        (found.logits.argmax(-1) == batch["labels"])[hidden].float().mean().item()
    )
    assert score["tokens"] == int(hidden.sum())
    logged = json.loads((output / "checkpoint-12" / "trainer_state.json").read_text())["log_history"][-1]
    assert logged["eval_cross_entropy"] == pytest.approx(score["cross_entropy"])
    # the baselines read the same masks: a unigram model of the train blocks
    train = np.concatenate([row["input_ids"] for row in blocks_of(recipe, "train", tokenizer, data_dir)])
    counts = np.bincount(train, minlength=280).astype(float)
    counts[tokenizer.all_special_ids] = -1
    probability = (counts + 1) / (counts + 1).sum()
    nats = -np.log(probability[batch["labels"][hidden].numpy()]).mean()
    assert results["scores"]["validation"]["unigram"]["cross_entropy"] == pytest.approx(nats)


def test_the_card_tells_what_was_done(finished):
    _, output, results = finished
    card = (output / "model" / "README.md").read_text()
    score = results["scores"]["test"]
    for text in (
        "pipeline_tag: fill-mask",
        "license: cc0-1.0",
        "text: The <mask> sat.",
        "`mega train tiny.yaml`",
        "Licence: CC0. Nobody.",
        f"| test | tiny | {results['parameters']:,} | {score['model']['cross_entropy']:.4f} |",
        f"| test | bigram |  | {score['bigram']['cross_entropy']:.4f} |",
        "| examples seen | 192 (1.50 epochs) |",
    ):
        assert text in card, text
    assert str(output) not in card
    folder = output / "model"
    assert (folder / "loss.png").stat().st_size > 1000 and "(loss.png)" in card
    log = json.loads((folder / "training_log.json").read_text())
    assert [entry["step"] for entry in log if "loss" in entry] == [2, 4, 6, 8, 10, 12]
    assert [entry["step"] for entry in log if "eval_loss" in entry] == [4, 8, 12]
    assert json.loads((folder / "results.json").read_text()) == json.loads((output / "results.json").read_text())
    assert not list(output.glob("**/*.partial"))


def test_another_recipe_does_not_go_on(finished, data_dir):
    recipe, output, _ = finished
    before = (output / "recipe.json").read_text()
    other = recipe.model_copy(update={"sequence_length": 16})
    with pytest.raises(RecipeError, match="was begun with sequence_length=32, the recipe now says 16"):
        run(other, RunOptions(data_dir, output))
    with pytest.raises(RecipeError, match=r"--no-resume, but .* is not empty"):
        run(recipe, RunOptions(data_dir, output, resume=False))
    assert (output / "recipe.json").read_text() == before


def test_longer_training_goes_on(recipe_dict, data_dir, tmp_path):
    recipe_dict["training"] |= {"max_steps": 4, "eval_steps": 2, "save_steps": 2}
    output = tmp_path / "run"
    assert run(recipe_of(recipe_dict), RunOptions(data_dir, output))["steps"] == 4
    recipe_dict["training"]["max_steps"] = 6
    assert run(recipe_of(recipe_dict), RunOptions(data_dir, output))["steps"] == 6
    del recipe_dict["training"]["max_steps"]
    for epochs in (1, 2):
        recipe_dict["training"]["num_train_epochs"] = epochs
        assert run(recipe_of(recipe_dict), RunOptions(data_dir, tmp_path / "epochs"))["epochs"] == epochs


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.0.train", ["none.txt"], r"Sentences: no file matches 'none\.txt' in .*; give the folder .* --data-dir"),
        ("model.hidden_sise", 8, "model.hidden_sise is not a field of MegaConfig; did you mean hidden_size"),
        ("model.normalization_type", "batch", "model: .*normalization_type='batch'"),
        ("model.hidden_size", "wide", "model: .*hidden_size"),
        ("model.attention_activation", "relu", "attention_activation='relu'"),
        ("training.learning_rat", 1, r"training\.learning_rat is unknown"),
        ("tokenizer.kind", "symbols", "tokenizer: give one of"),
    ],
)
def test_mistakes_are_told_before_any_work(recipe_dict, data_dir, tmp_path, key, value, message):
    from mega_transformers.training.recipe import _set

    _set(recipe_dict, key.split("."), value, key)
    with pytest.raises(RecipeError, match=message):
        run(recipe_of(recipe_dict), RunOptions(data_dir, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_weight_decay_spares_what_is_no_matrix(finished):
    model = AutoModelForMaskedLM.from_pretrained(finished[1] / "model")
    decayed = set(decayed_parameters(model))
    everything = dict(model.named_parameters())
    assert "mega.embedding_layer.word_embeddings.weight" in decayed
    assert any("v_proj.weight" in name for name in decayed)
    for name in everything.keys() - decayed:
        assert name.endswith("bias") or any(
            part in name for part in ("norm", "ema_gate.", "qk_weight", "rel_pos_bias.", "scalar")
        )
    assert not any(part in name for name in decayed for part in ("ema_gate", "qk_", "rel_pos_bias", "bias", "norm"))


def test_the_optimizer_decays_these(recipe_dict, data_dir, tmp_path, with_trainer):
    recipe_dict["training"] |= {"max_steps": 1, "weight_decay": 0.5}
    (trainer,) = [with_trainer(), run(recipe_of(recipe_dict), RunOptions(data_dir, tmp_path / "run"))][0]
    decayed = set(decayed_parameters(trainer.model))
    for group in trainer.optimizer.optimizer.param_groups:
        members = {id(parameter) for parameter in group["params"]}
        names = {name for name, parameter in trainer.model.named_parameters() if id(parameter) in members}
        assert names and (names <= decayed) == (group["weight_decay"] == 0.5)


def test_a_second_run_in_the_same_folder_is_refused(recipe_dict, data_dir, tmp_path, with_trainer):
    """The first one stands still while it trains; when it has ended, its folder is free, for --no-resume too."""
    output = tmp_path / "run"
    output.mkdir()
    recipe_dict["training"]["max_steps"] = 1
    recipe = recipe_of(recipe_dict)
    with FileLock(output / run_module.LOCK), pytest.raises(RecipeError, match="another run is writing to it"):
        run(recipe, RunOptions(data_dir, output))
    assert {path.name for path in output.iterdir()} <= {run_module.LOCK}
    seen = []

    class StillLocked(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            with pytest.raises(Timeout):
                FileLock(output / run_module.LOCK, timeout=0).acquire()
            seen.append(state.global_step)

    with_trainer(lambda trainer: trainer.add_callback(StillLocked()))
    assert run(recipe, RunOptions(data_dir, output, resume=False))["steps"] == 1
    assert seen == [0]
    with FileLock(output / run_module.LOCK, timeout=0):
        pass


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
    ],
)
def test_a_full_disk_keeps_the_last_good_checkpoint(recipe, data_dir, tmp_path, monkeypatch, error):
    """Whichever library writes when the disk is full: each has an error of its own."""
    output = tmp_path / "run"
    save = Trainer._save_optimizer_and_scheduler

    def full(self, folder):
        if self.state.global_step == 8:
            raise error
        save(self, folder)

    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", full)
    with pytest.raises(RecipeError, match=r"is full; make space there, and the same command continues from .*-4"):
        run(recipe, RunOptions(data_dir, output))
    assert (output / "checkpoint-4").is_dir() and not (output / "checkpoint-8").exists()
    assert not list(output.rglob("*.partial"))
    monkeypatch.undo()
    assert run(recipe, RunOptions(data_dir, output))["steps"] == 12


def test_other_errors_are_not_taken_for_a_full_disk(recipe, data_dir, tmp_path, monkeypatch):
    def broken(self, folder):
        raise RuntimeError("a defect")

    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        run(recipe, RunOptions(data_dir, tmp_path / "run"))


def test_a_full_disk_while_rows_are_made(recipe, data_dir, tmp_path, monkeypatch):
    from mega_transformers.training import data

    def full(*args, **kwargs):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("An error occurred while generating the dataset") from error

    monkeypatch.setattr(data, "load_dataset", full)
    with pytest.raises(RecipeError, match="is full; make space there, and the same command begins again"):
        run(recipe, RunOptions(data_dir, tmp_path / "run"))


class Poison(TrainerCallback):
    """A weight that is no number, from a step on."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            with torch.no_grad():
                next(model.parameters())[:] = float("nan")


@pytest.mark.parametrize("step", [6, 7])  # just before a checkpoint, and before a loss is logged
def test_a_loss_that_is_no_number_ends_the_run(recipe, data_dir, tmp_path, with_trainer, step):
    output = tmp_path / "run"
    with_trainer(lambda trainer: trainer.add_callback(Poison(step)))
    with pytest.raises(RecipeError) as caught:
        run(recipe, RunOptions(data_dir, output))
    message = str(caught.value)
    assert "the loss became nan" in message and f"the last good checkpoint is {output / 'checkpoint-4'}." in message
    assert "Lower training.learning_rate" in message
    assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-4"]
    assert all(weight.isfinite().all() for weight in weights_of(output / "checkpoint-4").values())


def test_a_learning_rate_that_is_far_too_high(recipe_dict, data_dir, tmp_path):
    recipe_dict["training"] |= {"learning_rate": 1e38, "warmup_steps": 0, "logging_steps": 1, "max_grad_norm": 0}
    with pytest.raises(RecipeError, match=r"the loss became (nan|inf) .* before step .*there is no checkpoint yet"):
        run(recipe_of(recipe_dict), RunOptions(data_dir, tmp_path / "run"))


@pytest.mark.parametrize("interrupted", [False, True])
def test_early_stopping(recipe_dict, data_dir, tmp_path, with_trainer, signal_after, interrupted):
    """The loss is best after step 4, and no better in the two evaluations that follow."""
    losses = iter([3.0, 2.0, 2.5, 2.2, 1.0, 1.0])
    recipe_dict |= {"early_stopping": 2}
    recipe_dict["training"] |= {"eval_steps": 2, "save_steps": 2}

    def change(trainer):
        trainer.compute_metrics = None
        evaluate = trainer.evaluation_loop

        def evaluation_loop(*args, **kwargs):
            output = evaluate(*args, **kwargs)
            if "eval_loss" in output.metrics:
                output.metrics["eval_loss"] = next(losses)
            return output

        trainer.evaluation_loop = evaluation_loop

    trainers = with_trainer(change)
    output = tmp_path / "run"
    if interrupted:
        options = RunOptions(data_dir, output)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Stop, "on_step_begin", signal_after(6).on_step_begin)
            assert run(recipe_of(recipe_dict), options) is None
        assert last_checkpoint(output).name == "checkpoint-7"
        trainers.clear()
    results = run(recipe_of(recipe_dict), RunOptions(data_dir, output))
    assert results["steps"] == 8
    best = weights_of(output / "checkpoint-4")
    for name, weight in trainers[0].model.state_dict().items():
        assert torch.equal(weight, best[name]), name
    # begun again, it trains nothing and ends with the same model
    assert run(recipe_of(recipe_dict), RunOptions(data_dir, output))["steps"] == 8
    for name, weight in trainers[1].model.state_dict().items():
        assert torch.equal(weight, best[name]), name


def test_streamed_rows_are_trained_on_and_resumed(recipe_dict, data_dir, tmp_path, with_trainer, signal_after):
    recipe_dict["data"][0]["streaming"] = True
    recipe = recipe_of(recipe_dict)
    whole = tmp_path / "whole"
    results = run(recipe, RunOptions(data_dir, whole))
    assert results["steps"] == 12
    # nothing is counted on a stream; evaluations are not streamed
    assert results["scores"]["test"].keys() == {"model"} and results["scores"]["test"]["model"]["tokens"] > 100
    output = tmp_path / "interrupted"
    with_trainer(lambda trainer: trainer.add_callback(signal_after(5)))
    assert run(recipe, RunOptions(data_dir, output)) is None
    assert run(recipe, RunOptions(data_dir, output))["steps"] == 12
    assert_same_weights(whole / "checkpoint-12", output / "checkpoint-12")


def test_a_tokenizer_that_is_given(recipe_dict, finished_run, data_dir, tmp_path):
    folder = data_dir / "given-tokenizer"
    AutoTokenizer.from_pretrained(finished_run[0] / "tokenizer").save_pretrained(folder)
    recipe_dict["tokenizer"] = {"path": "given-tokenizer"}
    recipe_dict["training"]["max_steps"] = 1
    run(recipe_of(recipe_dict), RunOptions(data_dir, tmp_path / "run"))
    assert not (tmp_path / "run" / "tokenizer").exists()
    exported = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert exported.get_vocab() == AutoTokenizer.from_pretrained(folder).get_vocab()
    recipe_dict["tokenizer"] = {"path": str(tmp_path)}
    with pytest.raises(RecipeError, match=re.escape(f"no tokenizer can be loaded from {tmp_path}")):
        run(recipe_of(recipe_dict), RunOptions(data_dir, tmp_path / "other"))


def test_a_dry_run_keeps_nothing(recipe_dict, data_dir, tmp_path, monkeypatch, finished_run):
    monkeypatch.chdir(tmp_path)
    plan = dry_run(recipe_of(recipe_dict), data_dir)
    assert plan["parameters"] == finished_run[1]["parameters"] and plan["steps"] == 12
    assert plan["rows"]["train"] > 100 and plan["rows"].keys() == {"train", "validation", "test"}
    assert 0 < plan["seconds_per_step"] < 5 and plan["hours"] == pytest.approx(12 * plan["seconds_per_step"] / 3600)
    assert plan["memory"] > 10**6 and plan["device"] == "cpu"
    assert not list(tmp_path.iterdir())
    del recipe_dict["training"]["max_steps"]
    recipe_dict["training"]["num_train_epochs"] = 3
    assert dry_run(recipe_of(recipe_dict), data_dir)["steps"] == 3 * math.ceil(plan["rows"]["train"] / 16)
