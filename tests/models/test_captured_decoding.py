"""A decoding step with a static cache is one graph that CUDA graphs can record: what of that shows without a GPU."""

import pytest
import torch
from tiny import CAUSAL, tiny_config
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.utils import get_first_incompatible_cudagraph_node
from transformers import CompileConfig, StaticCache

from mega_transformers import MegaForCausalLM

FORMS = {
    "rotary": {},
    "chunks": {"use_chunking": True, "chunk_size": 8},
    "laplace, truncated": {"attention_activation": "laplace", "truncation": 4},
    "simple": {"relative_positional_bias": "simple", "max_positions": 64},
}
STEPS, ROOM = 20, 64


def make(form, device="cpu"):
    torch.manual_seed(0)
    with torch.device(device):
        return MegaForCausalLM(tiny_config(**CAUSAL, **FORMS[form], initializer_range=0.5)).eval()


def tensors_of(cache):
    """By name, every tensor that a cache holds between forward passes."""
    found = {}
    for index, layer in enumerate(cache.layers):
        for name, value in {**vars(layer), **layer._memory}.items():
            parts = value if isinstance(value, tuple) else (value,)
            found |= {(index, name, i): part for i, part in enumerate(parts) if torch.is_tensor(part)}
    return found


@pytest.mark.parametrize(("form", "rows"), [("rotary", 1), ("chunks", 2)])
def test_steps_compile_once_and_give_the_tokens_of_a_dynamic_cache(form, rows):
    model = make(form)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    how = CompileConfig(fullgraph=True, backend="eager", mode=None)
    how._compile_all_devices = True
    addresses = []

    class Look:
        """A stopping criterion that sees the cache after every step."""

        def __call__(self, input_ids, scores, **kwargs):
            addresses.append({name: x.data_ptr() for name, x in tensors_of(cache).items()})
            return torch.zeros(rows, dtype=torch.bool)

    options = {"max_new_tokens": STEPS, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}
    ids = torch.randint(5, 31, (rows, 11))
    for length in (11, 4):  # a second prompt of another length finds the graph of the first
        mask = (torch.arange(length) >= torch.arange(rows)[:, None]).long()
        expected = model.generate(ids[:, :length], attention_mask=mask, **options)
        cache = StaticCache(config=model.config, max_cache_len=ROOM)
        given = {"cache": cache, "compile_config": how, "stopping_criteria": [Look()]}
        assert torch.equal(model.generate(ids[:, :length], attention_mask=mask, **options, **given), expected)
        assert len(addresses) == STEPS and all(seen == addresses[0] for seen in addresses)
        assert len(addresses[0]) > 8 * len(cache.layers)
        addresses.clear()
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("form", [form for form in FORMS if form != "rotary"])
def test_nothing_in_a_step_prevents_its_capture(form):
    """Inductor records a graph of one device that changes no input but those at static addresses."""
    graphs = []

    def look(graph, inputs):
        static = torch._guards.TracingContext.get().fw_metadata.static_input_indices
        places = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
        graphs.append((graph, {places[i] for i in static if i < len(places)}))
        return graph.forward

    torch.compiler.reset()
    model = make(form, "meta")
    cache = StaticCache(config=model.config, max_cache_len=ROOM)
    backend = aot_autograd(fw_compiler=look, inference_compiler=look, keep_inference_input_mutations=True)
    step = torch.compile(model.__call__, backend=backend, fullgraph=True)
    with torch.no_grad():
        for call, length in ((model, 5), (step, 1), (step, 1), (step, 1)):
            ids = torch.ones(2, length, dtype=torch.int64, device="meta")
            call(input_ids=ids, attention_mask=ids, cache=cache, use_cache=True, return_dict=True)
    ((graph, static),) = graphs
    nodes = graph.graph.nodes
    values = [node.meta["val"] for node in nodes if isinstance(node.meta.get("val"), torch.Tensor)]
    assert len(values) > 100 and {x.device.type for x in values} == {"meta"}
    changed = {node.args[0].name for node in nodes if node.target is torch.ops.aten.copy_.default}
    assert len(changed) >= 3 + 3 * len(cache.layers) and changed <= static
    assert get_first_incompatible_cudagraph_node(graph) is None
    # of what a step leaves behind, nothing is in memory that the next one overwrites
    (output,) = (node for node in nodes if node.op == "output")
    assert [tuple(x.meta["val"].shape) for x in output.args[0] if x is not None] == [(2, 1, 31)]
