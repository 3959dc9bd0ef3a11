"""A graph of a module, by PyTorch's exporter."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from .graphs import LENGTH, ExportError, Graph

OPSET = 18
"""The lowest that has everything, and what PyTorch's exporter writes by itself; it only converts to others."""
LARGEST = 2_000_000_000
"""Bytes in one file: protobuf ends at 2 GiB, and weights then go beside."""


def write_graph(graph: Graph, path: Path, opset: int) -> None:
    """Writes a graph; weights go into a file beside where they would not fit into it.

    Args:
        graph: What to export.
        path: The file to write: "OUT/model.onnx".
        opset: Version of ONNX's operators.

    Raises:
        ExportError: where PyTorch cannot make a graph, or ONNX has no operator for it.
    """
    names = {name for axes in graph.axes.values() for name in axes.values()}
    dims = {name: torch.export.Dim(name, max=graph.longest if name.endswith(LENGTH) else None) for name in names}
    shapes = {name: {axis: dims[each] for axis, each in axes.items()} for name, axes in graph.axes.items()}
    with quiet("torch.onnx", "torch.export"), torch.no_grad():
        outputs = list(graph.module(graph.example))
        try:
            exported = torch.onnx.export(
                graph.module,
                kwargs={"inputs": graph.example},
                dynamo=True,
                dynamic_shapes={"inputs": shapes},
                opset_version=opset,
                input_names=list(graph.example),
                output_names=outputs,
                verbose=False,
            )
        except Exception as error:  # whatever PyTorch's and onnxscript's exporters raise
            reason = " ".join(str(error.__cause__ or error).split())[:400]
            raise ExportError(f"{path.name} cannot be made with --opset {opset}: {reason}") from error
    assert exported is not None
    if exported.model.opset_imports[""] != opset:
        raise ExportError(f"{path.name} cannot be converted to --opset {opset}; leave it out")
    size = sum(x.nbytes for x in graph.module.state_dict().values())
    exported.save(str(path), external_data=size > LARGEST)


@contextmanager
def quiet(*loggers: str | None) -> Iterator[None]:
    """Without warnings, and with errors alone of some loggers: of missing torchvision, names of axes, the like."""
    found = [logging.getLogger(name) for name in loggers]
    levels = [logger.level for logger in found]
    for logger in found:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(found, levels):
            logger.setLevel(level)
