"""Going back where thoughts turn out to be theatre: who judges, and what follows from a verdict.

Only bookkeeping: `ThoughtTrainer` and its `Keeper` do what is decided here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from distforge.handoff.verdict import INCONCLUSIVE, PASS, THEATRE, Outcome, Verdict
from distforge.quietstar.config import Change, RollbackConfig
from distforge.thinking.model import ThinkingModel

Decision = Literal["go on", "pin", "go back", "end"]

# As a metric.
VERDICT_VALUES: dict[Outcome, float] = {PASS: 1.0, INCONCLUSIVE: 0.0, THEATRE: -1.0}


class Judge(Protocol):
    """Gives verdicts during training, of which each spends some of an error rate."""

    def __call__(self, model: ThinkingModel, step: int, total: int) -> Verdict:
        """Judge ``model``, which is whole, after ``step`` of ``total`` steps; collective.

        After a rollback a step comes a second time.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON. A rollback leaves it alone: what is spent is spent."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue as the judge that `state_dict` was taken from."""
        ...


_CHANGES: dict[Change, str] = {
    "kl": "the KL coefficient is doubled",
    "lr": "the learning rate is halved",
    "seed": "thoughts are sampled with a new seed",
}


@dataclass(frozen=True)
class Rollback:
    """One rollback: after ``step`` steps the run went back to ``to`` steps, began branch number
    ``branch`` (the start is branch 0) and from there on did ``change``."""

    step: int
    to: int
    branch: int
    change: Change

    @property
    def changed(self) -> str:
        """What it changed, in words."""
        return _CHANGES[self.change]


class Course:
    """What the verdicts of a run have led to so far.

    A PASS ends a row of THEATRE verdicts. An INCONCLUSIVE one neither lengthens nor ends it: it
    says that too few items were seen to tell, which takes nothing back of what the verdicts before
    did tell; and were it to end the row, a model just at the threshold would never go back.

    Attributes:
        rollbacks: so far, in order.
        ended: the verdicts have ended training.
    """

    def __init__(self, config: RollbackConfig) -> None:
        self._config = config
        self._theatres = 0
        self.rollbacks: tuple[Rollback, ...] = ()
        self.ended = False

    @property
    def branch(self) -> int:
        """The present one; 0 before any rollback."""
        return len(self.rollbacks)

    @property
    def kl_factor(self) -> float:
        """Of the KL coefficient, by the changes so far."""
        return 2.0 ** self._count("kl")

    @property
    def lr_factor(self) -> float:
        """Of the learning rate, by the changes so far."""
        return 0.5 ** self._count("lr")

    @property
    def redraws(self) -> int:
        """How often the seed of the sampling was changed."""
        return self._count("seed")

    def is_due(self, step: int, total: int) -> bool:
        """Whether a verdict is due after ``step`` of ``total`` steps.

        After the last it is not: what is left of alpha is for the verdict on the exported model.
        """
        every = self._config.every_steps
        return every > 0 and step % every == 0 and step < total

    def note(self, outcome: Outcome) -> Decision:
        """Count a verdict, and say what it leads to."""
        if outcome == PASS:
            self._theatres = 0
            return "pin"
        if outcome == INCONCLUSIVE:
            return "go on"
        self._theatres += 1
        if self._theatres < self._config.patience:
            return "go on"
        self._theatres = 0
        return "go back" if self.branch < self._config.retries else "end"

    def go_back(self, step: int, to: int) -> Rollback:
        """Note a rollback from ``step`` to ``to``; what it changes stays changed."""
        change = self._config.changes[self.branch]
        rollback = Rollback(step, to, self.branch + 1, change)
        self.rollbacks = (*self.rollbacks, rollback)
        return rollback

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; JSON."""
        return {
            "theatres": self._theatres,
            "rollbacks": [asdict(rollback) for rollback in self.rollbacks],
            "ended": self.ended,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue as the object that `state_dict` was taken from."""
        self._theatres = state["theatres"]
        self.rollbacks = tuple(Rollback(**rollback) for rollback in state["rollbacks"])
        self.ended = state["ended"]

    def _count(self, change: Change) -> int:
        return sum(rollback.change == change for rollback in self.rollbacks)
