from __future__ import annotations

import errno
import json
import os
import signal

import pytest
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from transformers import AutoModelForMaskedLM, AutoTokenizer, TrainerCallback

import mega_transformers  # noqa: F401
from mega_transformers.training import data
from mega_transformers.training import run as run_module
from mega_transformers.training.masked_lm import collator, evaluate
from mega_transformers.training.recipe import load_recipe
from mega_transformers.training.run import RunOptions, run
from mega_transformers.training.schedule import Clock, learning_rate_factor
from mega_transformers.training.schema import RecipeError
from mega_transformers.training.trainer import decayed_parameters


@pytest.fixture
def recipe(recipe_dict, write_recipe):
    return load_recipe(write_recipe(recipe_dict))


@pytest.fixture
def finished(recipe, data_dir, tmp_path):
    output = tmp_path / "run"
    results = run(recipe, RunOptions(data_dir, output, command="mega train tiny.yaml"))
    return recipe, output, results


class SignalAfter(TrainerCallback):
    """Stands for a user's Ctrl-C in a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def weights_of(folder):
    return AutoModelForMaskedLM.from_pretrained(folder).state_dict()


def test_interrupted_training_gives_the_same_weights(finished, data_dir, tmp_path, monkeypatch):
    recipe, whole, _ = finished
    assert (whole / "checkpoint-12").is_dir()
    # interrupted in the second epoch
    assert 9 / 12 * json.loads((whole / "checkpoint-12" / "trainer_state.json").read_text())["epoch"] > 1

    output = tmp_path / "interrupted"
    original = run_module.RecipeTrainer.__init__

    def with_signal(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.add_callback(SignalAfter(9))

    monkeypatch.setattr(run_module.RecipeTrainer, "__init__", with_signal)
    handler = signal.getsignal(signal.SIGTERM)
    assert run(recipe, RunOptions(data_dir, output)) is None
    assert signal.getsignal(signal.SIGTERM) is handler
    assert (output / "checkpoint-10").is_dir() and not (output / "model").exists()
    monkeypatch.undo()

    assert run(recipe, RunOptions(data_dir, output))["steps"] == 12
    expected, got = weights_of(whole / "checkpoint-12"), weights_of(output / "checkpoint-12")
    for name, weight in expected.items():
        assert torch.equal(weight, got[name]), name


def test_a_checkpoint_cut_short_is_passed_over(recipe, data_dir, tmp_path, finished):
    _, output, before = finished
    (output / "checkpoint-99").mkdir()
    (output / "checkpoint-99" / "model.safetensors").write_bytes(b"cut")
    assert run(recipe, RunOptions(data_dir, output))["scores"] == before["scores"]


def test_export_loads_as_float32_and_scores_alike(finished):
    recipe, output, results = finished
    folder = output / "model"
    model = AutoModelForMaskedLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.sparse_prediction is False
    assert not model.training

    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="pt") as file:
        dtypes = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert {dtype for name, dtype in dtypes.items() if "ema_gate." in name} == {"F32"}
    assert {dtype for name, dtype in dtypes.items() if "ema_gate." not in name} == {"F16"}
    trained = weights_of(output / "checkpoint-12")
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, trained[name], rtol=1e-3, atol=1e-6, msg=name)

    import numpy as np

    tokens = np.load(next((output / "tokens").glob("test-*.npy")))
    blocks = data.to_blocks(tokens, recipe.sequence_length)
    again = evaluate(model, tokenizer, blocks, recipe.masking, recipe.seed, batch_size=3)
    assert again["model"]["cross_entropy"] == pytest.approx(
        results["scores"]["test"]["model"]["cross_entropy"], rel=1e-3
    )
    assert again["model"]["tokens"] == results["scores"]["test"]["model"]["tokens"]


def test_exact_evaluation_is_the_models_loss(finished):
    recipe, output, _ = finished
    import numpy as np

    model = AutoModelForMaskedLM.from_pretrained(output / "model")
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    tokens = np.load(next((output / "tokens").glob("validation-*.npy")))
    blocks = data.to_blocks(tokens, recipe.sequence_length)
    collate = collator(recipe, tokenizer, evaluation=True)
    examples = data.Blocks(blocks, recipe.seed)
    batch = collate([examples[index] for index in range(len(examples))])
    with torch.no_grad():
        output = model(**batch)
    hidden = batch["labels"] != -100
    right = (output.logits.argmax(-1) == batch["labels"])[hidden].float().mean().item()
    score = evaluate(model, tokenizer, blocks, recipe.masking, recipe.seed)["model"]
    assert score["cross_entropy"] == pytest.approx(output.loss.item(), rel=1e-5)
    assert score["accuracy"] == pytest.approx(right)
    assert score["tokens"] == int(hidden.sum())


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
        f"{score['model']['cross_entropy']:.3f}",
        f"{score['bigram']['accuracy']:.1%}",
        f"{results['parameters']:,}",
    ):
        assert text in card
    assert str(output) not in card
    log = json.loads((output / "model" / "training_log.json").read_text())
    assert [entry["step"] for entry in log if "loss" in entry] == [2, 4, 6, 8, 10, 12]
    assert [entry["step"] for entry in log if "eval_loss" in entry] == [4, 8, 12]
    assert not list(output.glob("*.partial")) and not list(output.glob("**/*.partial"))


def test_another_recipe_does_not_go_on(finished, data_dir):
    recipe, output, _ = finished
    recipe.sequence_length = 16
    with pytest.raises(RecipeError, match="was begun with sequence_length=32, the recipe now says 16"):
        run(recipe, RunOptions(data_dir, output))
    with pytest.raises(RecipeError, match="--no-resume, but"):
        run(recipe, RunOptions(data_dir, output, resume=False))


def test_missing_data_is_told_before_any_work(recipe, tmp_path):
    with pytest.raises(RecipeError, match=r"no file matches 'train\.txt'"):
        run(recipe, RunOptions(tmp_path, tmp_path / "run"))
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


@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_learning_rate_rises_then_falls_to_zero(shape):
    factors = [learning_rate_factor(step, step / 100, 10, shape) for step in range(101)]
    peak = factors.index(max(factors))
    assert peak in (9, 10)
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert factors[-1] == 0 and factors[50] == pytest.approx(0.5)
    assert learning_rate_factor(5, 1.7, 10, shape) == 0


def test_the_clock_ends_training_with_the_learning_rate_at_zero(recipe, data_dir, tmp_path, monkeypatch):
    """Every step takes 10 pretended seconds; 75 of 12 steps' 120 are allowed, 30 of them were used before."""
    now = [0.0]

    class Tick(TrainerCallback):
        def on_substep_end(self, args, state, control, **kwargs):
            now[0] += 10

        on_optimizer_step = on_substep_end

    original = run_module.RecipeTrainer.__init__

    def ticking(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.add_callback(Tick())
        self.clock.time_source = lambda: now[0]
        ticking.trainer = self

    monkeypatch.setattr(run_module.RecipeTrainer, "__init__", ticking)
    recipe.schedule.max_hours = 75 / 3600
    results = run(recipe, RunOptions(data_dir, tmp_path / "run"))
    assert results["steps"] == 8
    assert results["hours"] == pytest.approx(80 / 3600, abs=1e-3)
    assert ticking.trainer.optimizer.param_groups[0]["lr"] == 0
    state = json.loads((tmp_path / "run" / "checkpoint-8" / "trainer_state.json").read_text())
    assert Clock.elapsed_in(state) == 80
    # begun again: the time is used up, and nothing is trained
    before = weights_of(tmp_path / "run" / "checkpoint-8")
    again = run(recipe, RunOptions(data_dir, tmp_path / "run"))
    assert again["steps"] == 8 and not (tmp_path / "run" / "checkpoint-9").exists()
    after = ticking.trainer.model.state_dict()
    for name, weight in before.items():
        assert torch.equal(weight, after[name]), name


def test_a_second_run_in_the_same_folder_is_refused(recipe, data_dir, tmp_path):
    """The first one stands still while it trains; when it has ended, its folder is free, for --no-resume too."""
    output = tmp_path / "run"
    output.mkdir()
    with FileLock(output / run_module.LOCK), pytest.raises(RecipeError, match="another run is writing to it"):
        run(recipe, RunOptions(data_dir, output))
    assert {path.name for path in output.iterdir()} <= {run_module.LOCK}
    recipe.schedule.max_steps = 1

    class StillLocked(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            with pytest.raises(Timeout):
                FileLock(output / run_module.LOCK, timeout=0).acquire()
            StillLocked.seen = True

    with pytest.MonkeyPatch.context() as patch:
        original = run_module.RecipeTrainer.__init__

        def with_callback(self, *args, **kwargs):
            original(self, *args, **kwargs)
            self.add_callback(StillLocked())

        patch.setattr(run_module.RecipeTrainer, "__init__", with_callback)
        assert run(recipe, RunOptions(data_dir, output, resume=False))["steps"] == 1
    assert StillLocked.seen
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
    save = run_module.RecipeTrainer._save_optimizer_and_scheduler

    def full(self, folder):
        if self.state.global_step == 8:
            raise error
        save(self, folder)

    monkeypatch.setattr(run_module.RecipeTrainer, "_save_optimizer_and_scheduler", full)
    with pytest.raises(RecipeError, match=r"is full; make space there, and the same command continues from .*-4"):
        run(recipe, RunOptions(data_dir, output))
    assert (output / "checkpoint-4").is_dir() and not (output / "checkpoint-8").exists()
    assert not list(output.rglob("*.partial"))
    monkeypatch.undo()
    assert run(recipe, RunOptions(data_dir, output))["steps"] == 12


def test_other_errors_are_not_taken_for_a_full_disk(recipe, data_dir, tmp_path, monkeypatch):
    def broken(self, folder):
        raise RuntimeError("a defect")

    monkeypatch.setattr(run_module.RecipeTrainer, "_save_optimizer_and_scheduler", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        run(recipe, RunOptions(data_dir, tmp_path / "run"))
