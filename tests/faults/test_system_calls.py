"""Every call to the operating system fails once, and SIGKILL comes at any moment: nothing is lost.

By day a sample of either, spread over kinds of calls, files' roles and errors. `make test-all` does
all of them; so does ``benchmarks/bench_faults.py``, which writes down how many there were.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.forking_server import Server, serving
from tests.faults.promises import Tally, Trial
from tests.faults.short_publish import PUBLISH, REPLAY
from tests.faults.short_runs import REPLACE, STEP1, STEP2, Case
from tests.faults.tracing import sample

CASES = (STEP1, REPLACE, STEP2, PUBLISH, REPLAY)
BY_DAY = {STEP1: 8, REPLACE: 4, STEP2: 4, PUBLISH: 8, REPLAY: 4}
# How often, by day and by night; kills at a call of a given number are among the faults above.
KILLS = {STEP1: (8, 100), REPLACE: (3, 40), STEP2: (3, 40), PUBLISH: (6, 60)}
SEED = 22


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("commands")) as server:
        yield server


def fail_calls(case: Case, commands: Server, work: Path, size: int | None = None) -> Tally:
    """All faults of ``case``, or a sample of ``size``."""
    trial = Trial(case, commands, work)
    every = trial.faults()
    for fault in every if size is None else sample(every, size, SEED):
        trial.inject(fault)
    return trial.tally


def kill_at_random(case: Case, commands: Server, work: Path, kills: int) -> Tally:
    """Kills at moments that lie uniformly in the whole command; every third time, it is killed
    again when it is taken up."""
    trial, rng = Trial(case, commands, work), random.Random(SEED)
    while trial.tally.faults < kills:
        again = 1 + (rng.random() < 1 / 3)
        trial.kill(*(rng.uniform(0, trial.seconds) for _ in range(again)))
    return trial.tally


def id_of(case: Case) -> str:
    return case.name.replace(" ", "")


@pytest.mark.parametrize("case", CASES, ids=id_of)
def test_a_sample_of_calls_fails(case: Case, commands: Server, tmp_path: Path) -> None:
    tally = fail_calls(case, commands, tmp_path, BY_DAY[case])
    assert not tally.broken, str(tally)
    assert tally.faults == BY_DAY[case]


@pytest.mark.nightly
@pytest.mark.parametrize("case", CASES, ids=id_of)
def test_every_call_fails(case: Case, commands: Server, tmp_path: Path) -> None:
    tally = fail_calls(case, commands, tmp_path)
    print(f"{case.name}: {tally}")
    assert not tally.broken, str(tally)


@pytest.mark.parametrize("case", KILLS, ids=id_of)
@pytest.mark.parametrize("night", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_killed_at_any_moment(case: Case, commands: Server, tmp_path: Path, night: bool) -> None:
    tally = kill_at_random(case, commands, tmp_path, KILLS[case][night])
    assert not tally.broken, str(tally)
    assert tally.faults >= KILLS[case][night]
