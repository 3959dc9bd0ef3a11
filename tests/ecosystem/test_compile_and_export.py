"""One graph for all lengths: torch.compile with open shapes, and torch.export. ONNX is in `tests/onnx_export`."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch.utils._pytree import tree_leaves

from mega_transformers import MegaConfig, MegaModel

TEN_LENGTHS = (5, 17, 40, 64, 100, 130, 200, 333, 700, 1000)
SHAPES = tuple(itertools.product((1, 2, 3), (1, 7, 40, 64, 1000)))
MAX_POSITIONS, CHUNK = 1024, 16


class Case(NamedTuple):
    """A configuration, and whether there is an attention mask."""

    causal: bool
    activation: str
    bias: str
    chunks: bool
    mask: bool

    def __str__(self) -> str:
        causal, chunks = "causal" if self.causal else "encoder", "chunks" if self.chunks else "whole"
        return f"{causal}-{self.activation}-{self.bias}-{chunks}-{'mask' if self.mask else 'plain'}"


BOTH = (False, True)
CASES = [
    Case(*fields, mask)
    for fields in itertools.product(BOTH, ("softmax", "laplace", "relu2"), ("rotary", "simple"), BOTH)
    for mask in BOTH
]
# half of them: every pair of values of two fields is among them
HALF = [case for case in CASES if (case.causal + (case.bias == "simple") + case.chunks + case.mask) % 2]
FEW = [
    case for case in HALF if (case.activation == "relu2") == (case.bias == "simple") == (case.causal != case.chunks)
]


class LastHiddenState(torch.nn.Module):
    """Ids, and a mask if any, to the last hidden state of a tiny model whose weights let errors show."""

    def __init__(self, case: Case, **fields) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = MegaConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=2,
            intermediate_size=24,
            nffn_hidden_size=24,
            shared_representation_size=16,
            ema_projection_size=4,
            max_positions=MAX_POSITIONS,
            initializer_range=0.2,
            dropout_prob=0.0,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            nffn_activation_dropout_prob=0.0,
            use_cache=False,
            attention_activation=case.activation,
            relative_positional_bias=case.bias,
            use_chunking=case.chunks,
            chunk_size=CHUNK if case.chunks else -1,
            is_decoder=case.causal,
            bidirectional=not case.causal,
            **fields,
        )
        self.model = MegaModel(config, add_pooling_layer=False).eval()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def inputs_of(case: Case, batch: int, length: int) -> dict[str, torch.Tensor]:
    """Random ids; with a mask the first row is padded on the right, and the second on the left."""
    generator = torch.Generator().manual_seed(length)
    inputs = {"input_ids": torch.randint(3, 50, (batch, length), generator=generator)}
    if case.mask:
        mask = inputs["attention_mask"] = torch.ones(batch, length, dtype=torch.int64)
        mask[0, length - length // 3 :] = 0
        mask[1:2, : length // 4] = 0
    return inputs


def deviation(actual: torch.Tensor, expected: torch.Tensor, inputs: dict[str, torch.Tensor]) -> float:
    """The greatest, at real tokens: what padding outputs is nobody's."""
    assert actual.shape == expected.shape
    difference = (actual - expected).detach().abs()
    if "attention_mask" in inputs:
        difference = difference * inputs["attention_mask"].unsqueeze(-1)
    return difference.max().item()


# -- torch.compile


@pytest.mark.parametrize("case", HALF, ids=str)
def test_one_compiled_graph_serves_ten_lengths(case: Case) -> None:
    torch.compiler.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = LastHiddenState(case)
    compiled = torch.compile(model, backend=count, dynamic=True, fullgraph=True)
    for length in TEN_LENGTHS:
        inputs = inputs_of(case, 2, length)
        with torch.no_grad():
            assert deviation(compiled(**inputs), model(**inputs), inputs) < 2e-4
    assert len(graphs) == 1


def symbolic_sizes(graph: torch.fx.GraphModule) -> list[int]:
    """Numbers of elements of a graph's tensors, at the lengths it was made with."""
    tensors = [x for x in tree_leaves([node.meta.get("val") for node in graph.graph.nodes]) if torch.is_tensor(x)]
    counts = [x.numel() for x in tensors]
    return [n if isinstance(n, int) else n.node.hint for n in counts]


@pytest.mark.parametrize("case", FEW, ids=str)
def test_one_compiled_graph_trains_at_ten_lengths(case: Case) -> None:
    """Forward and backward, with the gradients of the model itself, and nothing as large as the length squared."""
    torch.compiler.reset()
    passes: dict[str, list[int]] = {"forward": [], "backward": []}

    def compiler(name: str) -> Callable:
        def look(graph, inputs):
            passes[name].append(max(symbolic_sizes(graph)))
            return make_boxed_func(graph.forward)

        return look

    model = LastHiddenState(case).train()
    backend = aot_autograd(fw_compiler=compiler("forward"), bw_compiler=compiler("backward"))
    compiled = torch.compile(model, backend=backend, dynamic=True, fullgraph=True)
    for length in reversed(TEN_LENGTHS):
        inputs = inputs_of(case, 1, length)
        found = []
        for run in (compiled, model):
            model.zero_grad()
            output = run(**inputs)
            if case.mask:
                output = output * inputs["attention_mask"].unsqueeze(-1)
            output.square().mean().backward()
            found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)
    assert len(passes["forward"]) == len(passes["backward"]) == 1
    assert max(passes["forward"] + passes["backward"]) < TEN_LENGTHS[-1] ** 2 / 4


# -- torch.export


def open_shapes(case: Case) -> dict[str, dict]:
    """Batch and length left open; a simple bias without chunks ends somewhere."""
    longest = MAX_POSITIONS if case.bias == "simple" and not case.chunks else None
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=longest)}
    return dict.fromkeys(inputs_of(case, 2, 11), dims)


def assert_exports(model: LastHiddenState, case: Case, strict: bool, named: bool = True) -> None:
    dims = dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)
    shapes = open_shapes(case) if named else dict.fromkeys(inputs_of(case, 2, 11), dims)
    program = torch.export.export(model, (), inputs_of(case, 2, 11), dynamic_shapes=shapes, strict=strict)
    run = program.module()
    for batch, length in SHAPES:
        inputs = inputs_of(case, batch, length)
        with torch.no_grad():
            assert deviation(run(**inputs), model(**inputs), inputs) < 1e-4, (batch, length)


@pytest.mark.parametrize("case", HALF, ids=str)
def test_exported_program_serves_any_length(case: Case) -> None:
    assert_exports(LastHiddenState(case), case, strict=False)


@pytest.mark.parametrize("case", FEW, ids=str)
def test_exports_strictly_with_dimensions_found_by_pytorch(case: Case) -> None:
    assert_exports(LastHiddenState(case), case, strict=True, named=False)
