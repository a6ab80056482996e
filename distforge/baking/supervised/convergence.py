"""When step 1 has converged: the honest definition, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distforge.data import USAGE_TARGETS
from distforge.errors import InputError
from distforge.reports.step1_summary import ACCURACY_OVERALL, ACCURACY_STRATEGY


@dataclass(frozen=True)
class ConvergenceConfig:
    """What must hold on held-out questions, answered freely and without a strategy prompt.

    overall: least accuracy over all questions, a fraction in (0, 1].
    per_strategy: least accuracy of each strategy, a fraction in (0, 1].

    The targets for thinking tokens stand beside the tokens, in `distforge.data.USAGE_TARGETS`.
    Questions that name no strategy have the overall target alone.
    """

    overall: float = ACCURACY_OVERALL
    per_strategy: float = ACCURACY_STRATEGY

    def __post_init__(self) -> None:
        for name, value in (("overall", self.overall), ("per_strategy", self.per_strategy)):
            if not 0 < value <= 1:
                raise InputError(f"{name} is {value}; expected a fraction above 0 and at most 1")


@dataclass(frozen=True)
class Convergence:
    """The outcome: ``shortfalls`` says in words what is missing, and is empty when converged."""

    converged: bool
    progress: float
    shortfalls: tuple[str, ...]


def check_convergence(
    config: ConvergenceConfig,
    accuracy_overall: float,
    accuracy: Mapping[str, float],
    token_usage: Mapping[str, float],
) -> Convergence:
    """Overall ≥ target **and** every strategy ≥ its target **and** every usage above its target.

    ``accuracy`` and ``token_usage`` have those that the data ask for. NaN (nothing measured) never
    meets a target. ``progress`` is overall accuracy / target.
    """
    shortfalls = []
    if not accuracy_overall >= config.overall:
        shortfalls.append(f"overall accuracy {accuracy_overall:.1%} < {config.overall:.1%}")
    for strategy, value in accuracy.items():
        if not value >= config.per_strategy:
            shortfalls.append(f"{strategy} {value:.1%} < {config.per_strategy:.1%}")
    for target in USAGE_TARGETS:
        used = token_usage.get(target.kind, 1.0)
        if not used > target.minimum:
            shortfalls.append(f"usage of {target.token} {used:.1%} <= {target.minimum:.0%}")
    return Convergence(not shortfalls, accuracy_overall / config.overall, tuple(shortfalls))
