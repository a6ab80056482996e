"""Actors killed, hanging, raising or misled, a node lost: nothing lost, doubled or too stale."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from distforge.errors import InputError
from distforge.rollouts import Rollout, RolloutConfig, RolloutError, RolloutRequest, open_pool
from distforge.rollouts.interface import RolloutPool
from tests.unit.rollouts.engines import SleepingEngine, TinyEngine, requests, weights

ROOT = Path(__file__).parents[2]
BATCH = 4
STALENESS = 2
DEADLINE = 200.0
PLAN = partial(requests, batch_size=BATCH)


def naps(step: int) -> list[RolloutRequest]:
    """Requests of 20 to 80 ms."""
    return [RolloutRequest(r.id, r.seed, 0.02 * (1 + r.id % 4)) for r in PLAN(step)]


def config(**changes) -> RolloutConfig:
    base = {"num_actors": 2, "timeout_seconds": DEADLINE, "request_seconds": DEADLINE / 2}
    return RolloutConfig(**{**base, **changes})


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    from distforge.rollouts.cluster import connected

    with connected(RolloutConfig(num_actors=2, object_store_mib=256)):
        yield


class Run:
    """A learner that only counts, and checks what it is given."""

    def __init__(self, pool: RolloutPool) -> None:
        self.pool, self.step, self.ids = pool, 0, set()
        pool.publish(0, weights(0))

    def advance(self) -> list[Rollout]:
        rollouts = self.pool.take(self.step)
        assert len(rollouts) == BATCH
        for rollout in rollouts:
            assert rollout.id not in self.ids
            assert self.step - STALENESS <= rollout.policy_version <= self.step
            assert rollout.result["version"] == rollout.policy_version
            self.ids.add(rollout.id)
        self.step += 1
        self.pool.publish(self.step, weights(self.step))
        return rollouts

    def finish(self) -> None:
        """Every request that had to be consumed by now was."""
        for _ in range(STALENESS + 1):
            self.advance()
        assert set(range((self.step - STALENESS) * BATCH)) <= self.ids
        assert len(self.ids) == self.step * BATCH


@pytest.mark.parametrize("kills", [2, pytest.param(5, marks=pytest.mark.nightly)])
def test_actors_killed_again_and_again(local_ray, kills):
    with open_pool(config(staleness=STALENESS), SleepingEngine, naps, BATCH) as pool:
        run, killed = Run(pool), set()
        while len(killed) < kills:
            processes = {int(rollout.result["pid"]) for rollout in run.advance()} - killed
            # The actor before is counted as dead first, so that each kill is one restart.
            if processes and pool.statistics().restarts == len(killed):
                victim = processes.pop()
                killed.add(victim)
                os.kill(victim, signal.SIGKILL)
        while pool.statistics().restarts < len(killed):
            run.advance()
        run.finish()
        found = pool.statistics()
    assert found.restarts == kills
    assert found.consumed == len(run.ids)


class Flaky(TinyEngine):
    """Raises at the first attempt at request 1, wherever that is."""

    def __init__(self, seen: Path) -> None:
        super().__init__()
        self.seen = seen

    def rollout(self, request):
        if request.id == 1 and not self.seen.exists():
            self.seen.touch()
            raise ConnectionResetError("once")
        return super().rollout(request)


def test_a_request_that_failed_once_is_tried_again(local_ray, tmp_path, caplog):
    engine = partial(Flaky, tmp_path / "seen")
    with open_pool(config(num_actors=1), engine, PLAN, BATCH) as pool:
        pool.publish(0, weights(0))
        assert [r.id for r in pool.take(0)] == [0, 1, 2, 3]
        found = pool.statistics()
    assert (found.retried, found.restarts) == (1, 0)
    assert "ConnectionResetError: once" in caplog.text


class Hanging(TinyEngine):
    def rollout(self, request):
        signal.pause()


class NeverMade(TinyEngine):
    def __init__(self):
        signal.pause()


def test_a_hanging_engine_meets_its_deadline(local_ray):
    hasty = config(num_actors=1, request_seconds=0.5, max_attempts=1)
    with open_pool(hasty, Hanging, PLAN, BATCH) as pool:
        pool.publish(0, weights(0))
        with pytest.raises(RolloutError, match=r"(?s)rollout 0 failed 1.*within 0.5 s \(request_s"):
            pool.take(0)


def test_an_actor_that_never_starts_meets_the_deadline(local_ray):
    hasty = config(num_actors=1, timeout_seconds=2.0, request_seconds=2.0)
    with open_pool(hasty, NeverMade, PLAN, BATCH) as pool:
        pool.publish(0, weights(0))
        with pytest.raises(RolloutError, match=r"lacks 4 .* after 2 s .*actor 0 is starting"):
            pool.take(0)


@pytest.mark.parametrize("times,attempts", [pytest.param(1, 2, marks=pytest.mark.nightly), (2, 2)])
def test_rollouts_of_other_weights_than_they_claim_are_refused(
    local_ray, monkeypatch, times, attempts
):
    import ray

    from distforge.rollouts.actor import Publication
    from distforge.rollouts.fleet import Fleet
    from distforge.rollouts.weights import pack

    genuine, wrong, sent = Fleet.send, ray.put(pack(weights(99))), []

    def send(self, place, request, published):
        if request.id == 0 and len(sent) < times:
            sent.append(place)
            published = Publication(published.branch, published.version, (wrong,))
        genuine(self, place, request, published)

    monkeypatch.setattr(Fleet, "send", send)
    with open_pool(config(num_actors=1, max_attempts=attempts), TinyEngine, PLAN, BATCH) as pool:
        pool.publish(0, weights(0))
        if times < attempts:
            assert {r.result["version"] for r in pool.take(0)} == {0}
            assert (pool.statistics().retried, pool.statistics().restarts) == (1, 1)
        else:
            with pytest.raises(RolloutError, match=r"(?s)rollout 0 .*claims version 0 with checks"):
                pool.take(0)


def in_a_process_of_its_own(
    function: Callable[[Path], None], folder: Path, status: int = 0, **environment: str
) -> Any:
    """The JSON that ``function(path)`` writes; Ray reads its environment once in a process."""
    log, told = folder / "log", folder / "told.json"
    code = f"from pathlib import Path; from {function.__module__} import {function.__name__} as f"
    command = [sys.executable, "-c", f"{code}; f(Path({str(told)!r}))"]
    with open(
        log, "w", encoding="utf-8"
    ) as stream:  # no pipe: what Ray leaves behind would hold it open
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=stream,
            stderr=stream,
            timeout=DEADLINE,
        )
    assert done.returncode == status, log.read_text()
    return json.loads(told.read_text())


def lose_a_raylet(path: Path) -> None:
    """Two nodes with an actor each; one is killed with all that runs there."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    node = cluster.add_node(num_cpus=2)
    chosen = config(staleness=STALENESS, address=cluster.address)
    with open_pool(chosen, SleepingEngine, naps, BATCH) as pool:
        run, processes = Run(pool), set()
        while len(processes) < 2:
            processes |= {int(rollout.result["pid"]) for rollout in run.advance()}
        raylet = node.all_processes["raylet"][0].process.pid
        lost = {p.pid for p in psutil.Process(raylet).children(recursive=True)} & processes
        cluster.remove_node(node, allow_graceful=False)
        while pool.statistics().restarts < len(lost):
            run.advance()
        run.finish()
        path.write_text(
            json.dumps({"lost": len(lost), "restarts": pool.statistics().restarts}),
            encoding="utf-8",
        )
    cluster.shutdown()


@pytest.mark.nightly
def test_a_killed_raylet_costs_only_time(tmp_path):
    # A cluster as it should be: it asks for a token, which this process has.
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a-token-of-this-test-alone-0123456789"}
    told = in_a_process_of_its_own(lose_a_raylet, tmp_path, **token)
    assert told["restarts"] == told["lost"] == 1


def ask_an_open_cluster(path: Path) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    said = ""
    try:
        with open_pool(config(num_actors=1, address=cluster.address), SleepingEngine, naps, BATCH):
            pass
    except InputError as error:
        said = str(error)
    path.write_text(json.dumps({"address": cluster.address, "said": said}), encoding="utf-8")
    cluster.shutdown()


def test_a_cluster_that_serves_strangers_is_refused(tmp_path):
    # Ray's switch for loopback is off: the node has the address by which others know it.
    exposed = {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
    told = in_a_process_of_its_own(ask_an_open_cluster, tmp_path, **exposed)
    if told["address"].startswith("127."):
        pytest.skip("this machine has no address but the loopback interface's")
    assert f"the Ray cluster at {told['address']} requires no token" in told["said"]


def die_with_actors(path: Path) -> None:
    """Killed in the middle of a run, without a word."""
    with open_pool(config(num_actors=1), SleepingEngine, naps, BATCH) as pool:
        pool.publish(0, weights(0))
        pool.take(0)
        working = [
            child.pid
            for child in psutil.Process().children(recursive=True)
            if any(name in " ".join(child.cmdline()) for name in ("RolloutActor", "raylet", "gcs"))
            and "Agent" not in child.name()  # idle, and Ray's own: they follow after two minutes
        ]
        path.write_text(json.dumps(working), encoding="utf-8")
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.nightly
def test_a_killed_learner_leaves_no_actor_running(tmp_path):
    pids = in_a_process_of_its_own(die_with_actors, tmp_path, status=-signal.SIGKILL)
    assert len(pids) >= 3
    limit = time.monotonic() + 60
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < limit, "Ray outlived the learner"
        time.sleep(0.1)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
