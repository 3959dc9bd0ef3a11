"""A run that is killed at any moment, and begun again until it ends, has the losses of one that never was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np

from mega_transformers.training.recipe import read_recipe
from mega_transformers.training.run import RunOptions, run
from mega_transformers.training.trainer import last_checkpoint

# a process that kills itself in a step, or while the files of a checkpoint are written
PROGRAM = """
import os, signal, sys
from pathlib import Path
from transformers import TrainerCallback
from mega_transformers.training import run as module, trainer
from mega_transformers.training.recipe import read_recipe

recipe, data, output, moment, step = *sys.argv[1:5], int(sys.argv[5])

class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if moment == "step" and state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)

original, save = module.make_trainer, trainer.Trainer._save_optimizer_and_scheduler

def killed_trainer(*args):
    made = original(*args)
    made.add_callback(Kill())
    return made

def killed_save(self, folder):
    if moment == "checkpoint" and self.state.global_step >= step:
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, folder)

module.make_trainer, trainer.Trainer._save_optimizer_and_scheduler = killed_trainer, killed_save
module.run(read_recipe(Path(recipe)), module.RunOptions(Path(data), Path(output)))
"""


def losses_of(output):
    state = json.loads((last_checkpoint(output) / "trainer_state.json").read_text())
    return [(entry["step"], entry.get("loss"), entry.get("eval_loss")) for entry in state["log_history"]]


def test_killed_runs_end_with_the_same_losses(recipe_dict, write_recipe, data_dir, tmp_path):
    recipe_dict["training"] |= {"eval_steps": 3, "save_steps": 3, "logging_steps": 1}
    recipe = write_recipe(recipe_dict)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    results = run(read_recipe(recipe), RunOptions(data_dir, whole))

    def train(moment, step):
        arguments = [recipe, data_dir, broken, moment, step]
        program = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(program, capture_output=True, text=True, env=environment)

    generator = np.random.default_rng(time.time_ns())
    first, second = sorted(generator.choice(np.arange(1, 12), 2, replace=False).tolist())
    moments = [("step", first), ("checkpoint", second)]
    for moment, step in moments:
        assert train(moment, step).returncode == -signal.SIGKILL, (moment, step)
    again = run(read_recipe(recipe), RunOptions(data_dir, broken))
    assert losses_of(broken) == losses_of(whole), moments
    assert len(losses_of(whole)) == 12 + 4  # steps and evaluations
    assert again["scores"] == results["scores"], moments
    assert not list(broken.glob("**/*.partial"))
