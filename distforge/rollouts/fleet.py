"""The actors of a pool: started, given one request each, killed and started again."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import ray

from distforge.rollouts.actor import Outcome, Publication, RolloutActor
from distforge.rollouts.config import RolloutConfig
from distforge.rollouts.messages import EngineFactory, RolloutError, RolloutRequest

logger = logging.getLogger(__name__)

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass
class Place:
    """Where an actor is, or the one that follows it.

    generation: how many actors were here before: tells what they still say from the present.
    branch: of the weights that ``request`` was sent with.
    busy_since: when it was sent, on the monotonic clock.
    failures: actors in a row that ended without a rollout.
    """

    number: int
    actor: Any = None
    state: Literal["starting", "idle", "busy", "given up"] = "starting"
    generation: int = 0
    process: int = 0
    request: RolloutRequest | None = None
    branch: int = 0
    busy_since: float = 0.0
    failures: int = 0


@dataclass(frozen=True)
class Event:
    """An actor has answered: the process id when it has started, later an `Outcome`."""

    place: int
    generation: int
    answer: int | Outcome | BaseException


class Fleet:
    """Not thread-safe, but for ``events``, into which Ray's threads put what actors answer.

    Args:
        environment: of the actors, in Ray's words; beside the number of threads.

    Attributes:
        restarts: actors that were started again.
    """

    def __init__(
        self,
        config: RolloutConfig,
        make_engine: EngineFactory,
        environment: Mapping[str, Any] | None = None,
    ) -> None:
        self.events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self.restarts = 0
        self._config = config
        # Pickled once; an actor that is started again gets the same factory.
        self._make_engine = ray.put(make_engine)
        self._threads = config.threads_per_actor or 1
        variables = dict.fromkeys(_THREAD_VARIABLES, str(self._threads))
        known = dict(environment or {})
        variables |= known.pop("env_vars", {})
        self._remote = ray.remote(RolloutActor).options(
            num_cpus=config.cpus_per_actor,
            num_gpus=config.gpus_per_actor,
            max_restarts=0,  # by Ray: a place starts another one itself, and counts
            scheduling_strategy="SPREAD",
            runtime_env={**known, "env_vars": variables},
        )
        self._places = [Place(number) for number in range(config.num_actors)]
        for place in self._places:
            self._start(place)

    def current(self, event: Event) -> Place | None:
        """The place that an event is from; None if another actor is there by now."""
        place = self._places[event.place]
        return place if place.generation == event.generation else None

    def idle(self) -> Place | None:
        """A place that waits for a request."""
        return next((place for place in self._places if place.state == "idle"), None)

    def overdue(self) -> list[Place]:
        """Places whose request has taken longer than it may."""
        limit = time.monotonic() - self._config.request_seconds
        return [p for p in self._places if p.state == "busy" and p.busy_since < limit]

    def seconds_to_deadline(self) -> float | None:
        """Until a place can be overdue; None while none is busy."""
        since = [place.busy_since for place in self._places if place.state == "busy"]
        if not since:
            return None
        return max(0.0, min(since) + self._config.request_seconds - time.monotonic())

    def send(self, place: Place, request: RolloutRequest, published: Publication) -> None:
        """Have the idle actor generate; its `Outcome` comes as an event."""
        place.state, place.request, place.branch = "busy", request, published.branch
        place.busy_since = time.monotonic()
        self._listen(place, place.actor.rollout.remote(request, published))

    def restart(self, place: Place, reason: str) -> None:
        """Kill the actor if it is alive, and start another one there.

        Raises:
            RolloutError: this was the last place, and it has failed too often as well.
        """
        logger.error("rollout actor %d (process %d): %s", place.number, place.process, reason)
        ray.kill(place.actor)
        place.generation += 1
        place.failures += 1
        place.request = None
        if place.failures <= self._config.max_restarts:
            self.restarts += 1
            self._start(place)
            return
        place.state = "given up"
        logger.error(
            "rollout actor %d is given up: %d in a row ended without a rollout (max_restarts %d)",
            place.number,
            place.failures,
            self._config.max_restarts,
        )
        if all(other.state == "given up" for other in self._places):
            raise RolloutError(
                f"all {len(self._places)} rollout actors failed {place.failures} times in a row "
                f"(max_restarts is {self._config.max_restarts}), the last because\n{reason}"
            )

    def describe(self) -> str:
        """What the actors are doing, for an error's message."""
        now = time.monotonic()
        parts = []
        for place in self._places:
            what: str = place.state
            if place.request is not None:
                what += f" with rollout {place.request.id} for {now - place.busy_since:.1f} s"
            parts.append(f"actor {place.number} is {what}")
        return ", ".join(parts)

    def close(self) -> None:
        """Kill every actor."""
        for place in self._places:
            ray.kill(place.actor)

    def _start(self, place: Place) -> None:
        place.state, place.process = "starting", 0
        place.actor = self._remote.remote(self._make_engine, self._threads)
        self._listen(place, place.actor.process_id.remote())

    def _listen(self, place: Place, ref: Any) -> None:
        number, generation = place.number, place.generation

        def answered(future: Any) -> None:
            self.events.put(Event(number, generation, future.exception() or future.result()))

        ref.future().add_done_callback(answered)
