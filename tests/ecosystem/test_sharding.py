"""FSDP2 (`fully_shard`) over two processes on a CPU equals one process without it."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tiny import CAUSAL, tiny_config
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from mega_transformers import MegaForCausalLM

IDS = torch.arange(3, 3 + 2 * 24).view(2, 24) % 28 + 3
STEPS = 4


def make(folder: Path, dtype: torch.dtype) -> MegaForCausalLM:
    return MegaForCausalLM.from_pretrained(folder, dtype=dtype).train()


def losses(model: torch.nn.Module, ids: torch.Tensor) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    found = []
    for _ in range(STEPS):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def work(rank: int, folder: str, way: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous-{way}", rank=rank, world_size=2)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (2,))
        if way == "mixed":  # float32 parameters, computed with in bfloat16: what `MixedPrecisionPolicy` is for
            model, policy = make(Path(folder), torch.float32), MixedPrecisionPolicy(param_dtype=torch.bfloat16)
        else:
            model, policy = make(Path(folder), torch.float32), MixedPrecisionPolicy()
        if way == "bfloat16":
            model = make(Path(folder), torch.bfloat16)
            model.to(torch.bfloat16)  # the EMA's parameters too: a shard has one dtype
        for layer in model.mega.layers:
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
        found = losses(model, IDS[rank : rank + 1])
        torch.save(torch.tensor(found), f"{folder}/{way}-{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("way", ["float32", "mixed", "bfloat16"])
def test_two_processes_equal_one(way: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    MegaForCausalLM(
        tiny_config(**CAUSAL, dropout_prob=0, hidden_dropout_prob=0, attention_probs_dropout_prob=0,
                    nffn_activation_dropout_prob=0)
    ).save_pretrained(tmp_path)  # fmt: skip
    mp.spawn(work, (str(tmp_path), way), nprocs=2)
    shards = [torch.load(tmp_path / f"{way}-{rank}.pt") for rank in range(2)]
    together = (shards[0] + shards[1]) / 2
    alone = torch.tensor(losses(make(tmp_path, torch.float32), IDS))
    torch.testing.assert_close(together, alone, **({} if way == "float32" else {"rtol": 0.02, "atol": 0.02}))
    assert together[-1] < together[0]
