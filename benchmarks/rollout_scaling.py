"""How rollouts grow with actors: measured, and by a cost model from one. Of bench_rollouts.py."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from harness import Row
from torch import Tensor

from distforge.rollouts import RolloutConfig, RolloutRequest, open_pool
from distforge.rollouts.cluster import connected

# Steps that are not measured: actors start, memory is touched for the first time.
WARM_STEPS = 4
TINY = {"version": torch.zeros(())}


class SleepingEngine:
    """Takes the request's payload in seconds, and no processor time."""

    def load(self, weights: Mapping[str, Tensor]) -> None:
        self.version = int(weights["version"])

    def rollout(self, request: RolloutRequest) -> tuple[int, int]:
        time.sleep(request.payload)
        return self.version, os.getpid()


def nap(number: int, mean: float, sigma: float = 0.5) -> float:
    """Lognormal seconds around ``mean``, of a rollout: one in twenty takes twice as long."""
    return mean * random.Random(number).lognormvariate(-(sigma**2) / 2, sigma)


def naps(step: int, batch_size: int, mean: float) -> list[RolloutRequest]:
    ids = range(step * batch_size, (step + 1) * batch_size)
    return [RolloutRequest(number, number, nap(number, mean)) for number in ids]


@dataclass(frozen=True)
class Cost:
    """What rollouts took: ``rate`` a second, and processor seconds for each, of all processes
    together (``spent``) and of the learner's alone (``learner``)."""

    rate: float
    spent: float
    learner: float


class Clock:
    """Time on the wall and of processors since it was made."""

    def __init__(self) -> None:
        self._wall, self._learner, self._all = time.perf_counter(), time.process_time(), _spent()

    def cost(self, rollouts: float) -> Cost:
        wall = time.perf_counter() - self._wall
        learner = time.process_time() - self._learner
        return Cost(rollouts / wall, (_spent() - self._all) / rollouts, learner / rollouts)

    def seconds(self) -> float:
        return time.perf_counter() - self._wall


def _spent() -> float:
    """Processor seconds of this process and all below it: Ray's daemons and the actors too."""
    me, total = psutil.Process(), 0.0
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def cost(actors: int, engine: Callable[[], Any], mean: float, seconds: float) -> Cost:
    """Of a learner that costs nothing itself, once all actors work.

    A rollout counts by its nap over the mean nap: chance may draw longer ones in one run.
    """
    batch = 2 * actors
    config = RolloutConfig(num_actors=actors, threads_per_actor=1, staleness=2)
    with open_pool(config, engine, lambda step: naps(step, batch, mean), batch) as pool:
        pool.publish(0, TINY)
        processes: set[int] = set()
        step, calm, done = 0, 0, 0.0
        clock = None
        while clock is None or clock.seconds() < seconds:
            rollouts = pool.take(step)
            step += 1
            pool.publish(step, TINY)
            processes |= {r.result[1] for r in rollouts}
            if clock is not None:
                done += sum(nap(r.id, mean) / mean if mean else 1 for r in rollouts)
            calm += len(processes) == actors
            if calm == WARM_STEPS:
                clock = Clock()
        return clock.cost(done)


def modelled(actors: int, one: Cost, busy: Cost) -> float:
    """The cost model: rollouts a second on so many actors, from two measurements of one.

    Args:
        one: with naps. Each of more actors takes as long for a rollout as this one.
        busy: without naps, so that all that is seen is cost. The learner's process answers every
            actor, and the cores of this one machine do the work of all.
    """
    cores = len(os.sched_getaffinity(0))
    return min(actors * one.rate, 1 / busy.learner, cores / busy.spent)


def scaling(
    numbers: Sequence[int], beyond: Sequence[int], mean: float, seconds: float
) -> list[Row]:
    """On so many actors each, naps of ``mean`` seconds, measured for ``seconds``; on those
    ``beyond`` by the cost model alone."""
    with connected(RolloutConfig(num_actors=max(numbers))):
        busy = cost(1, SleepingEngine, 0.0, seconds)
        costs = {actors: cost(actors, SleepingEngine, mean, seconds) for actors in numbers}
    one = costs[1]
    work = f"scaling: rollouts of {mean:g} s (lognormal) on {{}} actors, sleeping"
    unit = "rollouts/s"
    rows = [Row(work.format(1), one.rate, "no cost at all", 1 / mean, unit, one.rate * mean)]
    for actors, found in list(costs.items())[1:]:
        peers = {
            f"{actors} times one actor": actors * one.rate,
            "the cost model, from one actor": modelled(actors, one, busy),
        }
        for peer, value in peers.items():
            ratio = found.rate / value
            rows.append(Row(work.format(actors), found.rate, peer, value, unit, ratio))
    for actors in beyond:
        value, ideal = modelled(actors, one, busy), actors * one.rate
        work = f"scaling: the same on {actors} actors, by the cost model, not run"
        rows.append(Row(work, value, f"{actors} times one actor", ideal, unit, value / ideal))
    return rows
