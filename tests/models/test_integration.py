"""What transformers and PyTorch ask of a model: compilation, export, checkpointing, dtypes, loading, tied weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from functorch.compile import make_boxed_func
from safetensors import safe_open
from torch._dynamo.backends.common import aot_autograd
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache

from mega_transformers import (
    MegaConfig,
    MegaForCausalLM,
    MegaForMaskedLM,
    MegaForMultipleChoice,
    MegaForQuestionAnswering,
    MegaForSequenceClassification,
    MegaForTokenClassification,
    MegaModel,
    MegaPreTrainedModel,
)

BATCH, LENGTH, CHOICES = 3, 11, 2
CLASSES = [
    MegaModel,
    MegaForMaskedLM,
    MegaForSequenceClassification,
    MegaForTokenClassification,
    MegaForMultipleChoice,
    MegaForQuestionAnswering,
]
FORMS = {
    "softmax": {},
    "laplace": {"attention_activation": "laplace"},
    "chunked": {"use_chunking": True, "chunk_size": 4, "relative_positional_bias": "simple"},
    "causal": {"is_decoder": True, "bidirectional": False},
}


def make(model_class: type[MegaPreTrainedModel], dropout: float = 0.0, **fields) -> MegaPreTrainedModel:
    """A tiny model in eval mode whose weights are large enough for errors to show."""
    attn_implementation = fields.pop("attn_implementation", None)
    config = MegaConfig(
        **{
            "vocab_size": 50,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "intermediate_size": 24,
            "nffn_hidden_size": 24,
            "shared_representation_size": 16,
            "ema_projection_size": 4,
            "max_positions": 64,
            "initializer_range": 0.2,
            "num_labels": 2,
            "dropout_prob": dropout,
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": dropout,
            "nffn_activation_dropout_prob": dropout,
            **fields,
        }
    )
    torch.manual_seed(0)
    return model_class._from_config(config, attn_implementation=attn_implementation).eval()


def inputs_for(model_class: type[MegaPreTrainedModel], mask: bool = True, labels: bool = False) -> dict:
    """Ids, right and left padding if `mask`, and what the class calls its labels if `labels`."""
    generator = torch.Generator().manual_seed(1)
    shape = (BATCH, CHOICES, LENGTH) if model_class is MegaForMultipleChoice else (BATCH, LENGTH)
    inputs = {"input_ids": torch.randint(3, 50, shape, generator=generator)}
    if mask:
        inputs["attention_mask"] = torch.ones(shape, dtype=torch.int64)
        inputs["attention_mask"][0, ..., -3:] = 0
        inputs["attention_mask"][1, ..., :2] = 0
    if labels:
        inputs |= {
            MegaForMaskedLM: {"labels": inputs["input_ids"]},
            MegaForTokenClassification: {"labels": inputs["input_ids"] % 2},
            MegaForQuestionAnswering: {"start_positions": torch.arange(BATCH), "end_positions": torch.arange(BATCH)},
            MegaModel: {},
        }.get(model_class, {"labels": torch.arange(BATCH) % 2})
    return inputs


def loss_of(outputs) -> torch.Tensor:
    """The model's loss; for the base model, a number that every parameter influences."""
    if "last_hidden_state" in outputs:
        return outputs.last_hidden_state.square().mean() + outputs.pooler_output.square().mean()
    return outputs.loss


def gradients(model: MegaPreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_outputs(actual, expected, **tolerances) -> None:
    assert actual.keys() == expected.keys()
    for name in expected.keys() - {"cache", "past_key_values"}:
        torch.testing.assert_close(actual[name], expected[name], **tolerances)


# -- compilation and export


@pytest.mark.parametrize("mask", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_base_model_compiles_in_one_graph(form: str, mask: bool, training: bool) -> None:
    torch.compiler.reset()
    model = make(MegaModel, **FORMS[form]).train(training)
    inputs = inputs_for(MegaModel, mask)
    expected = model(**inputs)
    loss_of(expected).backward()
    wanted = gradients(model)
    model.zero_grad()

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
    actual = compiled(**inputs)
    loss_of(actual).backward()
    assert_same_outputs(actual, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients(model), wanted, rtol=1e-3, atol=1e-5)


def graphs_of(model, *calls, **options) -> int:
    """How many graphs a compiled model makes of calls, given as keyword arguments."""
    torch.compiler.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=count, fullgraph=True)
    for call in calls:
        compiled(**call, **options)
    return len(graphs)


def test_packed_rows_compile_in_one_graph() -> None:
    borders = torch.tensor([0, 4, LENGTH])
    assert graphs_of(make(MegaModel), {"input_ids": torch.arange(LENGTH)[None], "cu_seq_lens_q": borders}) == 1


@pytest.mark.parametrize("form", ["causal", "causal chunked"])
def test_steps_of_a_growing_cache_compile_once(form: str) -> None:
    """Into a graph of the first length, and one of any; with chunks also of their borders."""
    fields = {"use_chunking": True, "chunk_size": 4} if "chunked" in form else {}
    model = make(MegaForCausalLM, **FORMS["causal"], **fields)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.arange(5)[None], cache=cache)
        steps = [{"input_ids": torch.tensor([[token]])} for token in range(3, 20)]
        assert graphs_of(model, *steps, cache=cache) <= (2 if not fields else 6)


@pytest.mark.parametrize("activation", ["softmax", "laplace", "relu2"])
def test_graphs_do_not_grow_with_the_square(activation: str) -> None:
    """Attention and loss are operators that compilers call, forward and backward."""
    torch.compiler.reset()
    sizes = []

    def look(graph, inputs):
        values = [node.meta.get("val") for node in graph.graph.nodes]
        sizes.append(max(x.numel() for x in tree_leaves(values) if torch.is_tensor(x)))
        return make_boxed_func(graph.forward)

    length = 600
    model = make(MegaForMaskedLM, attention_activation=activation, max_positions=length).train()
    ids = torch.randint(3, 50, (1, length))
    compiled = torch.compile(model, backend=aot_autograd(fw_compiler=look, bw_compiler=look), fullgraph=True)
    compiled(ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
    assert len(sizes) == 2 and 0 < max(sizes) < length * length / 4


@pytest.mark.parametrize("form", FORMS)
def test_compiled_models_take_other_lengths(form: str) -> None:
    """By default PyTorch compiles a second length with the length left open."""
    torch.compiler.reset()
    model = make(MegaModel, **FORMS[form])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for length in (12, 16, 24):
        ids = torch.randint(5, 30, (2, length))
        with torch.no_grad():
            assert_same_outputs(compiled(ids, use_cache=False), model(ids, use_cache=False), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_class", CLASSES[1:])
def test_heads_compile_in_one_graph_with_their_loss(model_class: type[MegaPreTrainedModel]) -> None:
    torch.compiler.reset()
    model = make(model_class)
    inputs = inputs_for(model_class, labels=True)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
    assert_same_outputs(compiled(**inputs), model(**inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["softmax", "laplace"])
def test_masked_lm_compiles_with_inductor(form: str) -> None:
    torch.compiler.reset()
    model = make(MegaForMaskedLM, **FORMS[form])
    inputs = inputs_for(MegaForMaskedLM)
    with torch.no_grad():
        actual = torch.compile(model, fullgraph=True, dynamic=False)(**inputs)
        assert_same_outputs(actual, model(**inputs), rtol=1e-4, atol=1e-5)


def test_compiles_with_dropout() -> None:
    torch.compiler.reset()
    model = make(MegaForMaskedLM, dropout=0.1, use_feature_dropout=True).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
    compiled(**inputs_for(MegaForMaskedLM, labels=True)).loss.backward()
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model).values())


class LastHiddenState(torch.nn.Module):
    """Tensors in, a tensor out, as `torch.export` likes it."""

    def __init__(self, model: MegaModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


@pytest.mark.parametrize("form", FORMS)
def test_exports(form: str) -> None:
    model = LastHiddenState(make(MegaModel, **FORMS[form]))
    inputs = inputs_for(MegaModel)
    program = torch.export.export(model, (), inputs)
    torch.testing.assert_close(program.module()(**inputs), model(**inputs), rtol=1e-4, atol=1e-5)


# the length stays fixed where windows of it are cut (bias of element-wise attention) and where chunks are filled up
@pytest.mark.parametrize(
    ("form", "axes"), [("softmax", (0, 1)), ("causal", (0, 1)), ("laplace", (0, 1)), ("chunked", (0,))]
)
def test_exports_with_open_shapes(form: str, axes: tuple[int, ...]) -> None:
    model = LastHiddenState(make(MegaModel, **FORMS[form], use_cache=False))
    inputs = inputs_for(MegaModel)
    dims = dict.fromkeys(axes, torch.export.Dim.DYNAMIC)
    program = torch.export.export(model, (), inputs, dynamic_shapes={"input_ids": dims, "attention_mask": dims})
    other = {name: x[:2] for name, x in inputs.items()}
    if 1 in axes:
        other = {name: torch.cat([x, x.flip(1), x] * 3, dim=1) for name, x in other.items()}
    torch.testing.assert_close(program.module()(**other), model(**other), rtol=1e-4, atol=1e-5)


def test_exports_with_transformers_exporter() -> None:
    exporters = pytest.importorskip("transformers.exporters.exporter_dynamo")
    model = make(MegaForMaskedLM)
    inputs = inputs_for(MegaForMaskedLM)
    exported = exporters.DynamoExporter().export(model, inputs, config=exporters.DynamoConfig())
    # a program before transformers 5.23, from then on what runs it
    run = exported.module() if isinstance(exported, torch.export.ExportedProgram) else exported
    torch.testing.assert_close(run(**inputs).logits, model(**inputs).logits, rtol=1e-4, atol=1e-5)


# -- training


@pytest.mark.parametrize("model_class", CLASSES)
def test_gradient_checkpointing_changes_nothing(model_class: type[MegaPreTrainedModel]) -> None:
    inputs = inputs_for(model_class, labels=True)

    def train(checkpointed: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model = make(model_class, dropout=0.1).train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        torch.manual_seed(2)  # dropout is replayed
        loss = loss_of(model(**inputs))
        loss.backward()
        return loss, gradients(model)

    (loss, grads), (expected_loss, expected_grads) = train(True), train(False)
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(grads, expected_grads)


def test_bf16_autocast_step_is_close_to_float32() -> None:
    inputs = inputs_for(MegaForMaskedLM, labels=True)
    model = make(MegaForMaskedLM).train()
    expected = model(**inputs).loss
    expected.backward()
    wanted = gradients(model)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**inputs).loss
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=0.01, atol=0)
    for name, gradient in gradients(model).items():
        assert gradient.dtype == torch.float32
        angle = torch.cosine_similarity(gradient.flatten(), wanted[name].flatten(), dim=0)
        assert angle > 0.95 or wanted[name].norm() < 1e-3, f"{name}: cosine {angle:.3f}"


# -- attention implementations


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
def test_implementations_agree(form: str, implementation: str) -> None:
    inputs = inputs_for(MegaModel)
    expected = make(MegaModel, attn_implementation="sdpa", **FORMS[form])(**inputs)
    model = make(MegaModel, attn_implementation=implementation, **FORMS[form])
    assert model.config._attn_implementation == implementation
    with torch.no_grad():  # PyTorch's flex attention has no backward pass on a CPU
        assert_same_outputs(model(**inputs), expected, rtol=1e-4, atol=1e-5)


def test_implementation_can_be_changed_later() -> None:
    model, inputs = make(MegaModel), inputs_for(MegaModel)
    expected = model(**inputs)
    model.set_attn_implementation("eager")
    assert_same_outputs(model(**inputs), expected, rtol=1e-4, atol=1e-5)


# -- saving and loading


@pytest.mark.parametrize("model_class", CLASSES)
@pytest.mark.parametrize("device_map", [None, "cpu", "auto"])
def test_save_and_load(model_class: type[MegaPreTrainedModel], device_map: str | None, tmp_path: Path) -> None:
    model, inputs = make(model_class), inputs_for(model_class)
    model.save_pretrained(tmp_path)
    loaded, info = model_class.from_pretrained(tmp_path, device_map=device_map, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    saved, read = model.state_dict(), loaded.state_dict()
    assert saved.keys() == read.keys()
    for name in saved:
        assert torch.equal(read[name].cpu(), saved[name]), name
    with torch.no_grad():
        # the same weights at other addresses may go through other instructions
        model.to(loaded.device)
        inputs = {name: tensor.to(loaded.device) for name, tensor in inputs.items()}
        assert_same_outputs(loaded(**inputs), model(**inputs), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
def test_half_precision_keeps_the_ema_in_float32(dtype: torch.dtype, form: str, tmp_path: Path) -> None:
    make(MegaModel, **FORMS[form]).save_pretrained(tmp_path)
    model = MegaModel.from_pretrained(tmp_path, dtype=dtype)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if "ema_gate" in name else dtype), name
    hidden_states = model(**inputs_for(MegaModel)).last_hidden_state
    assert hidden_states.dtype == dtype
    assert torch.isfinite(hidden_states).all()


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_are_saved_once(tied: bool, tmp_path: Path) -> None:
    model = make(MegaForMaskedLM, tie_word_embeddings=tied)
    words = model.get_input_embeddings().weight
    assert (model.mlm_head.weight is words) == tied
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        saved = set(file.keys())
    assert "mega.embedding_layer.word_embeddings.weight" in saved
    assert ("mlm_head.weight" in saved) == (not tied)
    loaded = MegaForMaskedLM.from_pretrained(tmp_path)
    assert (loaded.mlm_head.weight is loaded.get_input_embeddings().weight) == tied
    torch.testing.assert_close(loaded.mlm_head.weight, model.mlm_head.weight, rtol=0, atol=0)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [40, 57])
def test_resized_embeddings(tied: bool, size: int, tmp_path: Path) -> None:
    model = make(MegaForMaskedLM, tie_word_embeddings=tied)
    words, bias = (x.detach().clone() for x in (model.get_input_embeddings().weight, model.mlm_head.bias))
    model.resize_token_embeddings(size)
    kept = min(size, 50)
    assert model.config.vocab_size == size
    assert model.mlm_head.weight.shape == model.get_input_embeddings().weight.shape == (size, 16)
    assert model.mlm_head.bias.shape == (size,)
    assert (model.mlm_head.weight is model.get_input_embeddings().weight) == tied
    torch.testing.assert_close(model.get_input_embeddings().weight[:kept], words[:kept], rtol=0, atol=0)
    torch.testing.assert_close(model.mlm_head.bias[:kept], bias[:kept], rtol=0, atol=0)

    inputs = {"input_ids": torch.arange(3, size).unsqueeze(0)}
    logits = model(**inputs, labels=inputs["input_ids"]).logits
    assert logits.shape == (1, size - 3, size)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(MegaForMaskedLM.from_pretrained(tmp_path)(**inputs).logits, logits)


@pytest.mark.parametrize("model_class", [MegaForMaskedLM, MegaForCausalLM])
def test_weights_may_be_offloaded(model_class):
    """accelerate brings a module's weights when it is called, and no earlier."""
    from accelerate import cpu_offload

    model = make(model_class, **(FORMS["causal"] if model_class is MegaForCausalLM else {}))
    ids = torch.randint(3, model.config.vocab_size, (2, 9))
    expected = model(ids).logits
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert model.mega.layers[0].mega_layer.qk_weight.is_meta
    with torch.no_grad():
        assert torch.equal(model(ids).logits, expected)
