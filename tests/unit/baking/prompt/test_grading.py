"""Strengths counted in answers, against curves whose inverse is known."""

from __future__ import annotations

import math

import pytest

from distforge.baking.prompt.grading import Grades, grade
from distforge.errors import InputError


def narrow(strength: float) -> float:
    """All of the change lies between the scales 0.2 and 0.3."""
    return 0.9 * min(max((strength - 0.2) / 0.1, 0.0), 1.0)


def test_a_narrow_rise_is_found_and_inverted() -> None:
    grades = grade(narrow, 100, resolution=0.05, limit=100)
    assert list(grades.strengths) == sorted(grades.strengths)
    assert (grades.strengths[0], grades.strengths[-1]) == (0.0, 1.0)
    assert grades.adherence == tuple(narrow(s) for s in grades.strengths)
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert narrow(grades.strength(share)) == pytest.approx(0.9 * share, abs=0.05)
    assert (grades.strength(0), grades.strength(1)) == (0.0, 1.0)
    jumps = [b - a for a, b in zip(grades.adherence, grades.adherence[1:], strict=False)]
    assert max(jumps) <= 0.05


def test_it_asks_no_more_than_it_may() -> None:
    asked = []

    def steps(strength: float) -> float:
        asked.append(strength)
        return math.floor(strength * 64) / 64

    grades = grade(steps, 100, resolution=1e-9, limit=9)
    assert len(asked) == len(set(asked)) == len(grades.strengths) == 9


def test_a_jump_of_the_model_is_not_halved_for_ever() -> None:
    grades = grade(lambda s: float(s > 0.37), 100, resolution=0.05, limit=1000)
    assert len(grades.strengths) < 15
    assert grades.strength(0.5) == pytest.approx(0.37, abs=1 / 128)


def test_a_dip_does_not_lead_back() -> None:
    grades = Grades((0.0, 0.2, 0.4, 0.6, 1.0), (0.0, 0.5, 0.4, 0.8, 1.0), 100)
    found = [grades.strength(share / 20) for share in range(21)]
    assert found == sorted(found)
    assert len(set(found)) == len(found)
    # Half is reached at 0.2; what falls behind it counts for nothing.
    assert grades.strength(0.5) == pytest.approx(0.2)
    assert grades.strength(0.65) == pytest.approx(0.5)


def test_shares_are_of_what_the_whole_bake_turns() -> None:
    grades = Grades((0.0, 0.2, 0.5, 1.0), (0.1, 0.3, 0.7, 0.5), 100)
    # Half of the way from 0.1 to 0.5, though more had turned in between.
    assert grades.strength(0.5) == pytest.approx(0.2)
    assert grades.strength(0.75) == pytest.approx(0.275)


def test_what_has_no_half_way_is_refused() -> None:
    with pytest.raises(InputError, match="no strength is half-way"):
        Grades((0.0, 1.0), (0.4, 0.4), 100).strength(0.5)
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(InputError, match="share of answers"):
            Grades((0.0, 1.0), (0.0, 1.0), 100).strength(share)
