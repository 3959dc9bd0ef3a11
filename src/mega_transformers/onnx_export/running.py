"""Runs graphs in ONNX Runtime on one CPU thread."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..models.mega.configuration_mega import MegaConfig
from .graphs import CROSS, PAST, PRESENT, empty_past


class Session:
    """A graph that is ready to run.

    Args:
        path: Its file.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = {x.name: (x.type, x.shape) for x in self._session.get_inputs()}
        self.outputs = {x.name: (x.type, x.shape) for x in self._session.get_outputs()}

    def __call__(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Inputs by name -> outputs by name; inputs that the graph lacks are ignored."""
        given = {name: inputs[name].numpy() for name in self.inputs}
        return dict(zip(self.outputs, map(torch.from_numpy, self._session.run(None, given))))


class Decoder:
    """A graph `decoder` and its cache.

    Args:
        session: The graph.
        past: Outputs of the graph `model` for a prompt; or of the graph `encoder`, and a source's mask `cross.mask`.
        config: The decoder's configuration.
    """

    def __init__(self, session: Session, past: dict[str, Tensor], config: MegaConfig) -> None:
        self._session = session
        self._cross = {name: x for name, x in past.items() if name.startswith(CROSS)}
        self._past = _renamed(past) or empty_past(config, len(past[f"{CROSS}mask"]))

    def step(self, ids: Tensor) -> Tensor:
        """The next tokens (B, 1) -> logits (B, 1, V) of those after them."""
        outputs = self._session({"input_ids": ids, **self._past, **self._cross})
        self._past = _renamed(outputs)
        return outputs["logits"]


def _renamed(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {PAST + name.removeprefix(PRESENT): x for name, x in outputs.items() if name.startswith(PRESENT)}
