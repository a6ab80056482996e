"""One engine in a process of its own; this is what Ray runs."""

from __future__ import annotations

import os
import pickle
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from distforge.errors import InputError
from distforge.rollouts.messages import EngineFactory, RolloutEngine, RolloutRequest
from distforge.rollouts.weights import PackedWeights, checksum, unpack
from distforge.training.host_memory import keep_freed_memory


@dataclass(frozen=True)
class Publication:
    """A version of the weights and where they lie.

    ``branch`` tells apart what has one version number before and after a rollback. ``refs`` holds
    one reference to a `PackedWeights`; inside a list Ray passes it on as it is, instead of fetching
    it for every call.
    """

    branch: int
    version: int
    refs: Sequence[Any]


@dataclass(frozen=True)
class Outcome:
    """What came of one call; failures are data, because not every exception can be pickled.

    result: the pickled result; empty when the call failed.
    error: the traceback; empty when it succeeded.
    unloadable: the engine refused the weights, as every engine of its kind will.
    """

    branch: int
    version: int
    checksum: str
    seconds: float = 0.0
    result: bytes = b""
    error: str = ""
    unloadable: bool = False


class RolloutActor:
    """Serves one request at a time, with the weights that come with it."""

    def __init__(self, make_engine: EngineFactory, threads: int) -> None:
        torch.set_num_threads(threads)
        keep_freed_memory()
        self._engine: RolloutEngine
        self._refusal: InputError | None = None
        try:
            self._engine = make_engine()
        except InputError as error:
            # Raised here, Ray would tell of an actor that died, and why as a text alone.
            self._refusal = error
        # Branch and version of what the engine holds.
        self._loaded: tuple[int, int] | None = None
        self._checksum = ""

    def process_id(self) -> int:
        """Of this process, once the engine is made.

        Raises:
            InputError: it cannot be made, here or anywhere.
        """
        if self._refusal is not None:
            raise self._refusal
        return os.getpid()

    def rollout(self, request: RolloutRequest, published: Publication) -> Outcome:
        """Load the weights if they are new, and generate."""
        of = (published.branch, published.version)
        if of != self._loaded:
            error = self._load(published)
            if error is not None:
                return error
        began = time.perf_counter()
        try:
            # Pickled here and not by Ray: arrays would come out read-only and pin shared memory.
            result = pickle.dumps(self._engine.rollout(request), protocol=5)
        except Exception:
            return Outcome(*of, self._checksum, error=traceback.format_exc())
        return Outcome(*of, self._checksum, time.perf_counter() - began, result)

    def _load(self, published: Publication) -> Outcome | None:
        import ray

        of = (published.branch, published.version)
        self._loaded = None  # half-loaded weights are of no version
        try:
            packed: PackedWeights = ray.get(published.refs[0])
        except Exception:
            return Outcome(*of, "", error=traceback.format_exc())
        weights = unpack(packed)
        try:
            self._engine.load(weights)
        except Exception:
            error = traceback.format_exc()
            return Outcome(*of, "", error=error, unloadable=True)
        self._checksum = checksum(weights)
        self._loaded = of
        return None
