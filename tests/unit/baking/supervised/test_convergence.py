"""Convergence is overall and every strategy and every usage target, and NaN meets nothing."""

import math

import pytest

from distforge.baking.supervised.convergence import ConvergenceConfig, check_convergence
from distforge.data import STRATEGIES, USAGE_TYPES
from distforge.errors import InputError

GOOD_ACCURACY = dict.fromkeys(STRATEGIES, 0.9)
GOOD_USAGE = dict.fromkeys(USAGE_TYPES, 0.95)


def check(overall: float = 0.9, accuracy: dict | None = None, usage: dict | None = None):
    return check_convergence(
        ConvergenceConfig(), overall, accuracy or GOOD_ACCURACY, usage or GOOD_USAGE
    )


def test_all_met() -> None:
    outcome = check()
    assert outcome.converged
    assert outcome.shortfalls == ()
    assert outcome.progress == pytest.approx(0.9 / 0.85)


def test_marks_themselves() -> None:
    """Accuracies must reach their mark, usages must exceed theirs."""
    assert check(overall=0.85).converged
    assert check(accuracy=dict.fromkeys(STRATEGIES, 0.765)).converged
    assert not check(usage={**GOOD_USAGE, "mece": 0.60}).converged
    assert check(usage={**GOOD_USAGE, "mece": 0.601}).converged


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_weak_strategy_is_enough_to_fail(strategy: str) -> None:
    outcome = check(accuracy={**GOOD_ACCURACY, strategy: 0.76})
    assert not outcome.converged
    assert len(outcome.shortfalls) == 1
    assert strategy in outcome.shortfalls[0]


@pytest.mark.parametrize("kind", USAGE_TYPES)
def test_one_unused_token_is_enough_to_fail(kind: str) -> None:
    assert not check(usage={**GOOD_USAGE, kind: 0.5}).converged


def test_nothing_measured_is_not_convergence() -> None:
    assert not check(overall=math.nan).converged
    assert not check(accuracy={**GOOD_ACCURACY, "self_doubt": math.nan}).converged
    assert not check(usage={**GOOD_USAGE, "doubt": math.nan}).converged


def test_questions_without_a_strategy_have_the_overall_mark_alone() -> None:
    assert check_convergence(ConvergenceConfig(), 0.85, {}, {}).converged
    missed = check_convergence(ConvergenceConfig(), 0.84, {}, {})
    assert missed.shortfalls == ("overall accuracy 84.0% < 85.0%",)
    # Of data of one strategy, the others are not asked for.
    one = {"self_doubt": 0.9}
    assert check_convergence(ConvergenceConfig(), 0.9, one, {"thinking": 0.9}).converged
    assert not check_convergence(ConvergenceConfig(), 0.9, one, {"thinking": 0.7}).converged


@pytest.mark.parametrize("value", [0.0, -1.0, 1.01, math.nan])
def test_targets_are_fractions(value: float) -> None:
    with pytest.raises(InputError):
        ConvergenceConfig(overall=value)
