"""Two processes on a CPU equal one: losses, evaluations, checkpoints; started by torchrun and by accelerate."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mega_transformers import MegaForMaskedLM
from mega_transformers.errors import RecipeError
from mega_transformers.training.recipe import recipe_of
from mega_transformers.training.run import RunOptions, run

TASKS = ("masked-lm", "causal-lm", "text-to-text", "sequence-classification", "token-classification", "batchnorm")
SIZE = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "intermediate_size": 16,
    "nffn_hidden_size": 16,
    "shared_representation_size": 8,
    "ema_projection_size": 4,
    # dropout is drawn in every process anew
    "dropout_prob": 0,
    "hidden_dropout_prob": 0,
    "attention_probs_dropout_prob": 0,
    "nffn_activation_dropout_prob": 0,
}
TEXT = "the cat sat on a mat and the dog ran to the old house by the sea while rain fell on green hills"
WORDS = TEXT.split()
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def recipe_dict(name: str) -> dict[str, Any]:
    """82 training rows of running text, and other odd numbers: last batches of epochs and evaluations are uneven."""
    source: dict[str, Any] = {"name": "A", "license": "CC0"}
    recipe: dict[str, Any] = {
        "name": name,
        "task": "masked-lm" if name == "batchnorm" else name,
        "sequence_length": 32,
        "seed": 3,
        "data": [source],
        "tokenizer": {"vocab_size": 280},
        "model": dict(SIZE),
        "training": {
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 4,
            "learning_rate": 0.01,
            "max_steps": 12,
            "warmup_steps": 2,
            "eval_steps": 4,
            "save_steps": 4,
            "logging_steps": 2,
            "save_total_limit": 10,
            "disable_tqdm": True,
            "use_cpu": True,
        },
    }
    roles = ("train", "validation", "test")
    if recipe["task"] in ("masked-lm", "causal-lm"):
        source |= {role: f"{role}.txt" for role in roles} | {"documents": "lines"}
    elif name == "text-to-text":
        source |= {"divide": "words.tsv", "source": 1, "target": 2}
        recipe |= {
            "sequence_length": 16,
            "split": {"seed": 1, "validation": 21, "test": 29},
            "tokenizer": {"kind": "symbols"},
            "model": {"mega": dict(SIZE)},
            "generation": {"metrics": ["symbol_error_rate", "chrf"], "num_beams": 2, "max_new_tokens": 6},
        }
        recipe["training"]["label_smoothing_factor"] = 0.1
    elif name == "sequence-classification":
        source |= {role: f"{role}.tsv" for role in roles} | {"text": "text", "label": "label"}
    else:
        source |= {role: f"{role}.jsonl" for role in roles}
    if name == "batchnorm":
        recipe["model"]["normalization_type"] = "batchnorm"
    if name == "causal-lm":
        recipe["model"] |= {"is_decoder": True, "bidirectional": False}
    return recipe


def write_rows(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(most: int) -> int:
        return int(torch.randint(most, (1,), generator=generator))

    for role, count in (("train", 119), ("validation", 31), ("test", 29)):
        rows = [[WORDS[draw(len(WORDS))] for _ in range(5 + draw(9))] for _ in range(count)]
        lines = [" ".join(row) for row in rows]
        (folder / f"{role}.txt").write_text("".join(f"{line}.\n" for line in lines))
        (folder / f"{role}.tsv").write_text("text\tlabel\n" + "".join(f"{line}\t{'cat' in line}\n" for line in lines))
        tagged = [{"tokens": row, "tags": [str(len(word) % 2) for word in row]} for row in rows]
        (folder / f"{role}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tagged))
    words = {"".join("abcdef"[draw(6)] for _ in range(2 + draw(7))) for _ in range(200)}
    pairs = (f"{word}\t{' '.join(letter.upper() for letter in word)}\n" for word in sorted(words))
    (folder / "words.tsv").write_text("".join(pairs))


def logged(output: Path) -> list[dict[str, float]]:
    log = json.loads((output / "checkpoint-12" / "trainer_state.json").read_text())["log_history"]
    clocks = ("runtime", "per_second", "preparation_time")
    return [{key: value for key, value in entry.items() if not any(part in key for part in clocks)} for entry in log]


def scores(output: Path) -> dict[str, Any]:
    return json.loads((output / "results.json").read_text())["scores"]


def assert_alike(found: Path, wanted: Path, tolerance: float = 1e-5) -> None:
    """Losses, norms of gradients and metrics at every logged step, and the final scores."""
    for entry, other in zip(logged(found), logged(wanted), strict=True):
        assert entry == pytest.approx(other, rel=tolerance, abs=tolerance)
    assert scores(found).keys() == scores(wanted).keys()
    for role, systems in scores(wanted).items():
        for system, values in systems.items():
            assert scores(found)[role][system] == pytest.approx(values, rel=tolerance, abs=tolerance)


def job(name: str, output: Path, data_dir: Path, **training: Any) -> dict[str, Any]:
    recipe = recipe_dict(name)
    recipe["training"] |= training
    return {"recipe": recipe, "data_dir": str(data_dir), "output_dir": str(output)}


def do(task: dict[str, Any]) -> str | None:
    """Runs a job; returns its error."""
    options = RunOptions(Path(task["data_dir"]), Path(task["output_dir"]))
    try:
        run(recipe_of(task["recipe"]), options)
    except RecipeError as error:
        return str(error)
    return None


def environment(folder: Path) -> dict[str, str]:
    paths = [str(Path(__file__).parents[2] / "src"), os.environ.get("PYTHONPATH", "")]
    cache = {"HF_DATASETS_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **cache, "PYTHONPATH": os.pathsep.join(paths)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Runs on one process in `one`, on two in `two`, and what else `work` does, all of it with two processes once."""
    folder = tmp_path_factory.mktemp("processes")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    (folder / "data").mkdir()
    write_rows(folder / "data")
    one, two, half = folder / "one", folder / "two", {"per_device_train_batch_size": 4}
    for name in TASKS:
        assert do(job(name, one / name, folder / "data")) is None
    jobs = [job(name, two / name, folder / "data", **half) for name in TASKS]
    # four steps on one process, then on two; the rest on one again
    begun = folder / "begun"
    shutil.copytree(one / "masked-lm", begun, ignore=shutil.ignore_patterns("*-8", "*-12", "model", "results.json"))
    jobs.append(job("masked-lm", begun, folder / "data", **half))
    jobs.append(job("masked-lm", folder / "accumulated", folder / "data", **half, gradient_accumulation_steps=2))
    # errors: of one process, and of all of them while they train
    jobs.append(job("masked-lm", folder / "missing", folder / "missing-in-1"))
    jobs.append(job("masked-lm", folder / "infinite", folder / "data", learning_rate=1e30, max_grad_norm=0.0))
    # parameters in bfloat16, but for the EMA's
    MegaForMaskedLM.from_pretrained(one / "masked-lm" / "model", dtype=torch.bfloat16).save_pretrained(folder / "bf16")
    for path in (one / "masked-lm" / "tokenizer").iterdir():
        shutil.copy(path, folder / "bf16")
    checkpoint = job("masked-lm", folder / "bf16-one", folder / "data")
    checkpoint["recipe"] |= {"model": {"checkpoint": str(folder / "bf16")}, "tokenizer": None}
    assert do(checkpoint) is None
    sharded = [job(name, folder / "fsdp" / name, folder / "data", **half) for name in ("masked-lm", "causal-lm")]
    sharded.append(copy.deepcopy(checkpoint) | {"output_dir": str(folder / "fsdp" / "bf16")})
    for task in sharded:
        task["recipe"]["training"] |= {**half, "fsdp": True, "use_cpu": False}
    (folder / "jobs.json").write_text(json.dumps({"jobs": jobs, "sharded": sharded}))
    started = subprocess.run(
        [*TORCHRUN, __file__, str(folder)], env=environment(folder), capture_output=True, text=True, timeout=100
    )
    assert started.returncode == 0, started.stderr[-5000:]
    (folder / "stdout").write_text(started.stdout)
    shutil.copytree(begun, folder / "ended", ignore=shutil.ignore_patterns("*-12", "model", "results.json"))
    assert do(job("masked-lm", folder / "ended", folder / "data")) is None
    torch.set_num_threads(threads)
    return folder


def work(folder: Path) -> None:
    """What each of two processes does."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    rank = int(os.environ["RANK"])
    tasks = json.loads((folder / "jobs.json").read_text())
    (folder / "missing-in-1").mkdir(exist_ok=True)
    if rank == 0:
        shutil.copytree(folder / "data", folder / "missing-in-1", dirs_exist_ok=True)
    errors = {}
    for task in tasks["jobs"]:
        if rank == 1 and task["data_dir"].endswith("missing-in-1"):
            task["data_dir"] = str(folder / "nothing")
        errors[Path(task["output_dir"]).name] = do(task)
    # accelerate shards models on accelerators only: the CPU passes for one
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_XPU)
    PartialState._reset_state()
    for task in tasks["sharded"]:
        errors[f"fsdp-{Path(task['output_dir']).name}"] = do(task)
    (folder / f"errors-{rank}.json").write_text(json.dumps(errors))


@pytest.mark.parametrize("name", TASKS)
def test_two_processes_equal_one(name: str, folder: Path) -> None:
    assert_alike(folder / "two" / name, folder / "one" / name)


def test_checkpoints_go_from_one_process_to_two_and_back(folder: Path) -> None:
    assert_alike(folder / "begun", folder / "one" / "masked-lm")
    assert_alike(folder / "ended", folder / "one" / "masked-lm")


def test_accumulated_batches_have_the_rows_of_larger_ones(folder: Path, tmp_path: Path) -> None:
    assert do(job("masked-lm", tmp_path, folder / "data", per_device_train_batch_size=16)) is None
    assert_alike(folder / "accumulated", tmp_path)


def test_errors_end_all_processes_with_the_same_sentence(folder: Path) -> None:
    first, second = (json.loads((folder / f"errors-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert "no file matches 'train.txt'" in first.pop("missing")
    assert "loss became" in first.pop("infinite")
    assert set(first.values()) == {None}


def test_the_first_process_alone_speaks(folder: Path) -> None:
    out = "".join((folder / "stdout").read_text().split())
    for words in ("two/batchnorm/model", "fsdp/causal-lm/model"):
        assert out.count(words) == 1
    # six times in each of twelve runs of two processes, one of which goes on after four steps, and no more
    assert out.count("{'loss'") == 6 * 10 + 4 + 1
    assert sorted(path.name for path in (folder / "two" / "masked-lm").iterdir() if path.is_dir()) == [
        "checkpoint-12", "checkpoint-4", "checkpoint-8", "model", "tokenizer",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["masked-lm", "causal-lm"])
def test_shards_equal_the_whole(name: str, folder: Path) -> None:
    assert_alike(folder / "fsdp" / name, folder / "one" / name)
    found, wanted = (load_file(folder / place / name / "model" / "model.safetensors") for place in ("fsdp", "one"))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_shards_of_a_model_in_bfloat16(folder: Path) -> None:
    found, wanted = (
        [entry["loss"] for entry in logged(place) if "loss" in entry]
        for place in (folder / "fsdp" / "bf16", folder / "bf16-one")
    )
    assert found == pytest.approx(wanted, rel=0.02)
    assert found[-1] < found[0]


def test_shards_on_a_cpu_are_refused(folder: Path, tmp_path: Path) -> None:
    assert "on accelerators only" in str(do(job("masked-lm", tmp_path, folder / "data", fsdp="full_shard")))


def test_commands(folder: Path, tmp_path: Path) -> None:
    """torchrun, Ctrl-C, then accelerate and a limit of time, each with one checkpoint and one sentence."""
    recipe = recipe_dict("masked-lm")
    recipe["training"] |= {"max_steps": 100_000, "save_steps": 100_000, "eval_strategy": "no", "logging_steps": 1}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = ["train", str(tmp_path / "recipe.yaml"), "--data-dir", str(folder / "data"), "--output-dir"]
    command += [str(tmp_path / "run")]
    started = subprocess.Popen(
        [*TORCHRUN, "-m", "mega_transformers", *command],
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert started.stdout is not None
    seen = []
    for line in started.stdout:
        seen.append(line)
        if "'loss'" in line:
            started.send_signal(signal.SIGINT)
            break
    rest, err = started.communicate(timeout=60)
    out = "".join(seen) + rest
    assert out.count("SIGINT: saving a checkpoint") == 1 and out.count("Stopped after step") == 1, out + err
    assert started.returncode != 0
    (first,) = (tmp_path / "run").glob("checkpoint-*")

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--main_process_port", str(port), "-m", "mega_transformers", *command]
    again = subprocess.run(
        [*launch, "--max-hours", "1e-6"], env=environment(folder), capture_output=True, text=True, timeout=120
    )
    assert "".join(again.stdout.split()).count(f"Continuingfrom{first}") == 1, again.stderr[-3000:]
    step = int(first.name.split("-")[1]) + 1
    assert (
        again.stdout.count(f"Stopped after step {step};") == 1 and (tmp_path / "run" / f"checkpoint-{step}").is_dir()
    )

    wrong = subprocess.run(
        [*TORCHRUN, "-m", "mega_transformers", *command, "--no-resume"],
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert wrong.returncode != 0 and wrong.stderr.count("Error: --no-resume, but") == 1, wrong.stderr


if __name__ == "__main__":
    work(Path(sys.argv[1]))
