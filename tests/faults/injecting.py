"""What is injected into which runs, by the tests and by the benchmark that counts it."""

from __future__ import annotations

import random
from pathlib import Path

from tests.faults.forking_server import Server
from tests.faults.promises import Tally, Trial
from tests.faults.short_publish import PUBLISH, REPLAY
from tests.faults.short_runs import REPLACE, STEP1, STEP2, Case
from tests.faults.tracing import sample

CASES = (STEP1, STEP2, PUBLISH, REPLACE, REPLAY)
# How often each is killed at a random moment by night; kills at each call are faults of their own.
KILLS = {STEP1: 100, STEP2: 40, PUBLISH: 60, REPLACE: 40}
SEED = 22


def fail_calls(
    case: Case,
    commands: Server,
    work: Path,
    size: int | None = None,
    share: tuple[int, int] = (0, 1),
) -> Tally:
    """All faults of ``case``, or a sample of ``size``; of them the share (n, of so many)."""
    trial = Trial(case, commands, work)
    every = trial.faults()
    chosen = every if size is None else sample(every, size, SEED)
    for fault in chosen[share[0] :: share[1]]:
        trial.inject(fault)
    return trial.tally


def kill_at_random(case: Case, commands: Server, work: Path, kills: int, seed: int = SEED) -> Tally:
    """Kills at moments that lie uniformly in the whole command; every third time, it is killed
    again when it is taken up."""
    trial, rng = Trial(case, commands, work), random.Random(seed)
    while trial.tally.faults < kills:
        again = 1 + (rng.random() < 1 / 3)
        trial.kill(*(rng.uniform(0, trial.seconds) for _ in range(again)))
    return trial.tally
