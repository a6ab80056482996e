"""Rollouts in the learner's own process: one GPU, or no Ray."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from distforge.rollouts.interface import RolloutPool
from distforge.rollouts.ledger import Ledger
from distforge.rollouts.messages import (
    EngineFactory,
    PoolStatistics,
    Rollout,
    RolloutError,
    RolloutRequest,
)
from distforge.rollouts.weights import checksum


class LocalPool(RolloutPool):
    """Generates when it is asked, so that every rollout is of the newest version.

    The learner's number of threads and random state are left as they were.
    """

    def __init__(self, ledger: Ledger, make_engine: EngineFactory, threads: int) -> None:
        super().__init__(ledger)
        self._threads = threads
        self._checksum = ""
        self._seconds_waited = self._busy_seconds = 0.0
        with self._as_in_an_actor():
            self._engine = make_engine()

    def publish(self, version: int, weights: Mapping[str, Tensor]) -> None:
        self._ledger.publish(version)
        try:
            with self._as_in_an_actor():
                self._engine.load(weights)
        except Exception as error:
            raise RolloutError(
                f"the engine could not load the weights of version {version}: "
                f"{type(error).__name__}: {error}"
            ) from error
        self._checksum = checksum(weights)

    def take(self, step: int) -> list[Rollout]:
        began = time.perf_counter()
        self._ledger.begin(step)
        while self._ledger.missing():
            request = self._ledger.next_request()
            assert request is not None, "too few requests are submitted"
            self._generate(request)
        self._seconds_waited += time.perf_counter() - began
        return self._ledger.take()

    def statistics(self) -> PoolStatistics:
        return PoolStatistics(
            **self._ledger.counts(),
            seconds_waited=self._seconds_waited,
            busy_seconds=self._busy_seconds,
        )

    def _generate(self, request: RolloutRequest) -> None:
        began = time.perf_counter()
        try:
            with self._as_in_an_actor():
                result = self._engine.rollout(request)
        except Exception:
            self._ledger.fail(request.id, self._ledger.branch, traceback.format_exc())
            return
        seconds = time.perf_counter() - began
        self._busy_seconds += seconds
        version, branch = self._ledger.version, self._ledger.branch
        self._ledger.finish(Rollout(request.id, version, self._checksum, result, seconds, branch))

    @contextmanager
    def _as_in_an_actor(self) -> Iterator[None]:
        """With the threads of an actor, and a random state of the engine's own."""
        before = torch.get_num_threads()
        devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        torch.set_num_threads(self._threads)
        try:
            with torch.random.fork_rng(devices=devices):
                yield
        finally:
            torch.set_num_threads(before)
