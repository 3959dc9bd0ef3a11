"""Rows cut over 2 and 4 gloo processes under the Trainer, with DDP and FSDP2, against one process."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_processes import SIZE, assert_alike, do, environment, write_rows
from test_processes import job as whole_job
from transformers import TrainingArguments

from mega_transformers.errors import RecipeError
from mega_transformers.training.evaluate import evaluate_model
from mega_transformers.training.recipe import recipe_of
from mega_transformers.training.run import RunOptions, run
from mega_transformers.training.sequence_parallel import SequenceParallelism, check_arguments
from mega_transformers.training.tasks import task_of

PAGE = Path(__file__).parents[2] / "docs" / "long-inputs.md"
CHUNK = 8
LENGTH = 44  # the last piece is padded
KINDS = {
    "masked-lm": {"sparse_prediction": True},
    "causal-lm": {"is_decoder": True, "bidirectional": False},
}


def job(name: str, output: Path, data_dir: Path, size: int = 1, rows: int = 8, **training: Any) -> dict[str, Any]:
    """A run with `rows` rows a step in each process, or group of processes."""
    made = whole_job(name, output, data_dir, per_device_train_batch_size=rows, **training)
    made["recipe"] |= {"sequence_length": LENGTH, "packing": "wrapped", "sequence_parallel": size}
    made["recipe"]["model"] = {**SIZE, **KINDS[name], "use_chunking": True, "chunk_size": CHUNK}
    return made


def jobs_of(processes: int, folder: Path) -> list[dict[str, Any]]:
    """What each of so many processes runs."""
    data_dir, output = folder / "data", folder / f"on-{processes}"
    if processes == 2:
        return [job("causal-lm", output / "causal-lm", data_dir, size=2, gradient_checkpointing=True)]
    accumulated = {"rows": 2, "gradient_accumulation_steps": 2}
    return [
        job("masked-lm", output / "masked-lm", data_dir, size=2, rows=4),
        # begun on one process
        job("masked-lm", folder / "begun", data_dir, size=4, **accumulated | {"rows": 4}),
        # in the end, since accelerate has to be led to think that the CPU is an accelerator
        job("causal-lm", output / "sharded", data_dir, size=2, **accumulated, fsdp=True, use_cpu=False),
    ]


def script(folder: Path, cut: bool) -> str:
    """The page's script, smaller."""
    (code,) = re.findall(r"^```python\n(# train.py.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    changes = {
        "65_536": "50",
        "=256": "=16",
        "=512": "=16",
        "=64": f"={CHUNK}",
        "chunk_size=16": f"chunk_size={CHUNK}, **{ {name: 0 for name in SIZE if 'dropout' in name} }",
        "max_steps=100": "max_steps=8, disable_tqdm=True",
        "eval_steps=50": "eval_steps=4",
        '"out': f'"{folder}',
    }
    changes |= {} if cut else {"parallelism_config=SequenceParallelism(2),": ""}
    for found, put in changes.items():
        assert found in code
        code = code.replace(found, put)
    return code


def run_script(folder: Path, name: str, cut: bool) -> list[dict[str, float]]:
    """Losses of training and of evaluations, and logits of a row."""
    before, sys.argv = sys.argv, ["train.py", str(folder / "data" / "train.txt")]
    try:
        variables: dict[str, Any] = {}
        exec(compile(script(folder / name, cut), "train.py", "exec"), variables)
    finally:
        sys.argv = before
    trainer = variables["trainer"]
    assert trainer.get_total_train_batch_size(trainer.args) == 1
    logits = trainer.predict(variables["rows"][:1]).predictions
    assert logits.shape == (1, 50, len(variables["tokenizer"]))
    losses = [
        {key: entry[key] for key in ("loss", "grad_norm", "eval_loss") if key in entry}
        for entry in trainer.state.log_history
    ]
    return [*losses, {f"logit {place}": value for place, value in enumerate(logits[0, :, 7].tolist())}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cut")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    (folder / "data").mkdir()
    write_rows(folder / "data")
    for name in KINDS:
        assert do(job(name, folder / "one" / name, folder / "data")) is None
    later = shutil.ignore_patterns("*-8", "*-12", "model", "results.json")
    shutil.copytree(folder / "one" / "masked-lm", folder / "begun", ignore=later)
    wanted = run_script(folder, "whole", cut=False)
    started = subprocess.run(
        [sys.executable, __file__, str(folder)], env=environment(folder), capture_output=True, text=True, timeout=300
    )
    assert started.returncode == 0, started.stderr[-5000:]
    (folder / "script.json").write_text(json.dumps([wanted, json.loads((folder / "found.json").read_text())]))
    torch.set_num_threads(threads)
    return folder


def work(rank: int, processes: int, port: int, folder: Path) -> None:
    """What each process does."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    if processes == 2:
        found = run_script(folder, "cut", cut=True)
        if rank == 0:
            (folder / "found.json").write_text(json.dumps(found))
    for task in jobs_of(processes, folder):
        if "fsdp" in task["recipe"]["training"]:
            from accelerate import PartialState
            from accelerate.utils import DistributedType

            os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
            PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_XPU)
            PartialState._reset_state()
        assert do(task) is None
    torch.distributed.destroy_process_group()


def launch(folder: Path) -> None:
    """Two processes and then four, which import nothing anew."""
    context = multiprocessing.get_context("fork")
    for processes in (2, 4):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ranks = [context.Process(target=work, args=(rank, processes, port, folder)) for rank in range(processes)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        assert all(process.exitcode == 0 for process in ranks), [process.exitcode for process in ranks]


@pytest.mark.parametrize(
    ("found", "wanted"),
    [("on-4/masked-lm", "masked-lm"), ("on-2/causal-lm", "causal-lm"), ("begun", "masked-lm")],
)
def test_cut_rows_equal_whole_ones(found: str, wanted: str, folder: Path) -> None:
    """Losses, norms of gradients, metrics of evaluations, and what is counted."""
    assert_alike(folder / found, folder / "one" / wanted)


def test_shards(folder: Path) -> None:
    assert_alike(folder / "on-4" / "sharded", folder / "one" / "causal-lm")
    found, wanted = (
        load_file(folder / name / "model" / "model.safetensors") for name in ("on-4/sharded", "one/causal-lm")
    )
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_the_script_of_the_page(folder: Path) -> None:
    """With masks that the first process draws."""
    wanted, found = json.loads((folder / "script.json").read_text())
    assert len(wanted) == 8 + 2 + 1 + 1 == len(found)
    for entry, other in zip(found, wanted, strict=True):
        assert entry == pytest.approx(other, rel=1e-5, abs=1e-5)
    saved = [load_file(folder / name / "model" / "model.safetensors") for name in ("cut", "whole")]
    torch.testing.assert_close(*saved, rtol=1e-3, atol=1e-3)


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({}, "sequence_parallel=2, but 1 process cannot be divided into groups of 2; start a multiple of 2"),
    ({"sequence_parallel": 0}, "sequence_parallel: Input should be greater than or equal to 1; got 0"),
    ({"packing": "isolated"}, "sequence_parallel=2 needs packing: wrapped"),
    ({"training": {"parallelism_config": None}}, "training.parallelism_config is not set there but by sequence_par"),
    (
        {"task": "token-classification", "packing": None},
        "sequence_parallel is for masked-lm and causal-lm",
    ),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_mistakes_in_recipes(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_rows(tmp_path)
    task = job("masked-lm", tmp_path / "output", tmp_path, size=2)
    recipe = {key: value for key, value in {**task["recipe"], **changes}.items() if key != "packing" or value}
    with pytest.raises(RecipeError, match=re.escape(message)):
        run(recipe_of(recipe), RunOptions(tmp_path, tmp_path / "output"))
    assert not (tmp_path / "output" / "tokenizer").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_chunking": False}, "sequence_parallel=2, but model.use_chunking=False: full attention"),
        ({"chunk_size": 64}, "sequence_length=44 has 1 chunks of model.chunk_size=64, fewer than processes"),
        ({"truncation": 4}, "sequence_parallel=2, but model.truncation=4: processes exchange the EMA's states only"),
    ],
)
def test_models_that_cannot_be_cut(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_rows(tmp_path)
    recipe = job("masked-lm", tmp_path, tmp_path, size=2)["recipe"]
    recipe["model"] |= fields
    with pytest.raises(RecipeError, match=re.escape(message)):
        task_of(recipe_of(recipe), tmp_path).check_model(None)


def test_a_recipe_is_evaluated_on_one_process(folder: Path) -> None:
    recipe = job("masked-lm", folder, folder / "data", size=2)["recipe"]
    recipe |= {"model": {"checkpoint": str(folder / "one" / "masked-lm" / "model")}, "tokenizer": None}
    found = evaluate_model(recipe_of(recipe), folder / "data", use_cpu=True)
    wanted = json.loads((folder / "one" / "masked-lm" / "results.json").read_text())
    assert found["scores"]["test"]["model"] == pytest.approx(wanted["scores"]["test"]["model"], rel=1e-3)


def test_mistakes_in_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"SequenceParallelism\(1\): a row is cut over at least 2 processes"):
        SequenceParallelism(1)
    arguments = TrainingArguments(tmp_path, parallelism_config=SequenceParallelism(2), use_cpu=True)
    with pytest.raises(ValueError, match="1 process cannot be divided into groups of 2"):
        check_arguments(arguments)
    several = type("Arguments", (), {**vars(arguments), "world_size": 4, "label_smoothing_factor": 0.1})
    with pytest.raises(ValueError, match=r"label_smoothing_factor=0\.1: .* set it to 0"):
        check_arguments(several)


if __name__ == "__main__":
    launch(Path(sys.argv[1]))
