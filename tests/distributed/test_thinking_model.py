"""A thinking model under DeepSpeed: the same steps as in one process, at every ZeRO stage."""

from __future__ import annotations

import pytest
import torch

from distforge.quietstar import ThinkingModel
from distforge.thinking.thoughts import ThoughtConfig
from distforge.training.distributed import World
from distforge.training.engine import TrainingEngine
from distforge.training.engine_config import EngineConfig
from tests.distributed.harness import run_ranks
from tests.training_cases import ADAMW, build_optimizer
from tests.unit.thinking.cases import TAGS, model, words
from tests.unit.thinking.test_model import mixed_nll, packed_batch, uneven

STEPS = 3
# float32 sums in another order, through three steps of AdamW.
RELATIVE = 1e-4


def loss(module, batch):
    return mixed_nll(module(**batch), batch), torch.zeros(())


def train(world: World, stage: int, backend: str):
    thinker = uneven(ThinkingModel.wrap(model()))
    batch = packed_batch(thinker)
    rows = len(batch["input_ids"])
    halves = [{k: v[i * rows // 2 : (i + 1) * rows // 2] for k, v in batch.items()} for i in (0, 1)]
    targets = int((batch["labels"] != -100).sum())
    config = EngineConfig(backend=backend, zero_stage=stage, dtype="float32", qk_clip_every=0)
    engine = TrainingEngine(
        thinker, lambda module: build_optimizer(module, ADAMW), config, world, 2, loss
    )
    mine = halves[world.rank :: world.size]
    losses = [engine.train_step(mine, 1.0, targets).loss for _ in range(STEPS)]
    with engine.whole_model() as whole:
        assert isinstance(whole, ThinkingModel)
        greedy = ThoughtConfig(max_tokens=3, greedy=True)
        written = whole.generate([words(5).tolist()], TAGS, 4, thought=greedy)
        state = {name: value.detach().clone() for name, value in whole.named_parameters()}
    return losses, state, (written[0].token_ids, written[0].thoughts)


@pytest.fixture(scope="module")
def alone():
    return run_ranks(1, train, 0, "plain")[0]


@pytest.mark.parametrize("size,stage", [(2, 0), (2, 1), (2, 2), (2, 3)])
def test_every_stage_trains_and_generates_the_same(alone, size, stage):
    losses, weights, written = alone
    assert losses[-1] < losses[0]
    for theirs, state, text in run_ranks(size, train, stage, "deepspeed"):
        assert theirs == pytest.approx(losses, rel=1e-3)
        assert text == written
        for name, value in weights.items():
            gap = float((state[name] - value).norm() / value.norm().clamp(min=1e-3))
            assert gap <= RELATIVE, name
