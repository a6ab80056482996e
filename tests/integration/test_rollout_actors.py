"""The learner with rollouts on Ray: the same weights with none, one or two actors."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from distforge.handoff.verdict import PASS, THEATRE
from distforge.quietstar import episode_batches
from distforge.quietstar.rollback import Rollback
from distforge.rollouts import RolloutConfig
from distforge.telemetry import RunLogger, read_metrics
from distforge.telemetry.metrics import RL_STALENESS
from distforge.training.distributed import World
from tests.judging_cases import ScriptedJudge, judged_config, state_files
from tests.thinking_cases import SILENT, learner_config, make_trainer

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


@pytest.mark.nightly
def test_two_verdicts_of_theatre_take_a_run_with_stale_actors_back(tmp_path, monkeypatch):
    """PASS after step 1, THEATRE after 2 and 3; then steps 2 to 4 again, on other rollouts."""
    rollouts = RolloutConfig(
        num_actors=2, staleness=2, timeout_seconds=240, request_seconds=120, object_store_mib=256
    )
    judge = ScriptedJudge([PASS, THEATRE, THEATRE])
    taken = []
    share = episode_batches.share_rollouts

    def keep(rollouts, world):
        taken.append([(r.id, r.branch, r.policy_version) for r in rollouts])
        return share(rollouts, world)

    monkeypatch.setattr(episode_batches, "share_rollouts", keep)
    with RunLogger(tmp_path, SILENT, {}, "tiny") as logger:
        trainer = make_trainer(
            tmp_path, judged_config(rollouts=rollouts), WORLD, logger=logger, judge=judge
        )
        go_back, restored = trainer._keeper.go_back, []

        def compare() -> None:
            go_back()
            files = [state_files(tmp_path / "checkpoints" / f"step_{n}") for n in (1, 3)]
            assert files[0] == files[1]
            restored.append(files[0]["model.safetensors"])

        trainer._keeper.go_back = compare
        outcome = trainer.train()
    assert outcome.rollbacks == (Rollback(step=3, to=1, branch=1, change="kl"),)
    assert (outcome.steps, judge.looks) == (6, 5)
    with trainer.engine.whole_model() as model:
        assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert len(restored) == 1
    assert [[branch for _, branch, _ in step] for step in taken] == [[0] * 2] * 3 + [[1] * 2] * 3
    ids = [number for step in (taken[0], *taken[3:]) for number, _, _ in step]
    assert len(set(ids)) == len(ids) == 8
    lags = [step - version for step, of in enumerate(taken[3:], start=1) for *_, version in of]
    assert all(0 <= lag <= 2 for lag in lags)
    logged = {
        r.step: r.metrics[RL_STALENESS]
        for r in read_metrics(tmp_path / "metrics.jsonl")
        if RL_STALENESS in r.metrics
    }
    assert list(logged) == [1, 2, 3, 4, 5, 6]
    assert [logged[step] for step in (4, 5, 6)] == [max(lags[i : i + 2]) for i in (0, 2, 4)]
