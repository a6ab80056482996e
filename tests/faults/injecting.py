"""What is injected into which runs, by the tests and by the benchmark that counts it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from tests.faults.forking_server import Server
from tests.faults.promises import Tally, Trial
from tests.faults.short_publish import PUBLISH, REPLAY
from tests.faults.short_runs import REPLACE, STEP1, STEP2, Case
from tests.faults.tracing import sample

CASES = (STEP1, PUBLISH, REPLACE, REPLAY, STEP2)
# How often each is killed at a random moment by night; kills at each call are faults of their own.
KILLS = {STEP1: 100, STEP2: 40, PUBLISH: 60, REPLACE: 40}
SEED = 22


def fail_calls(case: Case, commands: Server, work: Path, size: int | None = None) -> Tally:
    """All faults of ``case``, or a sample of ``size``."""
    *_, (tally, _, _) = failing_calls(case, commands, work, size)
    return tally


def failing_calls(
    case: Case,
    commands: Server,
    work: Path,
    size: int | None = None,
    share: tuple[int, int] = (0, 1),
    begin: int = 0,
) -> Iterator[tuple[Tally, int, int]]:
    """The faults of `fail_calls`, of them the share (n, of so many), from number ``begin`` on.

    Yields after each what came of those so far, how many they were with those before ``begin``, and
    how many there will be.
    """
    trial = Trial(case, commands, work)
    every = trial.faults()
    chosen = (every if size is None else sample(every, size, SEED))[share[0] :: share[1]]
    for number, fault in enumerate(chosen[begin:], start=begin + 1):
        trial.inject(fault)
        yield trial.tally, number, len(chosen)


def kill_at_random(case: Case, commands: Server, work: Path, kills: int, seed: int = SEED) -> Tally:
    """Kills at moments that lie uniformly in the whole command; every third time, it is killed
    again when it is taken up."""
    trial, rng = Trial(case, commands, work), random.Random(seed)
    while trial.tally.faults < kills:
        again = 1 + (rng.random() < 1 / 3)
        trial.kill(*(rng.uniform(0, trial.seconds) for _ in range(again)))
    return trial.tally
