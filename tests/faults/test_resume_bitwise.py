"""N + M steps are N, a checkpoint, new processes, and M: bit for bit, dropout included."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distforge.optim import OptimizerConfig, build_optimizer
from distforge.training.checkpoint import begin_checkpoint, find_latest, load_state
from distforge.training.distributed import World
from distforge.training.engine import TrainingEngine
from tests.distributed.harness import run_ranks
from tests.tiers import grid
from tests.tiny_models import tiny_llama
from tests.training_cases import (
    ADAMW,
    MICRO_BATCHES,
    MUON,
    STEPS,
    VOCAB,
    engine_config,
    train,
    weights,
)

SPLIT = 2
# By day every two of the three meet.
CASES = grid(
    (ADAMW, MUON),
    range(4),
    (1, 2),
    day=lambda optimizer, stage, size: ((optimizer is MUON) + stage + size) % 2 == 1,
)


def make_engine(world: World, optimizer: OptimizerConfig, stage: int) -> TrainingEngine:
    model = tiny_llama(VOCAB)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.2  # the random state decides the weights
    config = engine_config(zero_stage=stage)
    torch.manual_seed(world.rank)
    return TrainingEngine(
        model, lambda module: build_optimizer(module, optimizer), config, world, MICRO_BATCHES
    )


def straight(world: World, optimizer: OptimizerConfig, stage: int, root: Path):
    engine = make_engine(world, optimizer, stage)
    results = train(engine, world, range(SPLIT))
    begin_checkpoint(root, SPLIT, engine.save, {"step": SPLIT}, world).finish()
    return results + train(engine, world, range(SPLIT, STEPS)), weights(engine)


def resumed(world: World, optimizer: OptimizerConfig, stage: int, root: Path):
    engine = make_engine(world, optimizer, stage)
    torch.manual_seed(999)
    latest = find_latest(root)
    engine.load(latest)
    return train(engine, world, range(load_state(latest)["step"], STEPS)), weights(engine)


@pytest.mark.parametrize("optimizer, stage, size", CASES, ids=lambda v: getattr(v, "name", None))
def test_resumed_is_bitwise_what_straight_is(
    tmp_path: Path, optimizer: OptimizerConfig, stage: int, size: int
) -> None:
    whole = run_ranks(size, straight, optimizer, stage, tmp_path)
    parts = run_ranks(size, resumed, optimizer, stage, tmp_path)
    for (results, expected), (later, ours) in zip(whole, parts, strict=True):
        assert later == results[SPLIT:]
        assert ours.keys() == expected.keys()
        assert all(torch.equal(ours[name], expected[name]) for name in ours)
