"""What the learner sees of a pool, wherever the rollouts are generated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from distforge.rollouts.ledger import Ledger
from distforge.rollouts.messages import PoolStatistics, Rollout


class RolloutPool(ABC):
    """Generates the rollouts of a run; see `open_pool`. One thread uses it.

    In a loop that stops and resumes anywhere::

        pool.load_state_dict(state)         # when resuming
        pool.publish(step, gather_weights(engine))
        for step in range(step, steps):
            rollouts = pool.take(step)
            ...                             # one optimizer step
            pool.publish(step + 1, gather_weights(engine))

    and one that goes back to a step whose ``state`` it kept::

        pool.roll_back(state)
        pool.publish(step, gather_weights(engine))
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    @abstractmethod
    def publish(self, version: int, weights: Mapping[str, Tensor]) -> None:
        """Generate from these weights from now on; they are copied before this returns.

        Args:
            version: learner steps that the weights have seen; must rise, but after `roll_back`.
            weights: tensors by name, the same names, shapes and dtypes every time.

        Raises:
            RolloutError: rollouts cannot go on.
        """

    @abstractmethod
    def take(self, step: int) -> list[Rollout]:
        """The rollouts of learner step ``step`` (each step once, in order), sorted by id.

        ``batch_size`` many, each of a version from ``step - staleness`` on.

        Raises:
            RolloutError: a request or every actor failed too often, or the wait was too long.
        """

    @abstractmethod
    def statistics(self) -> PoolStatistics:
        """What the pool has done since it was opened."""

    def state_dict(self) -> dict[str, Any]:
        """What is consumed; JSON. To be saved between steps, with the learner's checkpoint."""
        return self._ledger.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken: nothing is repeated and nothing is lost.

        Comes before the first `publish`. What was generated but not consumed is generated again.

        Raises:
            InputError: the run was saved with another batch size.
        """
        self._ledger.load_state_dict(state)

    def roll_back(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` gave ``state``; comes between two steps, never waits.

        What was generated and not consumed is discarded, what is being generated is ignored when it
        comes, and nothing is generated until the next `publish`, which may repeat a version number
        with other weights. From there on each request is consumed once, as after `load_state_dict`;
        the plan is asked for it again.

        Raises:
            RolloutError: rollouts cannot go on.
            InputError: the run was saved with another batch size.
        """
        self._ledger.roll_back(state)
