"""Converts old checkpoints: of fairseq, of a pretrained masked language model, of transformers 4.

`run` is the entry point. One module per format makes a `plan`, `writing` carries it out, and `verification` compares
the result with `reference`, which evaluates the source from its own weights and shares no code with the models.
"""

from .conversion import ConversionReport, convert_checkpoint
from .errors import ConversionError

__all__ = ["ConversionError", "ConversionReport", "convert_checkpoint"]
