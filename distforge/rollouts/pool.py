"""The pool whose rollouts Ray actors generate."""

from __future__ import annotations

import logging
import pickle
import queue
import threading
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayTaskError
from torch import Tensor

from distforge.errors import InputError
from distforge.rollouts.actor import Outcome, Publication
from distforge.rollouts.config import RolloutConfig
from distforge.rollouts.fleet import Event, Fleet, Place
from distforge.rollouts.interface import RolloutPool
from distforge.rollouts.ledger import Ledger
from distforge.rollouts.messages import EngineFactory, PoolStatistics, Rollout, RolloutError
from distforge.rollouts.weights import checksum, pack

logger = logging.getLogger(__name__)

_CLOSE_SECONDS = 30.0


class ActorsPool(RolloutPool):
    """Generates on ``config.num_actors`` Ray actors, while the learner does something else.

    A thread answers the actors: it books what they finished, and gives the next request to whoever
    is idle. Each actor has one request at a time, so that all of them end a step together and
    each request starts with the newest weights.
    """

    def __init__(
        self,
        ledger: Ledger,
        make_engine: EngineFactory,
        config: RolloutConfig,
        environment: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(ledger)
        self._config = config
        self._fleet = Fleet(config, make_engine, environment)
        self._published: Publication | None = None
        # Of the weights of this branch, by version.
        self._checksums: dict[int, str] = {}
        self._seconds_waited = self._busy_seconds = 0.0
        self._failure: BaseException | None = None
        # Guards everything above but the fleet's events; notified when a rollout may be ready.
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="rollouts", daemon=True)
        self._thread.start()

    def publish(self, version: int, weights: Mapping[str, Tensor]) -> None:
        digest = checksum(weights)
        ref = ray.put(pack(weights))
        with self._changed:
            self._raise_failure()
            self._ledger.publish(version)
            self._checksums[version] = digest
            # The weights before these go out of shared memory with the last actor that reads them.
            self._published = Publication(self._ledger.branch, version, (ref,))
            self._give_requests()
        self._fleet.events.put(None)  # the thread may have to wait for another deadline now

    def take(self, step: int) -> list[Rollout]:
        began = time.perf_counter()
        limit = self._config.timeout_seconds
        with self._changed:
            self._raise_failure()
            self._ledger.begin(step)
            self._give_requests()
            self._fleet.events.put(None)
            self._changed.wait_for(lambda: self._failure or not self._ledger.missing(), limit)
            self._seconds_waited += time.perf_counter() - began
            self._raise_failure()
            if self._ledger.missing():
                raise RolloutError(
                    f"step {step} still lacks {self._ledger.missing()} rollouts after "
                    f"{limit:g} s (timeout_seconds): {self._fleet.describe()}"
                )
            oldest = step - self._config.staleness
            self._checksums = {v: c for v, c in self._checksums.items() if v >= oldest}
            return self._ledger.take()

    def state_dict(self) -> dict[str, Any]:
        with self._changed:
            return super().state_dict()

    def roll_back(self, state: dict[str, Any]) -> None:
        with self._changed:
            self._raise_failure()
            super().roll_back(state)
            self._checksums.clear()
            self._published = None

    def statistics(self) -> PoolStatistics:
        with self._changed:
            return PoolStatistics(
                **self._ledger.counts(),
                restarts=self._fleet.restarts,
                seconds_waited=self._seconds_waited,
                busy_seconds=self._busy_seconds,
            )

    def close(self) -> None:
        """Stop the thread and the actors."""
        self._closing = True
        self._fleet.events.put(None)
        self._thread.join(_CLOSE_SECONDS)
        self._fleet.close()

    def _raise_failure(self) -> None:
        if isinstance(self._failure, InputError):
            raise InputError(str(self._failure)) from self._failure
        if isinstance(self._failure, RolloutError):
            raise RolloutError(str(self._failure)) from self._failure
        if self._failure is not None:
            raise RolloutError(f"the rollouts broke down: {self._failure!r}") from self._failure

    def _serve(self) -> None:
        """Until the pool is closed or has failed; the learner's thread raises the failure."""
        while not self._closing and self._failure is None:
            with self._changed:
                patience = self._fleet.seconds_to_deadline()
            try:
                event = self._fleet.events.get(timeout=patience)
            except queue.Empty:
                event = None
            with self._changed:
                try:
                    self._handle(event)
                except BaseException as error:
                    self._failure = error
                self._changed.notify_all()

    def _handle(self, event: Event | None) -> None:
        place = self._fleet.current(event) if event else None
        if event is not None and place is not None:
            if isinstance(event.answer, Outcome):
                self._book(place, event.answer)
            elif isinstance(event.answer, int):
                place.process, place.state = event.answer, "idle"
            elif refusal := _refusal(event.answer):
                raise refusal
            else:
                self._lose(place, f"{type(event.answer).__name__}: {event.answer}")
        for late in self._fleet.overdue():
            limit = self._config.request_seconds
            self._lose(late, f"no answer within {limit:g} s (request_seconds)")
        self._give_requests()

    def _give_requests(self) -> None:
        if self._published is None:
            return
        while place := self._fleet.idle():
            request = self._ledger.next_request()
            if request is None:
                return
            self._fleet.send(place, request, self._published)

    def _book(self, place: Place, outcome: Outcome) -> None:
        """An actor is done with its request, one way or the other."""
        request = place.request
        assert request is not None
        if outcome.unloadable:
            raise RolloutError(
                f"rollout actor {place.number} could not load the weights of version "
                f"{outcome.version}:\n{outcome.error}"
            )
        known = self._checksums if outcome.branch == self._ledger.branch else {}
        expected = known.get(outcome.version)
        if not outcome.error and expected not in (None, outcome.checksum):
            self._lose(
                place,
                f"rollout {request.id} claims version {outcome.version} with checksum "
                f"{outcome.checksum}; that version has {expected}",
            )
            return
        place.state, place.request = "idle", None
        if outcome.error:
            logger.error("rollout %d failed:\n%s", request.id, outcome.error)
            self._ledger.fail(request.id, outcome.branch, outcome.error)
            return
        place.failures = 0
        self._busy_seconds += outcome.seconds
        self._ledger.finish(
            Rollout(
                request.id,
                outcome.version,
                outcome.checksum,
                pickle.loads(outcome.result),
                outcome.seconds,
                outcome.branch,
            )
        )

    def _lose(self, place: Place, reason: str) -> None:
        """Replace an actor, and have another one do what it was doing."""
        request = place.request
        self._fleet.restart(place, reason)
        if request is not None:
            self._ledger.fail(request.id, place.branch, reason)


def _refusal(error: BaseException) -> InputError | None:
    """What an actor was refused its engine for, where it was."""
    cause = error.cause if isinstance(error, RayTaskError) else None
    return cause if isinstance(cause, InputError) else None
