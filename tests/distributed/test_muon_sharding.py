"""MuonGrokfast trains the same weights on any number of ranks, at every ZeRO stage.

The judge is a float64 oracle that shares no code with the optimizer.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from distforge.errors import InputError
from distforge.optim import MuonGrokfast, build_optimizer
from distforge.training.distributed import World
from distforge.training.engine import TrainingEngine
from tests.distributed.harness import run_ranks
from tests.muon_oracle import muon_oracle
from tests.newton_schulz_calls import newton_schulz_calls
from tests.tiers import grid
from tests.tiny_models import tiny_llama
from tests.training_cases import (
    MUON,
    STEPS,
    VOCAB,
    engine_config,
    make_engine,
    relative_distance,
    train,
    weights,
)

# float32 rounding, which Newton-Schulz magnifies in the directions of small singular values.
FLOAT32 = 1e-5
BFLOAT16 = 1e-3
PORTIONS = 4
NO_CLIP = replace(MUON, muon_grokfast=MUON.muon_grokfast.replace(qk_clip_threshold=None))


@pytest.fixture(scope="module")
def expected():
    return muon_oracle()


def train_and_count(world: World, config, portions: int, optimizer=NO_CLIP):
    """Last weights, and how many matrices went through Newton-Schulz here in each step."""
    counts = []
    engine = make_engine(world, config, optimizer, portions)
    for step in range(STEPS):
        with newton_schulz_calls() as calls:
            train(engine, world, range(step, step + 1), portions)
        counts.append(sum(call.shape[0] for call in calls))
    return weights(engine), counts


# By day every two of the three meet.
@pytest.mark.parametrize(
    "size, stage, accumulation",
    grid((1, 2, 4), range(4), (1, 4), day=lambda n, stage, a: (n // 2 + stage) % 2 == (a == 4)),
)
def test_any_cluster_trains_the_weights_of_the_float64_oracle(expected, size, stage, accumulation):
    config = engine_config(backend="deepspeed", zero_stage=stage)
    outcomes = run_ranks(size, train_and_count, config, size * accumulation)
    for ours, _ in outcomes:
        assert relative_distance(ours, expected) <= FLOAT32
    # 7 matrices in each of 2 layers, each orthogonalised by one rank, once a step.
    totals = [sum(counts) for counts in zip(*(counts for _, counts in outcomes), strict=True)]
    assert totals == [14] * STEPS


def train_from_zero_init(world: World, config):
    """The model is partitioned before there is an optimizer, as for models beyond one GPU."""
    import deepspeed

    deepspeed.init_distributed("gloo")
    model = tiny_llama(VOCAB)
    settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
    deepspeed.zero.Init(module=model, config_dict_or_path=settings, dtype=torch.float32)
    assert all(param.numel() == 0 and len(param.ds_shape) for param in model.parameters())
    engine = TrainingEngine(model, lambda m: build_optimizer(m, NO_CLIP), config, world, PORTIONS)
    train(engine, world, range(STEPS), PORTIONS)
    return weights(engine)


def test_a_model_partitioned_by_zero_init_trains_the_weights_of_the_oracle(expected):
    config = engine_config(backend="deepspeed", zero_stage=3)
    for ours in run_ranks(2, train_from_zero_init, config):
        assert relative_distance(ours, expected) <= FLOAT32


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2])
def test_offloaded_shards_train_the_same_weights(expected, size, stage):
    config = engine_config(zero_stage=stage, offload_optimizer=True, backend="deepspeed")
    for ours, counts in run_ranks(size, train_and_count, config, size):
        assert relative_distance(ours, expected) <= FLOAT32
        assert size > 1 or counts == [14] * STEPS


def train_with_qk_clip(world: World, config):
    engine = make_engine(world, config, MUON)
    clipped = [result.clipped_heads for result in train(engine, world, range(STEPS))]
    return weights(engine), clipped


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_qk_clip_reaches_the_masters_of_every_stage(stage):
    plain, clipped = run_ranks(1, train_with_qk_clip, engine_config(backend="plain"))[0]
    assert sum(clipped) > 0
    for ours, here in run_ranks(2, train_with_qk_clip, engine_config(zero_stage=stage)):
        assert here == clipped
        assert relative_distance(ours, plain) <= FLOAT32


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bfloat16_autocast_stays_close_to_one_process(stage):
    plain, _ = run_ranks(1, train_and_count, engine_config(backend="plain", dtype="bfloat16"), 4)[0]
    config = engine_config(zero_stage=stage, dtype="bfloat16")
    for ours, _ in run_ranks(2, train_and_count, config, 4):
        assert relative_distance(ours, plain) <= BFLOAT16


def save_halfway(world: World, stage: int, folder: Path, optimizer):
    config = engine_config(backend="deepspeed", zero_stage=stage)
    engine = make_engine(world, config, optimizer, PORTIONS)
    train(engine, world, range(3), PORTIONS)
    engine.save(folder)


def resume_and_finish(world: World, stage: int, folder: Path, optimizer):
    config = engine_config(backend="deepspeed", zero_stage=stage)
    engine = make_engine(world, config, optimizer, PORTIONS)
    engine.load(folder)
    train(engine, world, range(3, STEPS), PORTIONS)
    return weights(engine)


@pytest.mark.parametrize(
    "before,after",
    [
        ((2, 1), (1, 2)),
        ((2, 2), (4, 2)),
        ((2, 3), (4, 3)),
        ((4, 3), (1, 3)),
        ((1, 1), (2, 3)),
        ((4, 3), (2, 2)),
    ],
)
def test_a_run_goes_on_at_another_world_size_and_stage(tmp_path, expected, before, after):
    (size, stage), (new_size, new_stage) = before, after
    run_ranks(size, save_halfway, stage, tmp_path, NO_CLIP)
    for ours in run_ranks(new_size, resume_and_finish, new_stage, tmp_path, NO_CLIP):
        assert relative_distance(ours, expected) <= FLOAT32


@pytest.mark.parametrize(
    "stage, lamb", grid((1, 2, 3), (0.0, 0.2), day=lambda stage, lamb: (stage == 2) == (lamb == 0))
)
def test_universal_checkpoints_carry_momentum_and_average(tmp_path, stage, lamb):
    optimizer = replace(NO_CLIP, muon_grokfast=NO_CLIP.muon_grokfast.replace(grokfast_lambda=lamb))
    run_ranks(2, save_halfway, stage, tmp_path, optimizer)
    # Without them the weights would be off by far more: the oracle has had them all along.
    for ours in run_ranks(1, resume_and_finish, stage, tmp_path, optimizer):
        assert relative_distance(ours, muon_oracle(lamb=lamb)) <= FLOAT32


def resume_bitwise(world: World, stage: int, folder: Path):
    config = engine_config(zero_stage=stage)
    straight = make_engine(world, config, MUON)
    train(straight, world, range(STEPS))
    first = make_engine(world, config, MUON)
    train(first, world, range(2))
    first.save(folder)
    world.barrier()
    resumed = make_engine(world, config, MUON)
    resumed.load(folder)
    train(resumed, world, range(2, STEPS))
    one, other = weights(straight), weights(resumed)
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_same_layout_resumes_bit_by_bit(tmp_path, stage):
    assert run_ranks(2, resume_bitwise, stage, tmp_path) == [True, True]


def measure(world: World, config, sampled: bool):
    every = 1 if sampled else 0
    engine = make_engine(world, replace(config, optimizer_metrics_every=every), NO_CLIP, PORTIONS)
    results = train(engine, world, range(3), PORTIONS)
    return [result.optimizer for result in results], weights(engine)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_metrics_of_the_optimizer_do_not_depend_on_the_ranks(stage):
    plain = engine_config(backend="plain")
    (alone, one), *_ = run_ranks(1, measure, plain, True)
    _, unmeasured = run_ranks(1, measure, plain, False)[0]
    assert all(torch.equal(one[name], unmeasured[name]) for name in one)
    assert [m.matrices for m in alone] == [14] * 3
    assert all(0.1 < m.ns_residual < 0.6 for m in alone)
    assert alone[0].grad_ema_cosine == pytest.approx(1.0)  # the average starts as the gradient
    for metrics, _ in run_ranks(2, measure, engine_config(zero_stage=stage), True):
        for ours, theirs in zip(metrics, alone, strict=True):
            assert ours.matrices == theirs.matrices
            assert ours.update_rms == pytest.approx(theirs.update_rms, rel=1e-4)
            assert ours.grad_ema_cosine == pytest.approx(theirs.grad_ema_cosine, rel=1e-4)


def poison_one_rank(world: World, stage: int):
    """A gradient that DeepSpeed would let pass: it is spoiled after DeepSpeed's own check."""
    engine = make_engine(world, engine_config(zero_stage=stage), NO_CLIP)
    train(engine, world, range(1))
    optimizer = engine._backend.optimizer
    flat = [p for group in optimizer.param_groups for p in group["params"]]
    if stage == 3:
        flat = [shard.tensor for shard in optimizer._around.shards.values()]
    before = [p.detach().clone() for p in flat]
    optimizer.param_groups = [{**optimizer.param_groups[0], "params": [flat[0]]}]
    flat[0].grad = torch.ones_like(flat[0])
    if world.rank == 1:
        flat[0].grad[3] = torch.nan
    with pytest.raises(FloatingPointError, match="is not finite; no weight of this group"):
        optimizer.step()
    flat[0].grad = None
    with pytest.raises(InputError, match="has no gradient; no weight of this"):
        optimizer.step()
    return all(torch.equal(a, b) for a, b in zip(before, flat, strict=True))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_bad_or_missing_gradient_stops_all_ranks_before_anything_changes(stage):
    assert run_ranks(2, poison_one_rank, stage) == [True, True]


def replicas(world: World):
    """DistributedDataParallel of bare torch, the ranks sharing the orthogonalisation."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 12), nn.Linear(12, 12))
    wrapped = nn.parallel.DistributedDataParallel(model) if world.size > 1 else model
    optimizer = MuonGrokfast(model.named_parameters(), NO_CLIP.muon_grokfast)
    if world.size > 1:
        optimizer.share_work()
    inputs = torch.randn(8, 12, generator=torch.Generator().manual_seed(1))
    with newton_schulz_calls() as calls:
        for _ in range(3):
            optimizer.zero_grad()
            part = inputs[world.rank :: world.size]
            wrapped(part).square().mean().backward()
            optimizer.step()
    return [p.detach() for p in model.parameters()], sum(call.shape[0] for call in calls)


def test_replicas_of_bare_torch_share_the_work():
    (alone, _), *_ = run_ranks(1, replicas)
    outcomes = run_ranks(2, replicas)
    assert sum(count for _, count in outcomes) == 3 * 3
    for ours, _ in outcomes:
        for one, other in zip(alone, ours, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
