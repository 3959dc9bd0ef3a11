"""Models as graphs for ONNX Runtime: `mega export-onnx`.

`graphs` says which graphs a model has, `open_cache` holds a decoder's memory as their inputs and outputs, `exporting`
makes them, `running` runs them, `check` compares them with the model, `quantise` writes them with 8-bit weights, and
`run` writes the folder.
"""

from .graphs import ExportError
from .run import ExportReport, export_folder

__all__ = ["ExportError", "ExportReport", "export_folder"]
