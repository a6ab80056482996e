"""An hour of kills, a registry that comes and goes and a disk that fills and empties.

``DISTFORGE_SOAK_SECONDS`` makes it shorter or longer; one that met no fault fails. Memory and files
are judged where a session was watched for half a minute.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults.soak import soak

SECONDS = float(os.environ.get("DISTFORGE_SOAK_SECONDS", "3600"))
# Of memory, over the longest session: an allocator's own movement.
MOST_GROWTH = 1.05
WATCHED_SECONDS = 30.0


@pytest.mark.nightly
@pytest.mark.timeout(4 * SECONDS + 600)
def test_a_run_under_all_faults_ends_as_if_there_were_none(tmp_path: Path) -> None:
    done = soak(SECONDS, tmp_path)
    print(done)
    assert done.same_weights
    assert done.registered
    assert done.kills
    assert done.full_disks
    assert done.refused_calls
    assert done.lost_registries
    assert done.watched_seconds > min(WATCHED_SECONDS, SECONDS / 60)
    if done.watched_seconds > WATCHED_SECONDS:
        assert done.growth < MOST_GROWTH, done
        assert done.handles[1] <= done.handles[0] + 2, done
