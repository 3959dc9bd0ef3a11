"""From a workload to what a worker steps through. Runs in peers' interpreters too."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.cases import MATMULS, Workload
from benchmarks.generation import DecodingSubject, GenerationSubject, PrefillSubject
from benchmarks.models import MODELS
from benchmarks.ops import OPS
from benchmarks.subjects import MatmulSubject, ModelSubject, OpSubject, Subject


def build(peer: str, workload: Workload, seed: int) -> Subject:
    """The subject of a workload in a peer's hands; the same seed gives every peer the same inputs."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    if workload.task in OPS:
        return OpSubject(OPS[workload.task](peer, workload, generator), workload)
    module = _model(peer, workload)
    if peer == MATMULS:
        return MatmulSubject(module, workload, generator)
    if workload.task == "prefill":
        return PrefillSubject(peer, module, workload, generator)
    if workload.task == "decode":
        return DecodingSubject(peer, module, workload, generator)
    if workload.task == "generate":
        return GenerationSubject(peer, module, workload, generator)
    return ModelSubject(module, workload, generator)


def _model(peer: str, workload: Workload) -> nn.Module:
    """Made where and as it is to compute: by the default dtype, Mega keeps its EMA in float32."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, workload.dtype))
    try:
        with torch.device(workload.device):
            return MODELS[peer](workload)
    finally:
        torch.set_default_dtype(usual)
