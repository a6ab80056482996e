"""``summary.json`` of step 1."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from distforge.data.strategies import USAGE_TARGETS
from distforge.reports.summary import ByStrategy, ByUsage, StepSummary
from distforge.typed_json import Count, Flag, Fraction, Number, Part

# The marks of a run whose file or configuration names none.
ACCURACY_OVERALL, ACCURACY_STRATEGY = 0.85, 0.765
_USAGE = {target.kind: target.minimum for target in USAGE_TARGETS}


class Targets(Part):
    """What step 1 must reach: the marks that the final table and the report measure against.

    Accuracies must be at least, token usages more than, their target (fractions in [0, 1]).
    """

    accuracy_overall: Fraction = ACCURACY_OVERALL
    accuracy_strategy: Fraction = ACCURACY_STRATEGY
    token_usage: ByUsage = Field(default_factory=_USAGE.copy)

    @field_validator("token_usage")
    @classmethod
    def _fill(cls, given: dict[str, float]) -> dict[str, float]:
        return {**_USAGE, **given}


class Step1Summary(StepSummary):
    """What step 1 reached. Fractions are in [0, 1]; what was not measured is NaN.

    converged: whether every target was met; ``shortfalls`` says in words why not.
    accuracy_overall, accuracy, token_usage: of the baked model, on held-out questions.
    champion_accuracy: of the champion on the same questions, from the question alone;
        ``champion_prompted_accuracy`` is over ``champion_prompted_questions`` validation ones.
    prompt_kl_before, prompt_kl_after: of the baked prompts, where ``mode`` bakes them.
    seconds: from the loaded champion to the judged model.
    model_sha256: of the weights that were judged, as `Champion.sha256`.
    """

    remedy: ClassVar[str] = "run step 1 again, which writes it"

    converged: Flag
    shortfalls: tuple[str, ...] = ()
    accuracy_overall: Fraction
    accuracy: ByStrategy
    token_usage: ByUsage
    champion_accuracy: Fraction
    champion_accuracy_by_strategy: ByStrategy = Field(default_factory=dict)
    champion_prompted_accuracy: Fraction = math.nan
    champion_prompted_questions: Count = 0
    questions: Count = 0
    stopped_early: Flag = False
    champion: str = ""
    champion_sha256: str = ""
    model_sha256: str = ""
    too_long: Count = 0
    targets: Targets = Field(default_factory=Targets)
    mode: str = "sft"
    prompt_kl_before: Number = math.nan
    prompt_kl_after: Number = math.nan
    step: Literal[1] = 1
