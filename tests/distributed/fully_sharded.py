"""The tiny training problem under fully_shard, HSDP and tensor parallelism, as a user writes it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from distforge.errors import InputError
from distforge.optim import MuonGrokfast, lr_factor
from distforge.training.distributed import World
from tests.newton_schulz_calls import newton_schulz_calls
from tests.tiny_models import tiny_llama
from tests.training_cases import (
    MUON,
    SCHEDULE,
    STEPS,
    VOCAB,
    collate,
    count_targets,
    examples,
)

CONFIG = MUON.muon_grokfast.replace(qk_clip_threshold=None)


def ensure_group(world: World) -> None:
    """One rank has no process group in these tests, but fully_shard wants one."""
    if not dist.is_initialized():
        place = Path(tempfile.mkdtemp(), "store")
        dist.init_process_group("gloo", init_method=f"file://{place}", rank=0, world_size=1)


def sharded(
    world: World, *, reshard: bool = True, mesh: DeviceMesh | None = None, bfloat16: bool = False
) -> nn.Module:
    ensure_group(world)
    model = tiny_llama(VOCAB).train()
    mesh = mesh or init_device_mesh("cpu", (world.size,))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if bfloat16 else None)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=reshard, mp_policy=policy)
    return fully_shard(model, mesh=mesh, reshard_after_forward=reshard, mp_policy=policy)


def tensor_parallel(world: World) -> nn.Module:
    """Sharded where transformers' own plan for Llama says, by torch's styles."""
    model = tiny_llama(VOCAB).train()
    styles = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}
    plan = {
        f"model.{name}": styles[kind]() for name, kind in model.config.base_model_tp_plan.items()
    }
    return parallelize_module(model, init_device_mesh("cpu", (world.size,)), plan)


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: range,
    *,
    portion: tuple[int, int],
    max_norm: float,
) -> None:
    """Plain torch: this rank's rows, the mean over ranks, clipping, a step."""
    rank, size = portion
    for step in steps:
        for group in optimizer.param_groups:
            base = CONFIG.muon_lr if group["algorithm"] == "muon" else CONFIG.adamw_lr
            group["lr"] = base * lr_factor(SCHEDULE, step, STEPS)
        batch = collate(examples(step)[rank::size])
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        loss = nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
        )
        (loss * size / count_targets(step)).backward()
        if max_norm < math.inf:
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        optimizer.zero_grad()


def whole(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: value.full_tensor() if isinstance(value, DTensor) else value.clone()
        for name, value in model.state_dict().items()
    }


def save(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder)


def load(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    weights, state = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)


@contextmanager
def elements_sent() -> Iterator[list[int]]:
    """How many elements this process sends to others by each all-to-all meanwhile."""
    sent: list[int] = []
    original = dist.all_to_all_single

    def counted(output, input, receive, send, group=None, async_op=False):
        sent.append(sum(send) - send[dist.get_rank(group)])
        return original(output, input, receive, send, group=group, async_op=async_op)

    dist.all_to_all_single = counted
    try:
        yield sent
    finally:
        dist.all_to_all_single = original


def train_sharded(
    world: World,
    kind: str,
    reshard: bool = True,
    max_norm: float = math.inf,
    bfloat16: bool = False,
):
    """Last weights, matrices orthogonalised here, elements sent and elements of Muon's weights."""
    portion = (world.rank, world.size)
    if kind == "tensor parallel":
        model, portion = tensor_parallel(world), (0, 1)
    elif kind == "hsdp":
        mesh = init_device_mesh("cpu", (2, world.size // 2), mesh_dim_names=("copy", "shard"))
        model = sharded(world, mesh=mesh)
    else:
        model = sharded(world, reshard=reshard, bfloat16=bfloat16)
    optimizer = MuonGrokfast(model, CONFIG)
    with newton_schulz_calls() as calls, elements_sent() as sent:
        fit(model, optimizer, range(STEPS), portion=portion, max_norm=max_norm)
    muon = sum(
        p.numel() for g in optimizer.param_groups if g["algorithm"] == "muon" for p in g["params"]
    )
    return whole(model), sum(call.shape[0] for call in calls), sum(sent), muon


def save_sharded(world: World, folder: Path) -> None:
    model = sharded(world)
    optimizer = MuonGrokfast(model, CONFIG)
    fit(model, optimizer, range(3), portion=(world.rank, world.size), max_norm=0.5)
    save(model, optimizer, folder)


def resume_sharded(world: World, folder: Path):
    model = sharded(world)
    optimizer = MuonGrokfast(model, CONFIG)
    load(model, optimizer, folder)
    fit(model, optimizer, range(3, STEPS), portion=(world.rank, world.size), max_norm=0.5)
    return whole(model)


def drawn(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Numbers that bfloat16 holds."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).bfloat16().float()


def train_bfloat16(world: World, shape: tuple[int, int], lr: float, seeds: int) -> torch.Tensor:
    """A bfloat16 weight under fully_shard after three steps: its mean over seeds of rounding."""
    mesh, total = init_device_mesh("cpu", (world.size,)), torch.zeros(shape)
    for seed in range(seeds):
        layer = nn.Linear(shape[1], shape[0], bias=False)
        layer.weight.data = drawn(shape, 0)
        layer = fully_shard(layer.bfloat16(), mesh=mesh)
        optimizer, weight = MuonGrokfast(layer, CONFIG, muon_lr=lr, seed=seed), layer.weight
        for step in range(3):
            grad = drawn(shape, 1 + step).bfloat16()
            weight.grad = distribute_tensor(grad, mesh, weight.placements)
            optimizer.step()
        total += weight.full_tensor().detach().float() / seeds
    return total


def train_experts(
    world: World, shape: tuple[int, int, int], lr: float
) -> tuple[torch.Tensor, int, int]:
    """A stack of experts, some on each rank, after three steps; how many matrices were
    orthogonalised here, and elements sent."""
    mesh = init_device_mesh("cpu", (world.size,))
    param = nn.Parameter(distribute_tensor(drawn(shape, 0), mesh, [Shard(0)]))
    optimizer = MuonGrokfast([("mlp.experts.down_proj", param)], CONFIG, muon_lr=lr)
    with newton_schulz_calls() as calls, elements_sent() as sent:
        for step in range(3):
            param.grad = distribute_tensor(drawn(shape, 1 + step), mesh, [Shard(0)])
            optimizer.step()
    return param.full_tensor().detach(), sum(call.shape[0] for call in calls), sum(sent)


def refused_normuon(world: World) -> str:
    layer = fully_shard(nn.Linear(8, 8, bias=False), mesh=init_device_mesh("cpu", (world.size,)))
    optimizer = MuonGrokfast(layer, CONFIG, neuron_beta=0.9)
    layer.weight.grad = torch.zeros_like(layer.weight)
    before = layer.weight.full_tensor().clone()
    try:
        optimizer.step()
    except InputError as refusal:
        unchanged = torch.equal(layer.weight.full_tensor(), before) and not optimizer.state
        return str(refusal) if unchanged else "something has changed"
    return "not refused"
