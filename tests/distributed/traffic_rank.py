"""One rank that trains at every ZeRO stage and writes what it sent over its interface for a step.

RANK=0 WORLD_SIZE=2 ... python -m tests.distributed.traffic_rank OUTPUT.json
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path

import torch

from distforge.models.architectures import ArchitectureConfig, build_model
from distforge.optim import MuonGrokfastConfig, OptimizerConfig, build_optimizer
from distforge.optim.param_groups import assign_roles
from distforge.training.distributed import World, entered_world
from distforge.training.engine import TrainingEngine
from distforge.training.engine_config import EngineConfig

VOCAB = 512
# Matrices wider than what stage 3 keeps whole everywhere, as those of any model worth sharding are.
SHAPE = ArchitectureConfig(
    hidden_size=384, num_layers=3, num_heads=6, num_kv_heads=6, intermediate_size=1024
)
STEPS = 3
CASES = [(stage, portions) for stage in (0, 1, 2, 3) for portions in (1, 2)]


def sent(interface: str) -> int:
    for line in Path("/proc/net/dev").read_text(encoding="utf-8").splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == interface:
            return int(counters.split()[8])
    raise ValueError(f"there is no interface {interface}")


def make_engine(world: World, stage: int, portions: int) -> TrainingEngine:
    model = build_model(SHAPE, VOCAB, 0, eos_token_id=0, pad_token_id=1)
    optimizer = OptimizerConfig(
        muon_grokfast=MuonGrokfastConfig(muon_lr=0.01, ns_dtype="float32", qk_clip_threshold=None)
    )
    config = EngineConfig(
        zero_stage=stage, dtype="float32", qk_clip_every=0, optimizer_metrics_every=0
    )
    return TrainingEngine(
        model, lambda m: build_optimizer(m, optimizer), config, world, portions * world.size
    )


def measure(world: World, stage: int, portions: int, interface: str) -> dict[str, float]:
    """Bytes that left by ``interface`` in a step and its seconds (medians); the last loss."""
    engine, counts, times, loss = make_engine(world, stage, portions), [], [], 0.0
    generator = torch.Generator().manual_seed(world.rank)
    for _ in range(STEPS + 1):
        ids = [torch.randint(2, VOCAB, (1, 16), generator=generator) for _ in range(portions)]
        batches = [
            {"input_ids": each, "attention_mask": torch.ones_like(each), "labels": each}
            for each in ids
        ]
        world.barrier()
        before, began = sent(interface), time.perf_counter()
        loss = engine.train_step(batches, 1.0, 15 * portions * world.size).loss
        world.barrier()
        times.append(time.perf_counter() - began)
        counts.append(sent(interface) - before)
    found = {"sent": counts[1:], "seconds": times[1:]}  # the first step allocates
    return {**{key: statistics.median(values) for key, values in found.items()}, "loss": loss}


def muon_shapes() -> tuple[int, list[tuple[int, ...]]]:
    """How many parameters the model has, and the shapes of the matrices that Muon trains."""
    model = build_model(SHAPE, VOCAB, 0, eos_token_id=0, pad_token_id=1)
    roles = assign_roles(model, MuonGrokfastConfig())
    shapes = [tuple(each.parameter.shape) for each in roles if each.role.algorithm == "muon"]
    return model.num_parameters(), shapes


def main() -> None:
    torch.set_num_threads(1)
    interface = os.environ["GLOO_SOCKET_IFNAME"]
    with entered_world() as world:
        found = {
            f"{stage} {portions}": measure(world, stage, portions, interface)
            for stage, portions in CASES
        }
        Path(sys.argv[1]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
