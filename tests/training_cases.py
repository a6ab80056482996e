"""A tiny training problem, and an answer to it that does not come from distforge's engine.

The targets of its micro-batches are uneven in number, so that a mean of means is visibly wrong.
"""

import torch
from torch import nn

from distforge.optim import (
    AdamWConfig,
    MuonGrokfastConfig,
    OptimizerConfig,
    ScheduleConfig,
    build_optimizer,
    lr_factor,
)
from distforge.training.distributed import World
from distforge.training.engine import TrainingEngine
from distforge.training.engine_config import EngineConfig
from distforge.training.step_result import StepResult
from tests.tiny_models import tiny_llama

VOCAB = 96
STEPS = 5
MICRO_BATCHES = 4
# Every step's gradient norm is about 10 times this: clipping is always at work.
MAX_GRAD_NORM = 0.5
SCHEDULE = ScheduleConfig(kind="linear", warmup_steps=2)

# Where a gradient is about as small as eps, AdamW blows its rounding up to a visible part of a
# step: with the usual 1e-8, noise in the last bit of every gradient moved weights by 1 to 6e-6 of
# their norm, differently each time; with 1e-4 by 0.8 to 0.9e-6, each time.
ADAMW = OptimizerConfig(name="adamw", adamw=AdamWConfig(lr=1e-2, eps=1e-4))
MUON = OptimizerConfig(
    # float32 on every processor, for bounds that only it keeps.
    muon_grokfast=MuonGrokfastConfig(
        muon_lr=0.02, adamw_lr=1e-3, qk_clip_threshold=1.0, ns_dtype="float32"
    )
)

Batch = dict[str, torch.Tensor]
Outcome = tuple[list[StepResult], dict[str, torch.Tensor]]


def engine_config(**changes) -> EngineConfig:
    return EngineConfig(
        **{"dtype": "float32", "max_grad_norm": MAX_GRAD_NORM, "qk_clip_every": 2, **changes}
    )


def examples(step: int) -> list[tuple[torch.Tensor, int]]:
    """Sixteen (ids, prompt length) of one step; 4 to 13 targets each."""
    generator = torch.Generator().manual_seed(100 + step)
    lengths = [10 + i % 6 for i in range(16)]
    return [
        (torch.randint(2, VOCAB, (n,), generator=generator), 2 if i % 3 else 7)
        for i, n in enumerate(lengths)
    ]


def collate(rows: list[tuple[torch.Tensor, int]]) -> Batch:
    """Padded on the right; the prompt and the padding are not targets."""
    width = max(len(ids) for ids, _ in rows)
    batch = {
        "input_ids": torch.zeros(len(rows), width, dtype=torch.int64),
        "attention_mask": torch.zeros(len(rows), width, dtype=torch.int64),
        "labels": torch.full((len(rows), width), -100),
    }
    for i, (ids, prompt) in enumerate(rows):
        batch["input_ids"][i, : len(ids)] = ids
        batch["attention_mask"][i, : len(ids)] = 1
        batch["labels"][i, prompt : len(ids)] = ids[prompt:]
    return batch


def micro_batches(step: int, portions: int = MICRO_BATCHES) -> list[Batch]:
    rows = examples(step)
    size = len(rows) // portions
    return [collate(rows[i * size : (i + 1) * size]) for i in range(portions)]


def count_targets(step: int) -> int:
    return sum(len(ids) - prompt for ids, prompt in examples(step))


def make_engine(
    world: World,
    config: EngineConfig,
    optimizer: OptimizerConfig = ADAMW,
    portions: int = MICRO_BATCHES,
) -> TrainingEngine:
    model = tiny_llama(VOCAB)
    return TrainingEngine(model, lambda m: build_optimizer(m, optimizer), config, world, portions)


def train(
    engine: TrainingEngine, world: World, steps: range, portions: int = MICRO_BATCHES
) -> list[StepResult]:
    return [
        engine.train_step(
            micro_batches(step, portions)[world.rank :: world.size],
            lr_factor(SCHEDULE, step, STEPS),
            count_targets(step),
        )
        for step in steps
    ]


def weights(engine: TrainingEngine) -> dict[str, torch.Tensor]:
    with engine.whole_model() as module:
        return {name: value.detach().clone() for name, value in module.state_dict().items()}


def train_from_start(
    world: World,
    config: EngineConfig,
    optimizer: OptimizerConfig = ADAMW,
    portions: int = MICRO_BATCHES,
) -> Outcome:
    engine = make_engine(world, config, optimizer, portions)
    return train(engine, world, range(STEPS), portions), weights(engine)


def oracle() -> tuple[list[tuple[float, float]], dict[str, torch.Tensor]]:
    """(loss, gradient norm) of every step and the last weights: torch alone, one row at a time."""
    model = tiny_llama(VOCAB).train()
    optimizer = build_optimizer(model, ADAMW)
    curve = []
    for step in range(STEPS):
        total = torch.zeros(())
        for ids, prompt in examples(step):
            logits = model(input_ids=ids[None]).logits[0]
            total = total + nn.functional.cross_entropy(
                logits[prompt - 1 : -1], ids[prompt:], reduction="sum"
            )
        loss = total / count_targets(step)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * lr_factor(SCHEDULE, step, STEPS)
        optimizer.step()
        curve.append((float(loss.detach()), float(norm)))
    return curve, {name: value.detach() for name, value in model.state_dict().items()}


def relative_distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """|ours - theirs| / |theirs| over all weights together, in float64."""
    assert ours.keys() == theirs.keys()
    gap = sum(((ours[k].double() - theirs[k].double()) ** 2).sum() for k in theirs)
    size = sum((theirs[k].double() ** 2).sum() for k in theirs)
    return float((gap / size) ** 0.5)
