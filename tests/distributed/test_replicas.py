"""Replicas that share the work: bounded scratch, balanced owners, and agreement before a step."""

import gc
import random

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from distforge.errors import InputError
from distforge.optim import MuonGrokfast, MuonGrokfastConfig
from tests.distributed.harness import run_ranks
from tests.newton_schulz_calls import newton_schulz_calls
from tests.peak_memory import peak_bytes

MEGABYTE = 2**20
CONFIG = MuonGrokfastConfig(muon_lr=0.02, ns_dtype="float32")


def matrices(count: int, *shape: int, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for _ in range(count)]
    for param in params:
        param.grad = torch.randn(shape, generator=generator).to(dtype)
    return params


def measure_one_of_64(_, folder) -> int:
    """The peak of one rank, the 63 others being pretended."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=64)
    named = [(f"w{i}", p) for i, p in enumerate(matrices(64, 512, 512))]
    optimizer = MuonGrokfast(named, CONFIG.replace(bucket_cap_mb=16.0))
    optimizer.share_work()
    optimizer.step()  # the state exists from here on
    return peak_bytes(optimizer.step, folder / "trace.json")


def test_scratch_is_the_bucket_and_a_matrix_though_64_ranks_make_one_each(tmp_path):
    assert run_ranks(1, measure_one_of_64, tmp_path)[0] <= (16 + 1) * MEGABYTE


def step_with_others_gradients(world):
    params = dict(zip("abc", matrices(3, 8, 6), strict=True))
    optimizer = MuonGrokfast(params.items(), CONFIG)
    optimizer.share_work()
    params["c" if world.rank == 0 else "b"].grad = None
    before = [p.detach().clone() for p in params.values()]
    with pytest.raises(InputError) as refusal:
        optimizer.step()
    same = all(torch.equal(p, b) for p, b in zip(params.values(), before, strict=True))
    return str(refusal.value), same and not optimizer.state


def test_ranks_must_have_gradients_for_the_same_parameters_not_for_as_many():
    for message, unchanged in run_ranks(2, step_with_others_gradients):
        assert "parameter b of shape (8, 6) has a gradient on 1 of 2 ranks" in message
        assert unchanged


def groups_of_one(world):
    one, other = matrices(2, 8, 8)
    groups = [
        {"params": [one], "algorithm": "muon"},
        {"params": [other], "algorithm": "muon", "weight_decay": 0.0},
    ]
    optimizer = MuonGrokfast(groups, CONFIG)
    optimizer.share_work()
    with newton_schulz_calls() as calls:
        optimizer.step()
    return sum(call.shape[0] for call in calls)


def test_owners_are_balanced_over_groups():
    assert run_ranks(2, groups_of_one) == [1, 1]


def rounded_replicas(world):
    params = matrices(3, 24, 16, dtype=torch.bfloat16)
    vector = nn.Parameter(torch.ones(7, dtype=torch.bfloat16))
    vector.grad = torch.ones_like(vector)
    named = [(f"w{i}", p) for i, p in enumerate([*params, vector])]
    # A tiny bucket, so that results come back in several portions.
    optimizer = MuonGrokfast(named, MuonGrokfastConfig(bucket_cap_mb=0.001, ns_dtype="float32"))
    optimizer.share_work()
    for _ in range(4):
        optimizer.step()
    return [p.detach().float() for _, p in named]


def test_replicas_round_alike():
    one, other = run_ranks(2, rounded_replicas)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    start = [p.detach().float() for p in matrices(3, 24, 16, dtype=torch.bfloat16)]
    assert any(not torch.equal(a, b) for a, b in zip(one, start, strict=False))


@pytest.mark.parametrize(
    "steps", [1000, pytest.param(10_000, marks=[pytest.mark.nightly])], ids=str
)
def test_memory_is_flat_though_gradients_are_missing_at_random(steps):
    params = matrices(12, 25, 25)  # those too large for the one call of small ones
    grads = [param.grad for param in params]
    optimizer = MuonGrokfast([(f"w{i}", p) for i, p in enumerate(params)], CONFIG)
    draw = random.Random(0)
    counts = []
    for step in range(steps):
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad if draw.random() < 0.5 else None
        optimizer.step()
        if step in (steps // 4, steps - 1):
            gc.collect()
            counts.append(len(gc.get_objects()))
    assert len(optimizer._around.plans) <= 32
    # Some plans have more parts than others.
    assert counts[1] <= 1.02 * counts[0]
