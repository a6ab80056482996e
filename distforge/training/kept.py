"""What a `Keeper` keeps, and what it asks of those whose training it keeps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Best:
    """The weights that are kept: the step they were seen at and their score; higher is better."""

    step: int
    score: float


class Trainee(Protocol):
    """What a `Keeper` asks of the trainer that it keeps for."""

    def evaluate(self, step: int) -> None:
        """Measure the weights as they are after ``step`` steps; collective."""

    def state_dict(self) -> dict[str, Any]:
        """What else a resumed run needs, as JSON."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue as the trainer that `state_dict` was taken from."""


class Judged(Protocol):
    """What a `Keeper` asks of a trainer whose weights are judged on the way."""

    def is_verdict_due(self, step: int) -> bool:
        """Whether the weights are to be judged after ``step`` steps."""

    def judge(self, step: int) -> None:
        """Judge them and act on it, by `Keeper.pin` and `Keeper.go_back`; collective."""

    def lasting_state(self) -> dict[str, Any]:
        """What going back does not take back, as JSON."""

    def load_lasting_state(self, state: dict[str, Any]) -> None:
        """Continue as the trainer that `lasting_state` was taken from."""


class Saved(Protocol):
    """What lies in a checkpoint beside the engine's part; the same on every rank."""

    def save(self, directory: Path) -> None:
        """Write it; on rank 0 alone."""

    def load(self, directory: Path, step: int) -> None:
        """Read what `save` wrote when ``step`` steps had been taken."""


def read_best(best: dict[str, Any] | None) -> Best | None:
    """What a checkpoint says of the best weights; also one of an earlier version."""
    if best is None:
        return None
    # Before there was one keeper, step 1 called its score the accuracy.
    return Best(best["step"], best["score"] if "score" in best else best["accuracy"])
