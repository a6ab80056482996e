"""How long a save keeps training waiting."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from distforge.baking import Step1Config
from distforge.models.architectures import ArchitectureConfig, build_model
from distforge.optim import OptimizerConfig, build_optimizer
from distforge.training.checkpoint import begin_checkpoint, find_latest
from distforge.training.distributed import World
from distforge.training.engine import TrainingEngine
from tests.distributed.harness import run_ranks
from tests.training_cases import engine_config

# The bound on the share of time between two saves at the default frequency.
LARGEST_SHARE = 0.10
VOCAB = 1208
# The 25M model of configs/champion_25m.toml.
LARGE = ArchitectureConfig(
    hidden_size=512, num_layers=8, num_heads=8, num_kv_heads=8, intermediate_size=1376
)
ROUNDS = 3


def make(world: World, shape: ArchitectureConfig, **config: Any) -> TrainingEngine:
    model = build_model(shape, VOCAB, 0, eos_token_id=1, pad_token_id=0)
    return TrainingEngine(
        model,
        lambda module: build_optimizer(module, OptimizerConfig()),
        engine_config(**config),
        world,
        world.size,
    )


def train(engine: TrainingEngine, rows: int, ranks: int) -> None:
    ids = torch.randint(2, VOCAB, (rows, 64), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    engine.train_step([batch], 1.0, rows * 63 * ranks)


def measure(world: World, root: Path) -> tuple[float, float]:
    """Seconds of a step, and of a save, of the default architecture (1.3M parameters).

    Of several the quickest: what else the machine does cannot make a step or a save shorter.
    """
    engine = make(world, ArchitectureConfig(), backend="plain")
    steps, saves = [], []
    for number in range(1, 6):
        began = time.perf_counter()
        train(engine, 8, 1)
        trained = time.perf_counter()
        begin_checkpoint(root, number, engine.save, {"step": number}, world).finish()
        steps.append(trained - began)
        saves.append(time.perf_counter() - trained)
    return min(steps), min(saves)


def test_a_save_blocks_training_for_a_small_share_of_the_steps_between(tmp_path: Path) -> None:
    [(step, save)] = run_ranks(1, measure, tmp_path)
    every = Step1Config().checkpoint_every
    share = save / (every * step)
    print(f"step {step:.3f} s, save {save:.3f} s: {save / step:.2f} steps, {share:.2%} of {every}")
    # A step of 512 tokens is about a tenth of a default one, so this is the harder case.
    assert share < LARGEST_SHARE


def measure_both(world: World, root: Path) -> dict[str, list[float]]:
    """Seconds that training waits for each save of 25M parameters: for all of it, with one rank to
    hash all files, as it once was; and where each rank hashes its own while training goes on."""
    engine = make(world, LARGE, backend="deepspeed", zero_stage=2)
    train(engine, 1, world.size)

    def write_and_name_nothing(directory: Path) -> None:
        engine.save(directory)

    seconds: dict[str, list[float]] = {"all of it": [], "meanwhile": []}
    for number in range(2 * ROUNDS):
        world.barrier()
        began = time.perf_counter()
        if number % 2 == 0:
            begin_checkpoint(root, number, write_and_name_nothing, {}, world, keep_last=1).finish()
            seconds["all of it"].append(time.perf_counter() - began)
            continue
        begun = begin_checkpoint(root, number, engine.save, {}, world, keep_last=1)
        begun.hash_meanwhile()
        waited = time.perf_counter() - began
        while not begun.is_hashed():  # stands for training
            pass
        began = time.perf_counter()
        begun.finish()
        seconds["meanwhile"].append(waited + time.perf_counter() - began)
    assert not world.is_main or find_latest(root) == root / f"step_{number}"
    return seconds


@pytest.mark.nightly
def test_training_waits_at_most_half_as_long(tmp_path: Path) -> None:
    [seconds, _] = run_ranks(2, measure_both, tmp_path)
    middle = {road: statistics.median(each) for road, each in seconds.items()}
    ratio = middle["meanwhile"] / middle["all of it"]
    print({road: [round(s, 2) for s in each] for road, each in seconds.items()}, f"{ratio:.2f}")
    assert ratio < 0.5
