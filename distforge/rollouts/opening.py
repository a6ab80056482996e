"""The one way to get a pool."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from distforge.rollouts.config import RolloutConfig
from distforge.rollouts.engines.interpreter import prepared, require_interpreter
from distforge.rollouts.interface import RolloutPool
from distforge.rollouts.ledger import Ledger
from distforge.rollouts.local import LocalPool
from distforge.rollouts.messages import EngineFactory, RequestPlan


@contextmanager
def open_pool(
    config: RolloutConfig, make_engine: EngineFactory, plan: RequestPlan, batch_size: int
) -> Iterator[RolloutPool]:
    """A pool that generates ``batch_size`` rollouts for each learner step.

    Actors start in the background: a failure of theirs is raised by what next waits for them.
    What was started for the pool is stopped at the end, and only that.

    Args:
        config: see `RolloutConfig`.
        make_engine: called once in every process that generates.
        plan: the requests of each step.
        batch_size: rollouts a step.

    Raises:
        InputError: Ray is not installed, the cluster cannot be reached or is open to anybody, or
            the engine's interpreter cannot run it.
    """
    ledger = Ledger(plan, batch_size, config.staleness, config.max_attempts)
    if config.num_actors == 0:
        yield LocalPool(ledger, make_engine, config.threads_per_actor or torch.get_num_threads())
        return
    from distforge.rollouts.cluster import connected

    require_interpreter(config)
    with connected(config), prepared(config) as environment:
        # Imports Ray, which `connected` has prepared for that.
        from distforge.rollouts.pool import ActorsPool

        pool = ActorsPool(ledger, make_engine, config, environment)
        try:
            yield pool
        finally:
            pool.close()
