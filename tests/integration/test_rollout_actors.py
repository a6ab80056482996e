"""The learner with rollouts on Ray: the same weights with none, one or two actors."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from distforge.training.distributed import World
from tests.thinking_cases import learner_config, make_trainer

WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


def trained(directory, **rollouts) -> tuple[dict[str, torch.Tensor], int]:
    base = learner_config(checkpoint_every=0)
    config = dataclasses.replace(base, rollouts=dataclasses.replace(base.rollouts, **rollouts))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trainer = make_trainer(directory, config, WORLD)
        outcome = trainer.train()
        with trainer.engine.whole_model() as model:
            return {n: v.clone() for n, v in model.state_dict().items()}, outcome.steps
    finally:
        torch.set_num_threads(threads)


# By day, tests/unit/rollouts/test_pool.py says it of rollouts alone.
@pytest.mark.nightly
def test_synchronous_rollouts_are_reproducible_with_any_number_of_actors(tmp_path):
    local, _ = trained(tmp_path / "0", num_actors=0)
    for actors in (1, 2):
        remote, _ = trained(tmp_path / str(actors), num_actors=actors)
        assert [n for n in local if not torch.equal(local[n], remote[n])] == []


def test_stale_rollouts_train_to_the_end(tmp_path):
    weights, steps = trained(tmp_path, num_actors=2, staleness=2)
    assert steps == 6
    assert all(torch.isfinite(value).all() for value in weights.values())
