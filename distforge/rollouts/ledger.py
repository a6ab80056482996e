"""Which requests wait, which are finished, which were consumed; knows neither Ray nor a clock.

With staleness S, batch size B and newest version v, requests of ids below (S + v + 1)·B are
submitted. Step s takes the first B finished rollouts of versions from s - S on. What has become
older is generated again from its request. So that a slow request is not overtaken for ever, step s
waits for every id below (s - S + 1)·B: none is consumed more than S steps late, and S = 0 takes
exactly the requests of its own step.

A learner that goes back to an earlier step begins a new branch, in which the same ids are asked for
again and the same version numbers name other weights. What belongs to a branch before is ignored.
"""

from __future__ import annotations

import heapq
from typing import Any

from distforge.errors import InputError
from distforge.rollouts.messages import RequestPlan, Rollout, RolloutError, RolloutRequest


class Ledger:
    """The books of a pool. Not thread-safe.

    Attributes:
        next_step: the learner step whose rollouts are taken next.
        branch: how often the learner went back.
        version: newest version of the weights published in this branch; -1 before the first.
        submitted, consumed, dropped, retried, duplicates, abandoned: as in `PoolStatistics`.
    """

    def __init__(
        self, plan: RequestPlan, batch_size: int, staleness: int, max_attempts: int
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; expected at least one rollout a step")
        self._plan = plan
        self._batch_size = batch_size
        self._staleness = staleness
        self._max_attempts = max_attempts
        self.next_step = 0
        self.branch = 0
        self.version = -1
        self.submitted = self.consumed = self.dropped = self.retried = self.duplicates = 0
        self.abandoned = 0
        # Consumed are all ids below _first, and those of _later.
        self._first = 0
        self._later: set[int] = set()
        self._planned_steps: int | None = None
        self._requests: dict[int, RolloutRequest] = {}
        self._waiting: list[int] = []
        self._is_waiting: set[int] = set()
        self._finished: dict[int, Rollout] = {}
        self._failures: dict[int, int] = {}

    def publish(self, version: int) -> None:
        """Count ``version`` as the newest, and submit the requests that it admits.

        Raises:
            ValueError: it is not above the versions of this branch before, or the plan breaks its
                contract.
        """
        if version <= self.version:
            raise ValueError(f"version {version} follows {self.version}; versions must rise")
        self.version = version
        begin = self._first // self._batch_size
        if self._planned_steps is not None:
            begin = self._planned_steps
        self._planned_steps = max(begin, self._staleness + version + 1)
        for step in range(begin, self._planned_steps):
            for request in self._requests_of(step):
                if request.id >= self._first and request.id not in self._later:
                    self._requests[request.id] = request
                    self.submitted += 1
                    self._wait(request.id)

    def next_request(self) -> RolloutRequest | None:
        """The waiting request of the lowest id, which waits no longer."""
        while self._waiting:
            number = heapq.heappop(self._waiting)
            if number in self._is_waiting:
                self._is_waiting.remove(number)
                return self._requests[number]
        return None

    def finish(self, rollout: Rollout) -> None:
        """Keep a rollout, or have it generated again if it is too stale for the next step.

        One of an earlier branch is ignored: its request was withdrawn, or is asked for anew.
        """
        number = rollout.id
        if rollout.branch != self.branch:
            return
        if number not in self._requests or number in self._finished:
            self.duplicates += 1
        elif self._is_stale(rollout):
            self._drop(number)
        else:
            self._is_waiting.discard(number)
            self._failures.pop(number, None)
            self._finished[number] = rollout

    def fail(self, number: int, branch: int, reason: str) -> None:
        """Have request ``number`` of ``branch`` tried again; one of an earlier branch is ignored.

        Raises:
            RolloutError: it was the last attempt.
        """
        if branch != self.branch:
            return
        if number not in self._requests or number in self._finished:
            return
        failures = self._failures[number] = self._failures.get(number, 0) + 1
        if failures >= self._max_attempts:
            raise RolloutError(
                f"rollout {number} failed {failures} times (max_attempts), the last because\n"
                f"{reason}"
            )
        self.retried += 1
        self._wait(number)

    def begin(self, step: int) -> None:
        """Get ready to take the rollouts of ``step``.

        Raises:
            ValueError: another step is due, or no weights fresh enough were published.
        """
        if step != self.next_step:
            raise ValueError(f"step {step} was asked for; step {self.next_step} is due")
        if self.version < step - self._staleness:
            raise ValueError(
                f"step {step} wants rollouts of version {step - self._staleness} or newer, but "
                f"version {self.version} is the newest published"
            )
        for rollout in list(self._finished.values()):
            if self._is_stale(rollout):
                del self._finished[rollout.id]
                self._drop(rollout.id)

    def missing(self) -> int:
        """How many rollouts the next step still lacks."""
        owed = [number for number in self._owed() if number not in self._finished]
        return max(len(owed), self._batch_size - len(self._finished))

    def take(self) -> list[Rollout]:
        """The rollouts of the next step, by id, once none is missing."""
        assert self.missing() == 0
        owed = self._owed()
        # Oldest policies first: the others stay fresh for longer. The sort keeps order of arrival.
        others = sorted(
            (r for r in self._finished.values() if r.id not in owed),
            key=lambda rollout: rollout.policy_version,
        )
        chosen = [self._finished[number] for number in owed] + others
        chosen = sorted(chosen[: self._batch_size], key=lambda rollout: rollout.id)
        for rollout in chosen:
            del self._finished[rollout.id]
            del self._requests[rollout.id]
            self._later.add(rollout.id)
        while self._first in self._later:
            self._later.remove(self._first)
            self._first += 1
        self.consumed += len(chosen)
        self.next_step += 1
        return chosen

    def counts(self) -> dict[str, int]:
        """The fields of `PoolStatistics` that are counted here."""
        return {
            "submitted": self.submitted,
            "consumed": self.consumed,
            "dropped": self.dropped,
            "retried": self.retried,
            "duplicates": self.duplicates,
            "abandoned": self.abandoned,
        }

    def state_dict(self) -> dict[str, Any]:
        """The next step and which ids are consumed; JSON."""
        return {
            "next_step": self.next_step,
            "batch_size": self._batch_size,
            "consumed_below": self._first,
            "consumed_also": sorted(self._later),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after what is consumed there; before anything is published.

        Raises:
            InputError: the run was saved with another batch size.
        """
        if self.version >= 0:
            raise ValueError("load_state_dict comes before the first publish")
        if state["batch_size"] != self._batch_size:
            raise InputError(
                f"the run was saved with {state['batch_size']} rollouts a step, and now has "
                f"{self._batch_size}; resume with the same number"
            )
        self.next_step = state["next_step"]
        self._first = state["consumed_below"]
        self._later = set(state["consumed_also"])

    def roll_back(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` gave ``state``, in a new branch.

        Every open request is withdrawn; `publish` comes next, and asks the plan anew.

        Raises:
            InputError: the run was saved with another batch size.
        """
        self.branch += 1
        self.abandoned += len(self._requests)
        self.version = -1
        self._planned_steps = None
        for of_this_branch in (self._requests, self._finished, self._failures):
            of_this_branch.clear()
        self._waiting.clear()
        self._is_waiting.clear()
        self.load_state_dict(state)

    def _owed(self) -> list[int]:
        """Ids that the next step must not leave behind; at most a batch of them."""
        bound = (self.next_step - self._staleness + 1) * self._batch_size
        ids = [i for i in range(self._first, bound) if i not in self._later]
        return ids[: self._batch_size]

    def _is_stale(self, rollout: Rollout) -> bool:
        return rollout.policy_version < self.next_step - self._staleness

    def _drop(self, number: int) -> None:
        self.dropped += 1
        self._wait(number)

    def _wait(self, number: int) -> None:
        if number not in self._is_waiting:
            self._is_waiting.add(number)
            heapq.heappush(self._waiting, number)

    def _requests_of(self, step: int) -> list[RolloutRequest]:
        requests = list(self._plan(step))
        begin = step * self._batch_size
        expected = list(range(begin, begin + self._batch_size))
        if [request.id for request in requests] != expected:
            raise ValueError(
                f"the plan of step {step} has ids {[r.id for r in requests]}; expected {expected}"
            )
        return requests
