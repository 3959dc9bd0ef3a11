"""Writes a folder of graphs for ONNX Runtime from any model's folder, which is not changed."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from .._version import __version__
from ..convert.reading import read_json
from ..convert.transformers_folder import CONFIG, GENERATION
from ..convert.writing import new_folder
from ..publish.folder import check_places, listed, model_classes, open_folder, save_tokenizer
from ..training.export import write_json
from .check import TOLERANCE, Row, check, refuse_deviations
from .exporting import OPSET, write_graph
from .graphs import CROSS, DECODER, ENCODER, MODEL, PAST, PRESENT, ExportError, graphs_of, longest_row, refuse
from .quantise import Loss, losses, quantise
from .running import Session

SETTINGS = "export.json"
INT8 = ".int8"
PREPROCESSOR = "preprocessor_config.json"
"""Files of preprocessors other than tokenizers."""
VERSIONS = ("torch", "transformers", "onnxscript", "onnx", "onnxruntime")


@dataclass
class ExportReport:
    """Result of an export.

    Args:
        folder: Folder that was written.
        architecture: Name of the model's class.
        files: Name within the folder -> size in bytes, and what the file is.
        rows: Deviation and time of each graph at each length.
        int8_rows: The same of the 8-bit graphs; empty without them.
        losses: What 8-bit weights cost; None without them.
        seconds: Seconds of each stage.
    """

    folder: Path
    architecture: str
    files: dict[str, tuple[int, str]]
    rows: list[Row]
    int8_rows: list[Row] = field(default_factory=list)
    losses: Loss | None = None
    seconds: dict[str, float] = field(default_factory=dict)


def export_folder(
    source: Path | str,
    output: Path | str,
    *,
    opset: int = OPSET,
    int8: bool = False,
    text: str | None = None,
    force: bool = False,
    stage: Callable[[str], None] = lambda _: None,
) -> ExportReport:
    """Writes a model as graphs for ONNX Runtime, and compares them with the model.

    Args:
        source: Folder of a model that this package loads. It is not changed.
        output: Folder to write, which must not exist yet, or be empty.
        opset: Version of ONNX's operators.
        int8: Whether to write graphs with 8-bit weights too, and to measure what that costs.
        text: Text to measure it on; None for a sample of the package. Not read without `int8`.
        force: Whether to replace an existing model.
        stage: Called with a description of what is being done.

    Returns:
        What was done.

    Raises:
        ExportError: a ConversionError, for a folder that is damaged or cannot be exported, before anything is written;
            and for a graph that deviates from the model by more than 1e-4, relative to 1 + the greatest number of
            that output, after which nothing is left.
    """
    source, output = Path(source), Path(output)
    is_empty = output.is_dir() and not output.is_symlink() and not any(output.iterdir())
    check_places(source, output, force or is_empty)
    check_source(source)
    folder = open_folder(source, stage)
    seconds: dict[str, float] = {}
    with new_folder(output) as partial:
        for graph in graphs_of(folder.model):
            stage(f"Exporting {graph.name}.onnx")
            begun = time.perf_counter()
            write_graph(graph, partial / f"{graph.name}.onnx", opset)
            seconds[f"{graph.name}.onnx"] = time.perf_counter() - begun
        begun = time.perf_counter()
        rows = check(folder.model, partial, stage)
        refuse_deviations(rows)
        seconds["check"] = time.perf_counter() - begun
        report = ExportReport(output, folder.architecture, {}, rows, seconds=seconds)
        if int8:
            begun = time.perf_counter()
            names = [path.stem for path in partial.glob("*.onnx")]
            for name in names:
                stage(f"Rounding {name}.onnx to 8 bits")
                quantise(partial / f"{name}.onnx", partial / f"{name}{INT8}.onnx")
            report.int8_rows = check(folder.model, partial, stage, INT8)
            stage("Measuring the loss")
            report.losses = losses(folder.model, folder.tokenizer, partial, INT8, text)
            seconds["int8"] = time.perf_counter() - begun
        if folder.tokenizer is not None:
            save_tokenizer(folder.tokenizer, partial)
        for name in (CONFIG, GENERATION, PREPROCESSOR):
            if (source / name).is_file():
                (partial / name).write_bytes((source / name).read_bytes())
        write_json(partial / SETTINGS, _settings(report, folder.model, partial, opset))
    report.files = listed(output, {SETTINGS: "inputs, outputs, checks", **_kinds(output)})
    return report


def check_source(source: Path) -> None:
    """Refuses a folder that its configuration shows cannot be exported, before its weights are read.

    Raises:
        ExportError: names the reason and what to use instead.
    """
    if not (source / CONFIG).is_file():
        return  # reading the folder reports the fault
    raw = read_json(source / CONFIG)
    kind, named = raw.get("model_type"), raw.get("architectures")
    if isinstance(kind, str) and not kind.startswith("mega") and kind != "encoder-decoder":
        raise ExportError(
            f"{source} is a model of type {kind}, not a Mega model; export it with `optimum-cli export onnx`"
        )
    known = model_classes()
    if isinstance(named, list) and len(named) == 1 and named[0] in known:
        try:
            config = AutoConfig.from_pretrained(source)
        except Exception:  # loading the model reports the fault
            return
        refuse(known[named[0]], config)


def _settings(report: ExportReport, model: Any, folder: Path, opset: int) -> dict[str, Any]:
    """The contents of export.json."""
    graphs = {}
    for path in sorted(folder.glob("*.onnx")):
        session = Session(path)
        graphs[path.name] = {
            "bytes": path.stat().st_size,
            "inputs": _described(session.inputs),
            "outputs": _described(session.outputs),
        }
    settings: dict[str, Any] = {
        "architecture": report.architecture,
        "dtype": "float32",
        "opset": opset,
        "max_length": longest_row(model),
        "graphs": graphs,
    }
    if (folder / f"{DECODER}.onnx").is_file():
        settings["cache"] = {
            "first": f"zeros of every input {PAST}*, an axis 'past' of 0",
            "next": f"every input {PAST}NAME is the output {PRESENT}NAME of the step before",
        }
        first = f"{ENCODER}.onnx" if (folder / f"{ENCODER}.onnx").is_file() else f"{MODEL}.onnx"
        settings["cache"]["from"] = f"{CROSS}* of {first}" if first.startswith(ENCODER) else f"{PRESENT}* of {first}"
    settings["check"] = {"tolerance": TOLERANCE, "rows": [asdict(row) for row in report.rows]}
    if report.losses is not None:
        settings["int8"] = {"rows": [asdict(row) for row in report.int8_rows], **asdict(report.losses)}
    settings["versions"] = {
        "mega-transformers": __version__,
        "python": platform.python_version(),
        **{name: found for name in VERSIONS if (found := _version(name))},
    }
    return json.loads(json.dumps(settings))


def _described(values: dict[str, tuple[str, list[Any]]]) -> dict[str, dict[str, Any]]:
    return {
        name: {"dtype": kind.removeprefix("tensor(").removesuffix(")"), "shape": shape}
        for name, (kind, shape) in values.items()
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _kinds(folder: Path) -> dict[str, str]:
    """The description of each file of a graph."""
    what = {MODEL: "whole texts", DECODER: "one token after others", ENCODER: "source of a decoder"}
    kinds = {}
    for path in folder.glob("*.onnx*"):
        name, _, rest = path.name.partition(".")
        kinds[path.name] = what[name] + (", 8-bit weights" if rest.startswith("int8") else "")
        if rest.endswith("data"):
            kinds[path.name] = f"weights of {name}.onnx"
    return kinds
