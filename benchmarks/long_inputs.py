"""Long inputs: reading, training steps and rows cut over processes; makes the tables and the picture of a page.

    python -m benchmarks.long_inputs --text austen.txt.gz moby_dick.txt.gz     # measures, writes benchmarks/results/;
                                                                               # interrupted, it continues
    python -m benchmarks.long_inputs --from benchmarks/results/FILE.json       # docs/long-inputs.md and its picture

Every measurement has a fresh process with one thread, so that its peak memory is its own: resident, libraries and
model included. Seconds are of the processor unless they are called wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import pairwise
from math import log2
from pathlib import Path
from typing import Any

from benchmarks.peers import REPOSITORY
from benchmarks.results import git_state, machine, now, processor_ticks, stolen_share

PAGE = REPOSITORY / "docs" / "long-inputs.md"
K = 1024
PIECE = 16 * K
LENGTHS = {"pieces": (16 * K, 64 * K, 256 * K, 1024 * K), "at once": (4 * K, 16 * K, 64 * K, 256 * K)}
PEER_LENGTHS = (4 * K, 8 * K, 16 * K, 32 * K)
LIMIT = 16 << 30  # bytes that a process may allocate
# fields of a model and of its training -> what the table calls them
SETTINGS: dict[str, dict[str, Any]] = {
    "nothing recomputed": {"recompute_activations": False},
    "`recompute_activations: true` (the default on a CPU)": {"recompute_activations": True},
    "`gradient_checkpointing: true`": {"recompute_activations": False, "checkpointing": True},
}
WIDE = {"hidden_size": 512, "intermediate_size": 1024, "nffn_hidden_size": 1024, "num_hidden_layers": 8}
# the model of recipes/mlm-prose.yaml, and one of twice its width and depth, with the settings they are measured with
TRAINED: dict[str, dict[str, Any]] = {"mega-prose-5m": {}, "width 512, 8 layers": {**WIDE, "initializer_range": 0.044}}
TRIED = [("mega-prose-5m", setting) for setting in SETTINGS]
TRIED += [("width 512, 8 layers", "`gradient_checkpointing: true`")]
TRAINED_LENGTH = 64 * K
# what the table of several machines is computed for
NETWORK, LATENCY, RATE = 1.25e9, 50e-6, 10e12  # bytes a second (10 GbE), seconds a message, operations a second
MACHINES, MACHINES_LENGTH = (2, 4, 16, 64), 1024 * K


# -- what a process of its own measures; each takes the file of token ids


def read(ids: Any, length: int, way: str) -> None:
    """The bundled masked model's last hidden states."""
    import torch
    from transformers import AutoModel

    from mega_transformers.assets import DEFAULT_MODEL, bundled_model
    from mega_transformers.long_inputs import encode

    model = AutoModel.from_pretrained(bundled_model(DEFAULT_MODEL), dtype=torch.float32).eval()
    rows = torch.from_numpy(ids[None, :length]).long()
    begin()
    with torch.no_grad():
        encode(model, rows, piece=PIECE) if way == "pieces" else model(input_ids=rows)


def read_peer(ids: Any, length: int) -> None:
    """A ModernBERT of about as many parameters with random weights; two of its four layers see all tokens."""
    import torch
    from transformers import ModernBertConfig, ModernBertModel

    config = ModernBertConfig(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=length,
        **dict.fromkeys(("pad_token_id", "cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id"), 1),
    )
    model = ModernBertModel._from_config(config, attn_implementation="sdpa").eval()
    rows = torch.from_numpy(ids[None, :length]).long()
    begin()
    with torch.no_grad():
        model(input_ids=rows)


def step(ids: Any, length: int, model: str, setting: str) -> None:
    """One training step of masked language modelling: forward, backward, AdamW."""
    import torch

    trained, batch = masked_model(ids, length, **TRAINED[model], **SETTINGS[setting])
    optimizer = torch.optim.AdamW(trained.parameters())
    begin()
    trained(**batch).loss.backward()
    optimizer.step()


def count(ids: Any, length: int, model: str) -> dict[str, int]:
    """Operations of a training step without its update, by PyTorch's counter; and what is exchanged, by formula."""
    from torch.utils.flop_counter import FlopCounterMode

    trained, batch = masked_model(ids, length, **TRAINED[model], **SETTINGS["nothing recomputed"])
    config = trained.config
    with FlopCounterMode(display=False) as counter:
        trained(**batch).loss.backward()
    return {
        "operations": counter.get_total_flops(),
        "state_bytes": 4 * 2 * config.hidden_size * config.ema_projection_size,
        "exchanges": 2 * config.num_hidden_layers,
        "gradient_bytes": 4 * sum(parameter.numel() for parameter in trained.parameters()),
    }


def masked_model(ids: Any, length: int, checkpointing: bool = False, **fields: Any) -> tuple[Any, dict[str, Any]]:
    """The model of recipes/mlm-prose.yaml, and one row of which 30% are to be predicted."""
    import torch

    from mega_transformers import MegaConfig, MegaForMaskedLM
    from mega_transformers.assets import RECIPES
    from mega_transformers.training.recipe import read_recipe

    torch.manual_seed(0)
    recipe = read_recipe(RECIPES / "mlm-prose.yaml")
    model = MegaForMaskedLM(MegaConfig(vocab_size=8192, pad_token_id=1, **{**recipe.model, **fields}))
    if checkpointing:
        model.gradient_checkpointing_enable()
    rows = torch.from_numpy(ids[None, :length]).long()
    masked = torch.rand(rows.shape) < recipe.masking.probability
    batch = {"input_ids": rows.masked_fill(masked, 4), "labels": rows.masked_fill(~masked, -100)}
    return model.train(), batch


def cut(ids: Any, length: int, processes: int) -> dict[str, Any]:
    """Forward and backward pass with a row cut over processes, and the sum of gradients that DDP would make."""
    import torch.multiprocessing as mp

    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_part, (ids[:length], processes, folder), nprocs=processes)
        found = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(processes)]
    return {
        "wall_seconds": max(one["wall_seconds"] for one in found),
        "seconds": sum(one["seconds"] for one in found),
        "bytes": max(one["bytes"] for one in found),
        "loss": sum(one["loss"] for one in found) / processes,
        "sent": found[0]["sent"],
    }


def _part(rank: int, ids: Any, processes: int, folder: str) -> None:
    import torch
    import torch.distributed as dist

    from mega_transformers.parallel import parallelize_sequence

    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", processes)
    dist.init_process_group("gloo", rank=rank, world_size=processes, store=store)
    model, batch = masked_model(ids, len(ids))
    if processes > 1:
        parallelize_sequence(model, dist.group.WORLD)
    sent: list[int] = []
    with counted(sent):
        short = {name: rows[:, : processes * model.config.chunk_size] for name, rows in batch.items()}
        model(**short).loss.backward()
    dist.barrier()
    wall, processor = time.perf_counter(), time.process_time()
    loss = model(**batch).loss
    loss.backward()
    gradients = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    dist.all_reduce(gradients)
    result = {
        "seconds": time.process_time() - processor,
        "wall_seconds": time.perf_counter() - wall,
        "bytes": peak(),
        "loss": loss.item(),
        "sent": sent,
    }
    (Path(folder) / f"{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


def counted(sent: list[int]) -> Any:
    """A context that notes the bytes this process hands to each collective operation."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "c10d":
                sent.extend(x.numel() * x.element_size() for x in args[1])
            return func(*args, **(kwargs or {}))

    return Counter()


JOBS: dict[str, Callable[..., Any]] = {"read": read, "peer": read_peer, "step": step, "count": count, "cut": cut}
started: list[tuple[float, float]] = []


def begin() -> None:
    """The work begins: model and inputs are there."""
    started.append((time.perf_counter(), time.process_time()))


def peak() -> int:
    """The most resident memory of this process so far, in bytes."""
    import torch

    from mega_transformers.evaluation.memory import peak_memory

    return peak_memory(torch.device("cpu"))


def work(job: dict[str, Any], file: str) -> None:
    """Does one job, and prints what it found."""
    import resource

    import numpy as np
    import torch

    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    torch.set_num_threads(1)
    arguments = {name: value for name, value in job.items() if name != "job"}
    result = JOBS[job["job"]](np.load(file), **arguments)
    if result is None:
        (wall, processor) = started[0]
        result = {"seconds": time.process_time() - processor, "wall_seconds": time.perf_counter() - wall}
        result["bytes"] = peak()
    print(json.dumps(result))


# -- the run


def jobs() -> list[dict[str, Any]]:
    """All measurements."""
    found: list[dict[str, Any]] = [
        {"job": "read", "length": length, "way": way} for way, lengths in LENGTHS.items() for length in lengths
    ]
    found += [{"job": "peer", "length": length} for length in PEER_LENGTHS]
    found += [{"job": "count", "length": 8 * K, "model": model} for model in TRAINED]
    found += [{"job": "cut", "length": TRAINED_LENGTH, "processes": processes} for processes in (1, 2, 4)]
    found += [
        {"job": "step", "length": TRAINED_LENGTH, "model": model, "setting": setting} for model, setting in TRIED
    ]
    return found


def tokens_of(texts: list[Path], count: int) -> Any:
    """Ids of texts joined, and repeated where they have fewer than `count`."""
    import numpy as np
    from transformers import AutoTokenizer

    from mega_transformers.assets import DEFAULT_MODEL, bundled_model
    from mega_transformers.evaluation.texts import documents_of, encode_documents, read_text

    tokenizer = AutoTokenizer.from_pretrained(bundled_model(DEFAULT_MODEL))
    documents = [one for path in texts for one in documents_of(read_text(path), ["unwrap", "emphasis"], "paragraphs")]
    return np.resize(np.concatenate(encode_documents(tokenizer, documents)).astype(np.int32), count)


def measure(texts: list[Path], path: Path, again: list[str]) -> None:
    """Does all jobs that the results lack, and those of the kinds `again`; writes the results after each."""
    names = ("torch", "transformers", "numpy")
    report: dict[str, Any] = {
        "date": now(),
        "command": " ".join(["python -m benchmarks.long_inputs --text", *(text.name for text in texts)]),
        "machine": machine(),
        "git": git_state(),
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in names}},
        "threads": 1,
        "piece": PIECE,
        "results": [],
    }
    wanted = jobs()
    if path.is_file():
        before = json.loads(path.read_text())
        for result in before["results"]:
            job = next((job for job in wanted if job.items() <= result.items()), None)
            if job is not None and job["job"] not in again:
                wanted.remove(job)
                report["results"].append({"revision": before["git"]["revision"], **result})
    ticks = processor_ticks()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        import numpy as np

        ids = Path(folder) / "ids.npy"
        np.save(ids, tokens_of(texts, max(LENGTHS["pieces"])))
        for job in wanted:
            command = [sys.executable, "-m", "benchmarks.long_inputs", "--job", json.dumps(job), str(ids)]
            done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
            if done.returncode == 0:
                found = json.loads(done.stdout)
            elif "can't allocate memory" in done.stderr:
                found = {"error": f"more than {LIMIT >> 30} GiB"}
            else:
                raise SystemExit(f"{job}: {done.stderr}")
            report["results"].append({**job, **found, "revision": report["git"]["revision"]})
            report["stolen"] = stolen_share(ticks, processor_ticks())
            print(json.dumps(report["results"][-1]), flush=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}.partial")
            partial.write_text(json.dumps(report, indent=1) + "\n")
            partial.replace(path)


# -- the page


def tables(report: dict[str, Any]) -> dict[str, str]:
    """Name -> a table in Markdown."""
    done = [result for result in report["results"] if "error" not in result]
    found = {"reading": [["tokens", "in pieces", "memory", "at once", "memory", "ModernBERT at once", "memory"]]}
    curves = curves_of(report, failed=True)
    for length in sorted({length for curve in curves.values() for length in curve}):
        cells = [curves[name].get(length) for name in curves]
        found["reading"].append([f"{length:,}"] + [part for cell in cells for part in _time_and_memory(cell)])
    curves = curves_of(report)
    found["growth"] = [["from", "to", "in pieces", "at once", "ModernBERT"]]
    for short, long in pairwise(sorted({length for curve in curves.values() for length in curve})):
        slopes = [_slope(curve, short, long) for curve in curves.values()]
        if any(slopes):
            found["growth"].append([f"{short:,}", f"{long:,}", *slopes])
    found["processes"] = [["processes", "processor time of all", "wall time", "memory of each", "loss"]]
    for result in done:
        if result["job"] == "cut":
            times = [f"{result[name]:.1f} s" for name in ("seconds", "wall_seconds")]
            memory, loss = _gigabytes(result["bytes"]), f"{result['loss']:.5f}"
            found["processes"].append([str(result["processes"]), *times, memory, loss])
    found["training"] = [["model", "setting", "seconds a step", "peak memory"]]
    for result in report["results"]:
        if result["job"] == "step":
            found["training"].append([result["model"], result["setting"], *_time_and_memory(result)])
    found["machines"] = [["model", "processes", "tokens of a piece", "states", "operations", "gradients"]]
    for result in done:
        if result["job"] == "count":
            found["machines"] += [_on_machines(result, processes) for processes in MACHINES]
    return {name: _markdown(rows) for name, rows in found.items()}


def _on_machines(result: dict[str, Any], processes: int) -> list[str]:
    """Computed seconds of a step: messages go round a ring, all-gather of states and all-reduce of gradients alike."""
    states = result["exchanges"] * (processes - 1) * (result["state_bytes"] / NETWORK + LATENCY)
    piece = MACHINES_LENGTH // processes
    operations = result["operations"] / result["length"] * piece / RATE
    gradients = 2 * (processes - 1) * (result["gradient_bytes"] / processes / NETWORK + LATENCY)
    times = [f"{value * 1000:,.1f} ms" for value in (states, operations, gradients)]
    return [result["model"], str(processes), f"{piece:,}", *times]


def curves_of(report: dict[str, Any], failed: bool = False) -> dict[str, dict[int, dict[str, Any]]]:
    """Ways of reading -> length -> what was measured, or why it was not if `failed`."""
    found: dict[str, dict[int, dict[str, Any]]] = {"in pieces": {}, "at once": {}, "ModernBERT": {}}
    for result in report["results"]:
        if result["job"] in ("read", "peer") and ("error" not in result or failed):
            way = {"pieces": "in pieces", "at once": "at once"}.get(result.get("way", ""), "ModernBERT")
            found[way][result["length"]] = result
    return found


def _time_and_memory(result: dict[str, Any] | None) -> list[str]:
    if result is None:
        return ["", ""]
    return ["", result["error"]] if "error" in result else [f"{result['seconds']:.1f} s", _gigabytes(result["bytes"])]


def _slope(curve: dict[int, dict[str, Any]], short: int, long: int) -> str:
    if short not in curve or long not in curve:
        return ""
    return f"{log2(curve[long]['seconds'] / curve[short]['seconds']) / log2(long / short):.2f}"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def _markdown(rows: list[list[str]]) -> str:
    lines = [rows[0], ["---:"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def publish(report: dict[str, Any], page: Path) -> None:
    """Writes the tables between their markers, and the picture."""
    text = page.read_text(encoding="utf-8")
    for name, table in tables(report).items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
        before, found, rest = text.partition(begin)
        after = rest.partition(end)
        if not found or not after[1]:
            raise SystemExit(f"{page} lacks the markers {begin.strip()} and {end}")
        text = f"{before}{begin}{table}\n{end}{after[2]}"
    page.write_text(text, encoding="utf-8")
    draw(report, page.with_suffix(".svg"))


def draw(report: dict[str, Any], path: Path) -> None:
    """Time and memory against the number of tokens."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "long inputs"
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator

    from benchmarks.plot import COLOURS, MARKERS

    titles = {
        "in pieces": f"mega-prose-5m, pieces of {report['piece']:,}",
        "at once": "mega-prose-5m, at once",
        "ModernBERT": "ModernBERT of its size, at once",
    }
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    values = (("seconds", 1.0, "processor seconds, one thread"), ("bytes", 1e9, "peak memory of the process, GB"))
    for axis, (value, unit, label) in zip(axes, values):
        for (name, curve), colour, marker in zip(curves_of(report).items(), COLOURS, MARKERS):
            lengths = sorted(curve)
            numbers = [curve[length][value] / unit for length in lengths]
            axis.plot(lengths, numbers, color=colour, marker=marker, label=titles[name])
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.xaxis.set_major_formatter(lambda x, _: f"{x / K:g}k")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        axis.yaxis.set_minor_formatter(lambda y, _: "")
        axis.set_xlabel("tokens")
        axis.set_title(label, fontsize=10)
        axis.grid(True, which="major", linewidth=0.4)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=8)
    figure.savefig(path, facecolor="white", metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    """Measures, or writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="+", type=Path, help="texts, one after the other; .gz too")
    parser.add_argument("--output", type=Path, help="the results; default: benchmarks/results/DATE-long-inputs.json")
    parser.add_argument("--again", nargs="+", choices=JOBS, default=[], help="what to measure again, if it is there")
    parser.add_argument("--from", dest="results", type=Path, help="results to write the page of")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        return work(json.loads(given.job[0]), given.job[1])
    if (given.text is None) == (given.results is None):
        parser.error("give --text FILES to measure, or --from RESULTS to write the page")
    for path in [*(given.text or []), *([given.results] if given.results else [])]:
        if not path.is_file():
            parser.error(f"there is no file {path}")
    if given.results:
        return publish(json.loads(given.results.read_text()), PAGE)
    default = REPOSITORY / "benchmarks" / "results" / f"{now()[:10]}-long-inputs.json"
    measure(given.text, given.output or default, given.again)


if __name__ == "__main__":
    main()
