"""How long a save keeps training waiting, beside the steps between two saves."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from distforge.baking import Step1Config
from distforge.models.architectures import ArchitectureConfig, build_model
from distforge.optim import OptimizerConfig, build_optimizer
from distforge.training.checkpoint import save_checkpoint
from distforge.training.distributed import World
from distforge.training.engine import TrainingEngine
from tests.distributed.harness import run_ranks
from tests.training_cases import engine_config

# The bound on the share of time between two saves at the default frequency.
LARGEST_SHARE = 0.10
VOCAB = 1208


def measure(world: World, root: Path) -> tuple[float, float]:
    """Seconds of a step, and of a save, of the default architecture (1.3M parameters).

    Of several the quickest: what else the machine does cannot make a step or a save shorter.
    """
    model = build_model(ArchitectureConfig(), VOCAB, 0, eos_token_id=1, pad_token_id=0)
    engine = TrainingEngine(
        model,
        lambda module: build_optimizer(module, OptimizerConfig()),
        engine_config(backend="plain"),
        world,
        1,
    )
    ids = torch.randint(2, VOCAB, (8, 64), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    steps, saves = [], []
    for number in range(1, 6):
        began = time.perf_counter()
        engine.train_step([batch], 1.0, 8 * 63)
        trained = time.perf_counter()
        save_checkpoint(root, number, engine.save, {"step": number}, world)
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
