"""A row cut over 2 and 4 gloo processes: outputs, losses and gradients of one process, and the bytes exchanged."""

import itertools
import json

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.utils._python_dispatch import TorchDispatchMode

from mega_transformers import MegaConfig, MegaForCausalLM, MegaForMaskedLM, MegaForSequenceClassification, MegaModel
from mega_transformers.parallel import gather_sequence, parallelize_sequence

CHUNK, LENGTH = 8, 75
SIZES = {
    "vocab_size": 40,
    "hidden_size": 12,
    "intermediate_size": 16,
    "shared_representation_size": 8,
    "ema_projection_size": 3,
    "num_hidden_layers": 2,
    "use_chunking": True,
    "chunk_size": CHUNK,
    "max_positions": 32,
    "dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "nffn_activation_dropout_prob": 0.0,
}
KINDS = {
    "masked": (MegaForMaskedLM, {"bidirectional": True}),
    "sparse": (MegaForMaskedLM, {"bidirectional": True, "sparse_prediction": True, "attention_activation": "laplace"}),
    "causal": (MegaForCausalLM, {"bidirectional": False, "is_decoder": True, "relative_positional_bias": "simple"}),
}
PACKINGS = ("whole", "right", "left", "packed")


def deviation(got, want):
    """Relative to the greatest value, or to 1."""
    return ((got - want).abs().max() / want.abs().max().clamp(min=1)).item()


def make(kind, dtype):
    torch.manual_seed(3)
    model_class, fields = KINDS[kind]
    model = model_class(MegaConfig(**SIZES, **fields)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return model


def batch_of(packing):
    torch.manual_seed(5)
    ids = torch.randint(5, 40, (2, LENGTH))
    labels = torch.where(torch.rand(2, LENGTH) < 0.5, ids, -100)
    batch = {"input_ids": ids, "labels": labels}
    if packing in ("right", "left"):
        mask = torch.ones_like(ids)
        if packing == "right":  # the second row ends before the last pieces begin
            mask[1, 31:] = 0
        else:
            mask[0, : 2 * CHUNK] = 0
        batch["attention_mask"] = mask
        batch["labels"] = labels.masked_fill(mask == 0, -100)
    if packing == "packed":  # documents that start at a cut, continue over one, and lie within a piece
        lengths = [[16, 5, 3, 8, 43], [24, 16, 24, 11]]
        batch["position_ids"] = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    return batch


def compare(rank, folder):
    """One of four processes: a row is cut over all of them, or over two, while the other two have the same one."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=4, store=dist.FileStore(f"{folder}/store", 4))
    meshes = {
        4: init_device_mesh("cpu", (4,), mesh_dim_names=("sequence",))["sequence"],
        2: init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "sequence"))["sequence"],
    }
    cases = [(*case, torch.float64) for case in itertools.product(meshes, KINDS, PACKINGS)]
    cases += [(4, kind, "packed", torch.float32) for kind in KINDS]
    found = {str(case): deviations(*case, meshes[case[0]]) for case in cases}
    if rank == 0:
        with open(f"{folder}/found.json", "w") as file:
            json.dump(found, file)
    dist.destroy_process_group()


def deviations(size, kind, packing, dtype, mesh):
    model, batch = make(kind, dtype), batch_of(packing)
    whole = model(**batch)
    whole.loss.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    parallelize_sequence(model, mesh)
    with CountedBytes() as counted:
        part = model(**batch)
        forward = len(counted.sent)
        part.loss.backward()
    # one state a layer and direction, forward and backward
    states = 2 * 12 * 3 * (1 if kind == "causal" else 2) * part.loss.element_size()
    assert forward == 2 and counted.sent == [states] * 4

    def mean(x):
        dist.all_reduce(x, group=mesh.get_group())
        return x / size

    result = {"loss": deviation(mean(part.loss.detach().clone()), whole.loss)}
    if kind != "sparse":
        real = batch.get("attention_mask", torch.ones(2, LENGTH)).unsqueeze(-1)
        result["logits"] = deviation(gather_sequence(part.logits, mesh, LENGTH) * real, whole.logits * real)
    for name, parameter in model.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        result[name] = deviation(mean(gradient), wanted[name])
    return result


class CountedBytes(TorchDispatchMode):
    """Notes the bytes that this process hands to each collective operation."""

    def __init__(self):
        super().__init__()
        self.sent = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            assert func._schema.name == "c10d::allgather_", func
            self.sent += [x.numel() * x.element_size() for x in args[1]]
        return func(*args, **(kwargs or {}))


def test_pieces_equal_one_process(tmp_path):
    mp.spawn(compare, (str(tmp_path),), nprocs=4)
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found) == 2 * len(KINDS) * len(PACKINGS) + len(KINDS)
    for case, result in found.items():
        for name, value in result.items():
            assert value < (1e-12 if "float64" in case else 1e-6), (case, name, value)


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.FileStore(str(tmp_path / "store"), 1))
    yield dist.group.WORLD
    dist.destroy_process_group()


def encoder(**fields):
    return MegaModel(MegaConfig(**{**SIZES, "bidirectional": True, **fields}))


@pytest.mark.parametrize(
    ("make_model", "message"),
    [
        (lambda: encoder(use_chunking=False), "use_chunking=False: full attention"),
        (lambda: encoder(truncation=4), "truncation=4: processes exchange the EMA's states only"),
        (lambda: encoder(is_decoder=True, bidirectional=False, add_cross_attention=True), "add_cross_attention=True"),
        (lambda: MegaForSequenceClassification(encoder().config), "got MegaForSequenceClassification"),
    ],
)
def test_models_that_cannot_be_cut_are_refused(make_model, message, alone):
    with pytest.raises(ValueError, match=message):
        parallelize_sequence(make_model(), alone)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            {"attention_mask": torch.tensor([[0] * 3 + [1] * 17])},
            "must be a multiple of chunk_size=8 tokens; pad on the",
        ),
        ({"use_cache": True}, "a cache cannot be kept"),
        ({"input_ids": None}, "give input_ids or inputs_embeds"),
    ],
)
def test_inputs_that_cannot_be_cut_are_refused(inputs, message, alone):
    model = parallelize_sequence(encoder(), alone)
    with pytest.raises(ValueError, match=message):
        model(**{"input_ids": torch.ones(1, 20, dtype=torch.int64), **inputs})
