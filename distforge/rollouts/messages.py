"""What goes between the learner, the pool and the engines that generate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class RolloutRequest:
    """What an engine is asked for.

    Equal requests on equal weights give bitwise equal results: whatever is random in them comes
    from ``seed``.

    id: of the rollout, from 0, unique in a run.
    seed: of the sampling.
    payload: plain data that pickles: numbers, strings, lists, tuples, numpy arrays.
    """

    id: int
    seed: int
    payload: Any


@dataclass(frozen=True)
class Rollout:
    """What came of a request.

    id: that of the request.
    policy_version: of the weights that produced it: how many learner steps they had seen.
    checksum: of those weights, as the engine received them (`weights.checksum`).
    result: what `RolloutEngine.rollout` returned.
    seconds: the engine took for it.
    branch: of the pool when those weights were published; see `RolloutPool.roll_back`.
    """

    id: int
    policy_version: int
    checksum: str
    result: Any
    seconds: float
    branch: int = 0


class RolloutEngine(Protocol):
    """A policy that generates. One process uses one engine, from one thread."""

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Copy ``weights`` (CPU tensors by name) into the own model.

        Nothing may keep a reference: they can be read-only shared memory that is soon reused, or
        the learner's own parameters.
        """
        ...

    def rollout(self, request: RolloutRequest) -> Any:
        """Plain data that pickles, such as a dict of numpy arrays or CPU tensors."""
        ...


EngineFactory = Callable[[], RolloutEngine]
"""Makes an engine where it will run; must go through cloudpickle."""

RequestPlan = Callable[[int], Sequence[RolloutRequest]]
"""The requests of a learner step (from 0): a pure function of it, with ids
``step * batch_size`` to ``(step + 1) * batch_size - 1`` in order."""


@dataclass(frozen=True)
class PoolStatistics:
    """What a pool has done since it was opened; a resumed run counts from zero.

    submitted: requests given to the pool.
    consumed: rollouts that the learner took, also those of steps that were rolled back later.
    dropped: finished rollouts that had become too stale and were generated again.
    retried: attempts that failed and were repeated.
    duplicates: rollouts that came a second time and were ignored.
    abandoned: requests withdrawn because the run was rolled back, finished or not; submitted are
        these, the consumed ones and those that are still open.
    restarts: actors that were started again.
    seconds_waited: `RolloutPool.take` waited.
    busy_seconds: engines spent generating, summed over actors.
    """

    submitted: int = 0
    consumed: int = 0
    dropped: int = 0
    retried: int = 0
    duplicates: int = 0
    abandoned: int = 0
    restarts: int = 0
    seconds_waited: float = 0.0
    busy_seconds: float = 0.0


class RolloutError(RuntimeError):
    """Rollouts cannot go on: what failed how often, with the traceback of the last time."""
