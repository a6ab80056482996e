"""SIGKILL around a rollback: a run has gone back or it has not, and resumes to the same end.

The run: PASS after step 1, THEATRE after 2 and 3, back to 1, THEATRE after 2 and 3 again, the end.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from distforge import durable
from distforge.errors import RunStopped
from distforge.handoff.verdict import PASS, THEATRE, Verdict
from distforge.quietstar.config import RollbackConfig
from distforge.quietstar.rollback import Rollback
from distforge.quietstar.trainer import ThoughtOutcome, ThoughtTrainer
from distforge.telemetry import RunLogger, read_metrics
from distforge.telemetry.metrics import RL, RL_ROLLED_BACK_TO, RL_VERDICT
from distforge.thinking.model import ThinkingModel
from distforge.training import checkpoint, keeping
from distforge.training.distributed import World
from distforge.training.keeping import Keeper
from distforge.training.supervised import TrainingLoop
from tests.distributed.harness import _CONTEXT
from tests.judging_cases import ScriptedJudge, judged_config
from tests.thinking_cases import SILENT, make_trainer

WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
DEADLINE = 120
SCRIPT = [PASS, THEATRE, THEATRE, THEATRE, THEATRE]
CONFIG = judged_config(rollback=RollbackConfig(every_steps=1, retries=1))

# Where the process is killed: at the n-th call of a function. Saves are those of steps 0 to 3 in
# turn, of the rollback, of step 4 of all, and of the end.
MOMENTS: dict[str, tuple[Any, str, int]] = {
    "before the start is pinned": (Keeper, "pin", 1),
    "before what passed is pinned": (Keeper, "pin", 2),
    "pinned, its folder has no name yet": (checkpoint, "_publish", 2),
    "pinned, what is older not yet removed": (checkpoint, "_remove_old", 2),
    "judged, not acted upon": (Keeper, "go_back", 1),
    "restored, not saved": (Keeper, "_checkpoint", 4),
    "restored, its folder has no name yet": (checkpoint, "_publish", 4),
    "saved, the best weights not taken up": (keeping, "take_up", 1),
    "saved, the best weights half taken up": (durable, "publish_directory", 6),
    "gone back and logged": (ThoughtTrainer, "_follow_course", 2),
    "before the first new step": (TrainingLoop, "_train", 4),
    "after the first new step": (TrainingLoop, "_train", 5),
    "before the end": (Keeper, "go_back", 2),
    "ended, what passed not exported": (ThoughtTrainer, "_probe", 2),
}
BY_DAY = "saved, the best weights not taken up"


def run(directory: Path) -> tuple[ThoughtOutcome, bytes]:
    """How the run in ``directory`` ends, and the weights that it exports."""
    torch.set_num_threads(1)
    with RunLogger(directory, SILENT, {}, "tiny") as logger:
        trainer = make_trainer(directory, CONFIG, WORLD, logger=logger, judge=ScriptedJudge(SCRIPT))
        outcome = trainer.train()
        trainer.save_model(directory / "model")
    return outcome, (directory / "model" / "model.safetensors").read_bytes()


def die(directory: Path, moment: str) -> None:
    owner, name, call = MOMENTS[moment]
    genuine, calls = getattr(owner, name), []

    @functools.wraps(genuine)
    def kill(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return genuine(*args, **kwargs)

    setattr(owner, name, kill)
    run(directory)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ThoughtOutcome, bytes]:
    directory = tmp_path_factory.mktemp("straight")
    outcome, exported = run(directory)
    assert outcome.rollbacks == (Rollback(3, 1, 1, "kl"),)
    assert (outcome.steps, outcome.best.step, outcome.ended_by_verdict) == (5, 1, True)
    return directory, outcome, exported


def logged(directory: Path, name: str) -> dict[int, float]:
    records = read_metrics(directory / "metrics.jsonl")
    return {r.step: r.metrics[name] for r in records if name in r.metrics}


@pytest.mark.parametrize(
    "moment",
    [pytest.param(m, marks=[] if m == BY_DAY else [pytest.mark.nightly]) for m in MOMENTS],
)
def test_killed_it_resumes_to_the_same_end(tmp_path: Path, straight, moment: str) -> None:
    expected, outcome, exported = straight
    process = _CONTEXT.Process(target=die, args=(tmp_path, moment))
    process.start()
    process.join(DEADLINE)
    assert process.exitcode == -signal.SIGKILL, process.exitcode
    assert not (tmp_path / "model").exists(), "it ended before it was killed"
    ended, weights = run(tmp_path)
    assert dataclasses.replace(ended, best=outcome.best) == outcome
    assert ended.best == outcome.best
    assert weights == exported
    for name in (RL["reward"], RL_VERDICT, RL_ROLLED_BACK_TO):
        assert logged(tmp_path, name) == logged(expected, name), name
    kept = [{p.name for p in (d / "checkpoints").iterdir()} for d in (tmp_path, expected)]
    assert kept[0] == kept[1]
    assert "step_1" in kept[0]


class ToldWhileJudging(ScriptedJudge):
    """The third look, which rolls the run back, takes so long that somebody stops the run."""

    def __call__(self, model: ThinkingModel, step: int, total: int) -> Verdict:
        if self.looks == 2:
            signal.raise_signal(signal.SIGTERM)
        return super().__call__(model, step, total)


def test_told_to_stop_while_it_is_judged(tmp_path: Path, straight) -> None:
    expected, outcome, exported = straight
    with RunLogger(tmp_path, SILENT, {}, "tiny") as logger:
        stopped = make_trainer(
            tmp_path, CONFIG, WORLD, logger=logger, judge=ToldWhileJudging(SCRIPT)
        )
        with pytest.raises(RunStopped, match="step 1 of 4 is saved"):
            stopped.train()
    ended, weights = run(tmp_path)
    assert (ended.rollbacks, ended.steps, weights) == (outcome.rollbacks, outcome.steps, exported)
    assert logged(tmp_path, RL_ROLLED_BACK_TO) == logged(expected, RL_ROLLED_BACK_TO)
