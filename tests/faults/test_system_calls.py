"""Every call to the operating system fails once, and SIGKILL comes at any moment: nothing is lost.

By day a sample of either, spread over kinds of calls, files' roles and errors. `make test-all` does
all of them; so does ``benchmarks/bench_faults.py``, which writes down how many there were.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.forking_server import Server, serving
from tests.faults.injecting import CASES, KILLS, fail_calls, kill_at_random
from tests.faults.short_publish import PUBLISH, REPLAY
from tests.faults.short_runs import REPLACE, STEP1, STEP2, Case

BY_DAY = {STEP1: 9, REPLACE: 5, STEP2: 4, PUBLISH: 8, REPLAY: 4}
KILLS_BY_DAY = {STEP1: 8, REPLACE: 3, STEP2: 3, PUBLISH: 6}


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("commands")) as server:
        yield server


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


@pytest.mark.parametrize("case", KILLS_BY_DAY, ids=id_of)
def test_killed_at_some_moments(case: Case, commands: Server, tmp_path: Path) -> None:
    tally = kill_at_random(case, commands, tmp_path, KILLS_BY_DAY[case])
    assert not tally.broken, str(tally)
    assert tally.faults >= KILLS_BY_DAY[case]


@pytest.mark.nightly
@pytest.mark.parametrize("case", KILLS, ids=id_of)
def test_killed_at_any_moment(case: Case, commands: Server, tmp_path: Path) -> None:
    tally = kill_at_random(case, commands, tmp_path, KILLS[case])
    print(f"{case.name}: {tally}")
    assert not tally.broken, str(tally)
