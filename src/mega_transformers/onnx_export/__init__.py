"""Exports models to graphs for ONNX Runtime: `mega export-onnx`.

`graphs` defines the graphs of a model, `open_cache` is a decoder's cache as inputs and outputs, `exporting` makes the
graphs, `running` runs them, `check` compares them with the model, `quantise` writes them with 8-bit weights, and `run`
writes the folder.
"""

from .graphs import ExportError
from .onnx_folder import ExportReport, export_folder

__all__ = ["ExportError", "ExportReport", "export_folder"]
