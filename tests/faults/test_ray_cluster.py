"""A Ray cluster of four nodes with the real engine: the learner apart, nodes that go and come."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from distforge.training.distributed import World
from tests.faults.test_rollout_faults import in_a_process_of_its_own
from tests.thinking_cases import learner_config, make_trainer

ACTORS, STALENESS, STEPS, REQUESTS = 3, 2, 24, 4
LOST_AT, JOINED_AT = 6, 12
WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


def train_on_four_nodes(path: Path) -> None:
    """Step 2's learner on the head, which runs no actor; one node dies, another joins."""
    from ray.cluster_utils import Cluster

    from distforge.quietstar import episode_batches
    from distforge.rollouts.fleet import Fleet

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    workers = [cluster.add_node(num_cpus=1) for _ in range(3)]
    taken, fleets = [], []
    share, made = episode_batches.share_rollouts, Fleet.__init__

    def remember(self, *arguments):
        made(self, *arguments)
        fleets.append(self)

    def keep(rollouts, world):
        taken.append([[r.id, r.policy_version] for r in rollouts])
        if len(taken) == LOST_AT:
            cluster.remove_node(workers[0], allow_graceful=False)
        if len(taken) == JOINED_AT:
            cluster.add_node(num_cpus=1)
        return share(rollouts, world)

    Fleet.__init__, episode_batches.share_rollouts = remember, keep
    base = learner_config(checkpoint_every=0)
    rollouts = dataclasses.replace(
        base.rollouts, num_actors=ACTORS, staleness=STALENESS, address=cluster.address
    )
    episodes = dataclasses.replace(
        base.episodes, episodes=8 * STEPS, batch_size=8, episodes_per_request=2
    )
    probe = dataclasses.replace(base.probe, every_steps=STEPS)
    config = dataclasses.replace(base, rollouts=rollouts, episodes=episodes, probe=probe)
    trainer = make_trainer(path.parent, config, WORLD)
    outcome = trainer.train()
    [fleet] = fleets
    told = {"steps": outcome.steps, "taken": taken, "restarts": fleet.restarts}
    path.write_text(json.dumps(told), encoding="utf-8")
    cluster.shutdown()


@pytest.mark.nightly
def test_nothing_is_lost_doubled_or_too_stale_while_nodes_go_and_come(tmp_path: Path) -> None:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a-token-of-this-test-alone-0123456789"}
    told = in_a_process_of_its_own(train_on_four_nodes, tmp_path, **token)
    assert told["steps"] == len(told["taken"]) == STEPS
    # The head has no CPU for an actor, so all of them were elsewhere: with the node went one.
    assert told["restarts"] == 1
    ids = [number for step in told["taken"] for number, _ in step]
    assert len(set(ids)) == len(ids) == STEPS * REQUESTS
    due = range((STEPS - STALENESS) * REQUESTS)
    assert set(due) <= set(ids)
    lags = [step - version for step, of in enumerate(told["taken"]) for _, version in of]
    assert all(0 <= lag <= STALENESS for lag in lags)
