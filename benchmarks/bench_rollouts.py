"""What rollouts on Ray cost, and what they survive.

    python benchmarks/bench_rollouts.py --json benchmarks/results/rollouts.json

``--work NAME`` (repeatable) measures that part alone and keeps the other rows of the file.

- Scaling: rollouts a second on 1 to 16 actors, whose engines sleep for a lognormal time, against
  as many times one actor, and against the cost model: what a rollout costs beside the sleep, and in
  processor time, is measured on one actor alone, and says where more of them stop helping. 64
  actors would take 20 GB: of them there is the model's figure alone.
- Engine: rollouts a second by step 2's own engine on 1, 2 and 4 actors, against as many bare
  processes that run it in a loop, without Ray and learner: what the cores allow. Both take turns,
  and ratios are medians over rounds. Then the same on four nodes, where an actor is killed in each
  round; the processes are not.
- Publication: 25M float32 parameters until both of two local actors have generated with them,
  against the engine's own copying of the weights in one process.
- Lag: samples a second with staleness 2 against 0, on two actors, where a learner's step sleeps for
  as long as the generation of its batch.
- Chaos: two nodes; an actor is killed every 10 seconds for two minutes, and one raylet with all
  that runs on it. Counts what the learner got twice, too stale or not at all, against zero.

Sleeping engines show what the machinery costs on any machine; they say nothing of a model's speed.
Beside other work Ray may find the memory full and kill actors, which its monitor must not do here:
it is off.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch
from harness import Row, arguments, publish
from rollout_engine import Rounds, engine_kill_rows, engine_rows
from rollout_scaling import TINY, WARM_STEPS, SleepingEngine, naps, scaling
from torch import Tensor

from distforge.rollouts import RolloutConfig, RolloutRequest, open_pool
from distforge.rollouts.cluster import connected
from distforge.rollouts.interface import RolloutPool

PARAMETERS = 25_000_000


@dataclass(frozen=True)
class Scale:
    """How much of each is measured."""

    actors: tuple[int, ...] = (1, 2, 4, 16)
    modelled: tuple[int, ...] = (64,)
    mean_nap: float = 0.2
    scaling_seconds: float = 12.0
    engine_actors: tuple[int, ...] = (1, 2, 4)
    engine_rounds: int = 3
    engine_seconds: float = 12.0
    kill_seconds: float = 60.0
    publications: int = 15
    lag_steps: int = 40
    chaos_seconds: float = 120.0
    kill_every: float = 10.0


QUICK = Scale(
    actors=(1, 2),
    scaling_seconds=4.0,
    engine_actors=(1, 2),
    engine_rounds=1,
    engine_seconds=4.0,
    kill_seconds=10.0,
    publications=5,
    lag_steps=10,
    chaos_seconds=20,
    kill_every=5,
)


class CopyingEngine:
    """Copies the weights into a model of its own, as any engine does, and generates nothing."""

    def __init__(self) -> None:
        self.model: dict[str, Tensor] = {}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        for name, value in weights.items():
            if name in self.model:
                self.model[name].copy_(value)
            else:
                self.model[name] = value.clone()

    def rollout(self, request: RolloutRequest) -> int:
        return os.getpid()


def publication(scale: Scale) -> list[Row]:
    shapes = [(512, 512)] * (PARAMETERS // 512**2) + [(PARAMETERS % 512**2,)]
    weights = {f"layer.{i}": torch.randn(shape) for i, shape in enumerate(shapes)}
    assert sum(value.numel() for value in weights.values()) == PARAMETERS
    config = RolloutConfig(num_actors=2, threads_per_actor=1)
    times = []
    with open_pool(config, CopyingEngine, lambda step: naps(step, 2, 0.0), 2) as pool:
        version = 0
        while len(times) < scale.publications + WARM_STEPS:
            weights["layer.0"][0, 0] = version
            began = time.perf_counter()
            pool.publish(version, weights)
            rollouts = pool.take(version)
            if len({r.result for r in rollouts}) == 2:  # else the other actor is still starting
                times.append(1e3 * (time.perf_counter() - began))
            version += 1
    engine, copies = CopyingEngine(), []
    torch.set_num_threads(1)
    for _ in range(scale.publications + WARM_STEPS):
        began = time.perf_counter()
        engine.load(weights)
        copies.append(1e3 * (time.perf_counter() - began))
    ours, peer = (statistics.median(values[WARM_STEPS:]) for values in (times, copies))
    work = "publication: 25M float32 parameters until both of 2 actors generated with them"
    return [Row(work, ours, "the engine's copy alone, one process", peer, "ms", peer / ours)]


def samples_per_second(staleness: int, scale: Scale) -> float:
    """Two actors and a learner whose step takes as long as two actors take for its batch."""
    batch, mean = 8, scale.mean_nap / 2
    config = RolloutConfig(num_actors=2, staleness=staleness)
    with open_pool(config, SleepingEngine, lambda step: naps(step, batch, mean), batch) as pool:
        pool.publish(0, TINY)
        for step in range(scale.lag_steps + WARM_STEPS):
            if step == WARM_STEPS:
                began = time.perf_counter()
            pool.take(step)
            time.sleep(mean * batch / 2)
            pool.publish(step + 1, TINY)
        return scale.lag_steps * batch / (time.perf_counter() - began)


def lag(scale: Scale) -> list[Row]:
    with connected(RolloutConfig(num_actors=2)):
        ours, peer = samples_per_second(2, scale), samples_per_second(0, scale)
    work = "lag: staleness 2, learner and two actors cost the same, sleeping"
    return [Row(work, ours, "staleness 0", peer, "samples/s", ours / peer)]


@dataclass
class Audit:
    """What a learner must never see, counted."""

    staleness: int
    batch: int
    step: int = 0
    doubled: int = 0
    stale: int = 0

    def __post_init__(self) -> None:
        self.ids: set[int] = set()
        self.processes: set[int] = set()

    def advance(self, pool: RolloutPool) -> None:
        rollouts = pool.take(self.step)
        self.processes = {r.result[1] for r in rollouts}
        for rollout in rollouts:
            self.doubled += rollout.id in self.ids
            honest = rollout.result[0] == rollout.policy_version
            self.stale += not (honest and rollout.policy_version >= self.step - self.staleness)
            self.ids.add(rollout.id)
        self.step += 1
        pool.publish(self.step, {"version": torch.tensor(float(self.step))})

    def lost(self) -> int:
        """Requests that had to be consumed by now and were not."""
        due = range((self.step - self.staleness) * self.batch)
        return sum(number not in self.ids for number in due)


def chaos(scale: Scale) -> list[Row]:
    staleness, batch, mean = 2, 8, scale.mean_nap
    audit = Audit(staleness, batch)
    with two_nodes() as (address, raylet):
        config = RolloutConfig(num_actors=4, staleness=staleness, address=address)
        with open_pool(config, SleepingEngine, lambda step: naps(step, batch, mean), batch) as pool:
            pool.publish(0, TINY)
            kills = survive(pool, audit, scale, raylet)
            for _ in range(staleness + 1):
                audit.advance(pool)
            found = pool.statistics()
    print(f"killed {kills} actors and a raylet: {found}")
    work = (
        f"chaos: of {len(audit.ids)} rollouts, {kills} actors killed in "
        f"{scale.chaos_seconds:g} s and a raylet"
    )
    counts = {"lost": audit.lost(), "doubled": audit.doubled, "too stale": audit.stale}
    return [
        Row(f"{work}: {name}", count, "none", 0, "rollouts", float(count == 0))
        for name, count in counts.items()
    ]


def survive(pool: RolloutPool, audit: Audit, scale: Scale, raylet: int) -> int:
    """Learn while actors are killed, and halfway a raylet; how many actors were."""
    began = time.monotonic()
    kills, raylet_lives = 0, True
    while (elapsed := time.monotonic() - began) < scale.chaos_seconds:
        audit.advance(pool)
        if elapsed > (kills + 1) * scale.kill_every and audit.processes:
            victim = random.Random(kills).choice(sorted(audit.processes))
            if psutil.pid_exists(victim):
                os.kill(victim, signal.SIGKILL)
                kills += 1
        if raylet_lives and elapsed > scale.chaos_seconds / 2:
            os.kill(raylet, signal.SIGKILL)
            raylet_lives = False
    return kills


@contextmanager
def two_nodes() -> Iterator[tuple[str, int]]:
    """Address of a cluster on this machine, and the process id of its second raylet.

    The second node leaves with its raylet; the first has room for all actors.
    """
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4})
    try:
        node = cluster.add_node(num_cpus=4)
        yield cluster.address, node.all_processes["raylet"][0].process.pid
    finally:
        cluster.shutdown()


PARTS: dict[str, Callable[[Scale], list[Row]]] = {
    "scaling": lambda scale: scaling(
        scale.actors, scale.modelled, scale.mean_nap, scale.scaling_seconds
    ),
    "engine": lambda scale: engine_rows(
        scale.engine_actors, Rounds(scale.engine_rounds, scale.engine_seconds)
    ),
    "engine killed": lambda scale: engine_kill_rows(
        Rounds(scale.engine_rounds, scale.kill_seconds), (scale.kill_seconds / 4,)
    ),
    "publication": publication,
    "lag": lag,
    "chaos": chaos,
}


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--work", action="append", choices=PARTS, help="measure this part, keep other rows"
    )
    options = parser.parse_args()
    # Ray reads these when it is imported: the loopback interface alone, and a token of this run.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ.update(RAY_memory_monitor_refresh_ms="0")
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    rows: dict[str, list[Row]] = {name: [] for name in PARTS}
    if options.work and options.json.exists():
        for row in json.loads(options.json.read_text(encoding="utf-8"))["rows"]:
            rows[row["work"].partition(":")[0]].append(Row(**row))
    for name in options.work or PARTS:
        rows[name] = PARTS[name](QUICK if options.quick else Scale())
    publish([row for name in PARTS for row in rows[name]], options.json)


if __name__ == "__main__":
    main()
