"""Makes a graph of a module with PyTorch's exporter."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from .graphs import LENGTH, ExportError, Graph

OPSET = 18
"""The lowest version with all operators, and the native one of PyTorch's exporter, which converts to others."""
LARGEST = 2_000_000_000
"""Most bytes in one file; protobuf is limited to 2 GiB, so larger weights go to a second file."""


def write_graph(graph: Graph, path: Path, opset: int) -> None:
    """Writes a graph; weights that do not fit go to a second file.

    Args:
        graph: The graph to export.
        path: The file to write: "OUT/model.onnx".
        opset: Version of ONNX's operators.

    Raises:
        ExportError: if PyTorch cannot make the graph, or ONNX lacks an operator.
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
        except Exception as error:  # the exporters of PyTorch and onnxscript raise many kinds of errors
            reason = " ".join(str(error.__cause__ or error).split())[:400]
            raise ExportError(f"{path.name} cannot be made with --opset {opset}: {reason}") from error
    assert exported is not None
    if exported.model.opset_imports[""] != opset:
        raise ExportError(f"{path.name} cannot be converted to --opset {opset}; leave out --opset")
    size = sum(x.nbytes for x in graph.module.state_dict().values())
    exported.save(str(path), external_data=size > LARGEST)


@contextmanager
def quiet(*loggers: str | None) -> Iterator[None]:
    """Hides warnings, and messages of some loggers below errors: missing torchvision, names of axes and the like."""
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
