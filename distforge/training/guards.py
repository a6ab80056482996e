"""Guards of a training step: one that is not a number, or a spike, changes no weight.

What is decided here is decided alike on every rank, from losses and norms that are sums over all
ranks; so a bad batch on one rank skips the step on all of them together.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distforge import durable
from distforge.errors import require_in
from distforge.training.distributed import World
from distforge.training.step_result import StepResult

SKIPPED_FILE = "skipped.jsonl"
# Below so many losses their median says nothing.
_FEWEST_LOSSES = 16


class SkippedStepError(FloatingPointError):
    """A step that was not taken, on any rank; weights and optimizer are as they were.

    ``result`` is what was measured of it.
    """

    def __init__(self, message: str, result: StepResult) -> None:
        super().__init__(message)
        self.result = result


class NonFiniteLossError(SkippedStepError):
    """The loss of a step is not a number: training has diverged or the data are broken."""


class NonFiniteGradientError(SkippedStepError):
    """The gradient of a step is infinite or not a number, though its loss is finite."""


class LossSpikeError(SkippedStepError):
    """The loss of a step is far above those before it."""


class VetoedStepError(SkippedStepError):
    """The loss itself objects to the step, finite as it is."""


class DivergedError(FloatingPointError):
    """So many steps in a row were skipped that going on is pointless."""


@dataclass(frozen=True)
class GuardConfig:
    """When a step is skipped, and when the run gives up. A loss or gradient that is not finite
    always skips its step.

    spike_nats: skip a step whose loss exceeds the median of the last ``window`` losses by more than
        this (nats a token, absolute: late in training a small loss doubles harmlessly); 0 is off.
        A large gradient alone is clipped, not skipped.
    window: taken steps that the median is of, at least 16.
    max_in_a_row: skipped steps in a row that end the run, > 0.
    """

    spike_nats: float = 3.0
    window: int = 64
    max_in_a_row: int = 5

    def __post_init__(self) -> None:
        require_in("[0, inf]", spike_nats=self.spike_nats)
        require_in(f"[{_FEWEST_LOSSES}, inf]", window=self.window)
        require_in("[1, inf]", max_in_a_row=self.max_in_a_row)


class StepGuard:
    """Watches the steps of a run.

    Args:
        config: see `GuardConfig`.
        world: rank 0 writes the record.
        path: JSONL file that every skipped step is appended to, or None. A resumed run that
            repeats steps records them again.
    """

    def __init__(self, config: GuardConfig, world: World, path: Path | None = None) -> None:
        self._config = config
        self._path = path if world.is_main else None
        self._losses: deque[float] = deque(maxlen=config.window)
        self._in_a_row = 0
        self.skipped = 0

    @property
    def loss_limit(self) -> float:
        """The largest loss (nats a token) that the next step may have."""
        if not self._config.spike_nats or len(self._losses) < _FEWEST_LOSSES:
            return math.inf
        return statistics.median(self._losses) + self._config.spike_nats

    def accept(self, loss: float) -> None:
        """Count a step that was taken."""
        self._losses.append(loss)
        self._in_a_row = 0

    def skip(self, step: int, error: SkippedStepError, micro_batches: Sequence[Any]) -> None:
        """Record a step that was skipped, with what it was made of (JSON), and count it.

        Raises:
            DivergedError: it was one too many in a row.
        """
        self._in_a_row += 1
        self.skipped += 1
        if self._path is not None:
            record = {
                "step": step,
                "reason": str(error),
                "loss": repr(error.result.loss),
                "grad_norm": repr(error.result.grad_norm),
                "micro_batches": list(micro_batches),
            }
            with durable.AppendOnly(self._path) as lines:
                lines.write(json.dumps(record))
        if self._in_a_row >= self._config.max_in_a_row:
            where = f" (see {self._path})" if self._path else ""
            raise DivergedError(
                f"{self._in_a_row} steps in a row were skipped, the last because {error}{where}; "
                "resume from the last checkpoint with a lower learning rate, or without the "
                "examples named there"
            ) from error

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to decide as this one would have; JSON."""
        return {
            "losses": list(self._losses),
            "in_a_row": self._in_a_row,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue as the guard that `state_dict` was taken from."""
        self._losses = deque(state["losses"], maxlen=self._config.window)
        self._in_a_row = state["in_a_row"]
        self.skipped = state["skipped"]
