"""``summary.json`` of step 2, as its table and its report read it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distforge.data.strategies import STRATEGIES, USAGE_TYPES
from distforge.reports.step1_summary import SUMMARY_NAME, read_object
from distforge.reports.summary_fields import SummaryFields

TASKS = ("questions", "text")
VERDICTS = ("", "PASS", "THEATRE", "INCONCLUSIVE")
# What may stand where a thought of the model's own was.
CONTROL_NAMES = {
    "shuffled": "shuffled thoughts",
    "random": "random thoughts",
    "filler": "filler tokens",
    "none": "no thoughts",
}
CONTROLS = tuple(CONTROL_NAMES)
BITS = ("baked_with_thoughts", "baked_without", "trained_with_thoughts", "trained_without")
_INTERVALS = ("gain", *(f"ablation_{control}" for control in CONTROLS))
_UNKNOWN = (math.nan, math.nan)


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


@dataclass(frozen=True)
class ReinforcementSummary:
    """The outcome of step 2; fractions in [0, 1], NaN where nothing was measured.

    Attributes:
        improved: whether the trained model beats the baked one (the lower bound of the gain is
            above zero).
        task: "questions" (right or wrong) or "text" (bits a token).
        verdict: of the anti-theatre judgement; empty before it.
        accuracy_overall: of the trained model, on held-out questions.
        accuracy: the same by strategy.
        token_usage: by usage type, of the trained model.
        baked_accuracy: of the baked model, on the same questions.
        baked_accuracy_by_strategy: the same by strategy.
        controls: accuracy given a thought, by what stands in for it: "own" and ``CONTROLS``.
        bits: bits a target token, by ``BITS``.
        gain: of the trained over the baked model; a fraction of the questions, or bits a token.
        ablations: accuracy with the own thoughts less a control's, by control.
        items: held-out items that all this was measured on.
        episodes: of training.
        best_step: the optimizer step of the model that was kept.
        details: everything else the file says, as it stands there.
    """

    improved: bool
    task: str
    verdict: str
    accuracy_overall: float
    accuracy: Mapping[str, float]
    token_usage: Mapping[str, float]
    baked_accuracy: float
    baked_accuracy_by_strategy: Mapping[str, float]
    controls: Mapping[str, float]
    bits: Mapping[str, float]
    gain: Difference
    ablations: Mapping[str, Difference]
    items: int
    episodes: int
    best_step: int
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_mapping(
        cls, summary: Mapping[str, Any], origin: str = SUMMARY_NAME
    ) -> "ReinforcementSummary":
        """Reads the keys of step 2; what a mapping by name lacks was not measured.

        Args:
            summary: the parsed file.
            origin: how an error names it.

        Raises:
            InputError: a key is missing, has a wrong type, or a value is out of its range.
        """
        fields = SummaryFields(summary, origin, "run step 2 again to write it anew")
        task = fields.choice("task", TASKS)
        controls = fields.fractions("controls", ("own", *CONTROLS))
        intervals = fields.intervals("intervals", _INTERVALS)
        # A gain in hundredths would be read as a hundred times what it is.
        bound = 1.0 if task == "questions" else math.inf
        gain = Difference(fields.number("gain", -bound, bound), *intervals.get("gain", _UNKNOWN))
        own = controls.get("own", math.nan)
        return cls(
            improved=fields.flag("improved"),
            task=task,
            verdict=fields.choice("verdict", VERDICTS),
            accuracy_overall=fields.fraction("accuracy_overall"),
            accuracy=fields.fractions("accuracy", STRATEGIES),
            token_usage=fields.fractions("token_usage", USAGE_TYPES),
            baked_accuracy=fields.fraction("baked_accuracy"),
            baked_accuracy_by_strategy=fields.fractions("baked_accuracy_by_strategy", STRATEGIES),
            controls=controls,
            bits=fields.numbers("bits", BITS),
            gain=gain,
            ablations={
                control: Difference(
                    own - controls.get(control, math.nan),
                    *intervals.get(f"ablation_{control}", _UNKNOWN),
                )
                for control in CONTROLS
            },
            items=fields.count("items"),
            episodes=fields.count("episodes"),
            best_step=fields.count("best_step"),
            details=fields.rest,
        )


def read_reinforcement_summary(path: Path) -> ReinforcementSummary:
    """Reads ``summary.json`` of step 2.

    Raises:
        InputError: the file does not exist, is not JSON, or lacks what step 2 writes.
    """
    return ReinforcementSummary.from_mapping(read_object(path), origin=str(path))
