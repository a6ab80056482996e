"""``summary.json`` of step 2."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from distforge.handoff.statement import Task
from distforge.reports.summary import ByStrategy, ByUsage, StepSummary
from distforge.typed_json import Bounds, Count, Flag, Fraction, Number, among, must_be

# What may stand where a thought of the model's own was.
CONTROL_NAMES = {
    "shuffled": "shuffled thoughts",
    "random": "random thoughts",
    "filler": "filler tokens",
    "none": "no thoughts",
}
CONTROLS = tuple(CONTROL_NAMES)
BITS = ("baked_with_thoughts", "baked_without", "trained_with_thoughts", "trained_without")
_GAINS = ("gain", "gain_without", "gain_by_thoughts")
_INTERVALS = (*_GAINS, *(f"ablation_{control}" for control in CONTROLS))

_RENAMED = {
    "baked_accuracy": "before_accuracy",
    "baked_accuracy_by_strategy": "before_accuracy_by_strategy",
}

Verdict = Annotated[
    Literal["", "PASS", "THEATRE", "INCONCLUSIVE"],
    must_be("one of '', 'PASS', 'THEATRE', 'INCONCLUSIVE'"),
]


@dataclass(frozen=True)
class Difference:
    """A mean difference and its 95% bootstrap interval; NaN where it was not measured."""

    mean: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.low > 0.0


class Step2Summary(StepSummary):
    """What step 2 reached. Fractions are in [0, 1]; what was not measured is NaN, or absent from a
    mapping by name.

    improved: whether the model beats the baked one on the same held-out items: the lower bound of
        ``intervals["gain"]`` is above 0. Of free text, it and that of "gain_by_thoughts" are above
        what rounding could make.
    accuracy_overall, accuracy, token_usage: of free, greedy generations, as in step 1; of free
        text, which has no answers, not measured. before_accuracy: the baked model's, likewise.
    baked_accuracy: the baked model's too, but as step 1 measured it: on ``baked_questions``
        held-out questions of the data of ``baked_dataset_sha256``. Where no step 1 recorded it,
        these are empty, and it is what the configuration states.
    controls: accuracy given a thought, by what stands in for it: ``CONTROLS``, and "own", which is
        what they are held against.
    bits: a target token, with thoughts and without, of both models.
    intervals: 95% bootstrap over questions or documents: of the gains, and of "ablation_<control>"
        (accuracy with the own thoughts less the control's). Too few documents give none.
    gain: over the baked model: a fraction of the questions, reward where functions judge, or bits
        a token of free text, with thoughts on both sides. gain_without: of free text, the
        same without thoughts on both. gain_by_thoughts: the first less the second.
    note: why there is no interval; empty where there is one.
    items: held-out ones that all this was measured on.
    best_step: the optimizer step of the model that was kept.
    verdict: of the anti-theatre tests; empty where they were not asked. theater: all that it rests
        on (`handoff.verdict.Verdict.as_json`).
    rollbacks: of training, in order (`quietstar.rollback.Rollback`). ended_by_verdict: THEATRE
        ended training, and what was kept is what passed last, or the start.
    """

    remedy: ClassVar[str] = "run step 2 again, which writes it"

    improved: Flag
    accuracy_overall: Fraction
    accuracy: ByStrategy
    token_usage: ByUsage
    before_accuracy: Fraction
    before_accuracy_by_strategy: ByStrategy
    controls: Annotated[dict[str, Fraction], among(("own", *CONTROLS))]
    bits: Annotated[dict[str, Number], among(BITS)]
    intervals: Annotated[dict[str, Bounds], among(_INTERVALS)]
    gain: Number
    gain_without: Number = math.nan
    gain_by_thoughts: Number = math.nan
    note: str = ""
    items: Count
    episodes: Count
    best_step: Count
    baked: str = ""
    baked_sha256: str = ""
    baked_accuracy: Fraction = math.nan
    baked_questions: Count = 0
    baked_dataset_sha256: str = ""
    champion_sha256: str = ""
    task: Task
    verdict: Verdict
    theater: dict[str, Any] = Field(default_factory=dict)
    rollbacks: list[dict[str, Any]] = Field(default_factory=list)
    ended_by_verdict: Flag = False
    step: Literal[2] = 2

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, given: Any) -> Any:
        # Older files say baked_accuracy of what step 2 measured before its training.
        if not isinstance(given, dict) or "baked_accuracy_by_strategy" not in given:
            return given
        return {_RENAMED.get(name, name): value for name, value in given.items()}

    @model_validator(mode="after")
    def _gain_is_a_fraction(self) -> Self:
        # A gain in hundredths would be read as a hundred times what it is.
        if self.task == "questions" and abs(self.gain) > 1:
            raise ValueError(f"gain is {self.gain}; it must be a number in [-1, 1] or null")
        return self

    @property
    def is_goal_reached(self) -> bool:
        """Whether it beats the baked model with thoughts that do the work. Free text has no control
        of equal compute, and whole answers no thought that could be taken away, so no verdict on
        them can be PASS: it must not be THEATRE."""
        fine = ("PASS",) if self.task == "questions" else ("PASS", "INCONCLUSIVE")
        return self.improved and self.verdict in fine and not self.ended_by_verdict

    @property
    def lead(self) -> Difference:
        """The gain with its interval."""
        return self._difference(self.gain, "gain")

    @property
    def leads(self) -> dict[str, Difference]:
        """Of free text: the bits saved with thoughts on both sides, without on both, and by
        thoughts."""
        named = dict(zip(("with", "without", "by thoughts"), _GAINS, strict=True))
        return {how: self._difference(getattr(self, name), name) for how, name in named.items()}

    @property
    def ablations(self) -> dict[str, Difference]:
        """By control: accuracy with the own thoughts less the control's."""
        own = self.controls.get("own", math.nan)
        return {
            control: self._difference(
                own - self.controls.get(control, math.nan), f"ablation_{control}"
            )
            for control in CONTROLS
        }

    def _difference(self, mean: float, name: str) -> Difference:
        return Difference(mean, *self.intervals.get(name, (math.nan, math.nan)))
