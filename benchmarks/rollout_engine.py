"""Rollouts by step 2's own engine, against as many bare processes of it. Of bench_rollouts.py.

The processes run that engine in a loop, with no Ray, no learner and no publication: what this
machine's cores allow. They and the pool take turns, so that other work on the machine meets both.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import psutil
import torch
from harness import Row
from rollout_scaling import WARM_STEPS, Clock
from torch import Tensor

from distforge.models.architectures import ArchitectureConfig, build_model
from distforge.quietstar import ThinkingModel
from distforge.quietstar.config import RewardConfig
from distforge.quietstar.thought_engine import EngineRecipe, ThoughtEngine
from distforge.rollouts import RolloutConfig, RolloutRequest, open_pool
from distforge.rollouts.cluster import connected
from distforge.rollouts.interface import RolloutPool
from distforge.thinking.items import ThoughtItem
from distforge.thinking.positions import PositionsConfig
from distforge.thinking.sampling import ThoughtConfig
from distforge.thinking.tags import Tags

VOCAB, BATCH, STALENESS = 1200, 8, 2
MODEL = ArchitectureConfig(
    hidden_size=256, num_layers=4, num_heads=4, num_kv_heads=4, intermediate_size=688
)
NAME = "{}: two questions with 8 thoughts of 48 tokens each, 3.5M parameters, {} actors"


@dataclass(frozen=True)
class Rounds:
    """``count`` rounds, in each of which the pool and the bare processes have ``seconds`` each."""

    count: int
    seconds: float


class NotingEngine:
    """Step 2's engine, which also says in which process it is."""

    def __init__(self) -> None:
        self._engine = engine()

    def load(self, weights: dict[str, Tensor]) -> None:
        self._engine.load(weights)

    def rollout(self, request: RolloutRequest) -> tuple[dict[str, Tensor], int]:
        return self._engine.rollout(request), os.getpid()


def model() -> ThinkingModel:
    return ThinkingModel.wrap(
        build_model(MODEL, VOCAB, 0, eos_token_id=1, pad_token_id=0), mixing=False
    )


def engine() -> ThoughtEngine:
    """Thoughts have no end of their own, so that all rollouts cost the same."""
    tags = Tags(open=2, close=3, pad=0, eos=None)
    thought = ThoughtConfig(max_tokens=48)
    config = model().config
    return EngineRecipe(config, tags, thought, RewardConfig(), PositionsConfig(), thoughts=8)()


def requests(step: int) -> list[RolloutRequest]:
    return [
        RolloutRequest(number, number, [_item(2 * number), _item(2 * number + 1)])
        for number in range(step * BATCH, (step + 1) * BATCH)
    ]


def _item(number: int) -> ThoughtItem:
    draw = random.Random(number)

    def words(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(4, VOCAB) for _ in range(count))

    return ThoughtItem(str(number), words(32), (31,), (words(3),), words(3))


def _work(pipe: Connection) -> None:
    """For each number of seconds that comes: rollouts in that time, and processor time of each."""
    torch.set_num_threads(1)
    bare, number = engine(), 0
    asked = requests(0)
    bare.load(model().state_dict())
    bare.rollout(asked[0])
    pipe.send("ready")
    while (seconds := pipe.recv()) > 0:
        began, spent, first = time.perf_counter(), time.process_time(), number
        while (elapsed := time.perf_counter() - began) < seconds:
            bare.rollout(asked[number % BATCH])
            number += 1
        done = number - first
        pipe.send((done / elapsed, (time.process_time() - spent) / done))


@contextmanager
def bare_processes(count: int) -> Iterator[Callable[[float], tuple[float, float]]]:
    """What measures them for so many seconds: rollouts a second of all, processor time of each."""
    context, pipes, processes = multiprocessing.get_context("spawn"), [], []
    for _ in range(count):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=_work, args=(theirs,), daemon=True))
        processes[-1].start()
        pipes.append(ours)

    def measure(seconds: float) -> tuple[float, float]:
        for pipe in pipes:
            pipe.send(seconds)
        rates, spent = zip(*(pipe.recv() for pipe in pipes), strict=True)
        return sum(rates), statistics.mean(spent)

    try:
        for pipe in pipes:
            assert pipe.recv() == "ready"
        yield measure
    finally:
        for process in processes:
            process.kill()
            process.join()


class Learner:
    """Takes rollouts and publishes weights after every batch, and costs nothing besides."""

    def __init__(self, pool: RolloutPool, actors: int) -> None:
        self._pool, self._step, self._actors = pool, 0, actors
        self._weights = model().state_dict()
        self.processes: set[int] = set()
        pool.publish(0, self._weights)

    def advance(self) -> None:
        rollouts = self._pool.take(self._step)
        self._step += 1
        self._pool.publish(self._step, self._weights)
        self.processes = {r.result[1] for r in rollouts}

    def settle(self) -> None:
        """Until all actors work, and what was made ahead in a pause is used up."""
        for _ in range(WARM_STEPS):
            self.advance()
        while len(self.processes) < min(self._actors, BATCH):
            self.advance()

    def measure(self, seconds: float, kill_at: Sequence[float] = ()) -> tuple[float, float]:
        """Rollouts a second, and processor time of each in all processes together (without that of
        killed ones)."""
        first, due, clock = self._step, list(kill_at), Clock()
        while clock.seconds() < seconds:
            self.advance()
            if due and clock.seconds() > due[0]:
                due.pop(0)
                victim = random.Random(first).choice(sorted(self.processes))
                if psutil.pid_exists(victim):
                    os.kill(victim, signal.SIGKILL)
        found = clock.cost(BATCH * (self._step - first))
        assert not due, "a kill was due and did not come"
        return found.rate, found.spent


def _rounds(
    actors: int, config: RolloutConfig, rounds: Rounds, kill_at: Sequence[float] = ()
) -> list[tuple[float, float, float, float]]:
    """Of each round: rates of the pool and the bare processes, processor time of a rollout."""
    found = []
    with (
        bare_processes(actors) as bare,
        open_pool(config, NotingEngine, requests, BATCH) as pool,
    ):
        learner = Learner(pool, actors)
        for number in range(rounds.count):
            learner.settle()
            ours, spent = learner.measure(rounds.seconds, kill_at)
            _wait_until_idle()
            peer, alone = bare(rounds.seconds)
            print(f"round {number}, {actors} actors: {ours:.3f} of {peer:.3f} rollouts/s,", end=" ")
            print(f"{spent:.3f} of {alone:.3f} s of a processor, {pool.statistics()}", flush=True)
            found.append((ours, peer, spent, alone))
    return found


def _wait_until_idle(calm: float = 0.1, deadline: float = 120.0) -> None:
    """Until no process of the pool computes: actors have made what may be made ahead."""
    began = time.monotonic()
    while time.monotonic() - began < deadline:
        clock = Clock()
        time.sleep(1.0)
        if clock.cost(1.0).spent < calm:
            return
    raise RuntimeError("the pool does not come to rest")


def _medians(found: Sequence[tuple[float, ...]]) -> list[float]:
    return [statistics.median(values) for values in zip(*found, strict=True)]


def engine_rows(numbers: Sequence[int], rounds: Rounds) -> list[Row]:
    """On so many actors of one machine, against the processes and a cost model from one actor: a
    rollout costs as much processor time on more of them."""
    found = {}
    with connected(RolloutConfig(num_actors=max(numbers))):
        for actors in numbers:
            config = RolloutConfig(num_actors=actors, threads_per_actor=1, staleness=STALENESS)
            found[actors] = _rounds(actors, config, rounds)
    rows = []
    share = statistics.median(alone / spent for _, _, spent, alone in found[min(numbers)])
    for actors, rates in found.items():
        ours, peer, spent, alone = _medians(rates)
        ratio = statistics.median(a / b for a, b, _, _ in rates)
        cost = statistics.median(b / a for _, _, a, b in rates)
        name = NAME.format("engine", actors)
        rows.append(Row(name, ours, f"{actors} bare processes", peer, "rollouts/s", ratio))
        rows.append(Row(name, spent, "a bare process", alone, "processor s a rollout", cost))
        if actors > min(numbers):
            told = "the cost model, from one actor"
            rows.append(Row(name, ours, told, share * peer, "rollouts/s", ratio / share))
    return rows


def engine_kill_rows(rounds: Rounds, kill_at: Sequence[float]) -> list[Row]:
    """Four nodes with an actor each, of which one is killed at these seconds of each round."""
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        for _ in range(3):
            cluster.add_node(num_cpus=1)
        config = RolloutConfig(
            num_actors=4, threads_per_actor=1, staleness=STALENESS, address=cluster.address
        )
        found = _rounds(4, config, rounds, kill_at)
    finally:
        cluster.shutdown()
    ours, peer, _, _ = _medians(found)
    ratio = statistics.median(a / b for a, b, _, _ in found)
    name = NAME.format("engine killed", 4)
    name += f" on 4 nodes, {len(kill_at)} killed in {rounds.seconds:g} s"
    return [Row(name, ours, "4 bare processes", peer, "rollouts/s", ratio)]
