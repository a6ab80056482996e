"""Every branch of the outcome, and the way to JSON and back."""

import json
import math
from dataclasses import replace

import pytest

from distforge.errors import InputError
from distforge.handoff.verdict import (
    INCONCLUSIVE,
    MEASURES,
    PASS,
    THEATRE,
    Measure,
    Verdict,
)

CLEAR = Measure(estimate=0.6, low=0.5, high=0.7, threshold=0.3, sources=100)
OPEN = Measure(estimate=0.35, low=0.2, high=0.5, threshold=0.3, sources=100)
BELOW = Measure(estimate=0.1, low=0.0, high=0.2, threshold=0.3, sources=100)
UNKNOWN = Measure(math.nan, -math.inf, math.inf, 0.3, 0)


def verdict(missing: tuple[str, ...] = (), **measures: Measure) -> Verdict:
    return Verdict(
        measures=dict.fromkeys(MEASURES, CLEAR) | measures,
        controls={"own": 0.9, "none": 0.2},
        items=100,
        thoughts=800,
        alpha=0.05,
        floor=0.1,
        missing=missing,
        notes=("on 100 items; 2,000 are wanted",),
    )


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize(
    ("measure", "outcome"),
    [(CLEAR, PASS), (OPEN, INCONCLUSIVE), (UNKNOWN, INCONCLUSIVE), (BELOW, THEATRE)],
)
def test_one_measure_decides_where_the_rest_clears(name, measure, outcome):
    assert verdict(**{name: measure}).outcome == outcome


def test_one_below_is_theatre_whatever_is_open():
    assert verdict(ablation=BELOW, correlation=UNKNOWN, divergence_edit=OPEN).outcome == THEATRE


def test_what_is_missing_keeps_from_pass_alone():
    assert verdict(missing=("no control",)).outcome == INCONCLUSIVE
    assert verdict(missing=("no control",), ablation=BELOW).outcome == THEATRE


def test_a_bound_on_the_threshold_decides_nothing():
    assert verdict(ablation=replace(CLEAR, low=0.3)).outcome == INCONCLUSIVE
    assert verdict(ablation=replace(BELOW, high=0.3)).outcome == INCONCLUSIVE


def test_it_is_the_same_after_json():
    there = verdict(missing=("no control",), correlation=OPEN)
    content = json.loads(json.dumps(there.as_json(), allow_nan=False))
    assert Verdict.from_json(content) == there
    assert content["outcome"] == INCONCLUSIVE


def test_what_was_not_measured_is_null_in_json_and_comes_back():
    content = json.loads(json.dumps(verdict(correlation=UNKNOWN).as_json(), allow_nan=False))
    assert content["measures"]["correlation"]["estimate"] is None
    back = Verdict.from_json(content).measures["correlation"]
    assert math.isnan(back.estimate)
    assert (back.low, back.high) == (-math.inf, math.inf)


@pytest.mark.parametrize("broken", [{}, {"measures": {}}, {"measures": 3}, {"measures": {"a": 1}}])
def test_anything_else_is_refused(broken):
    with pytest.raises(InputError, match="no verdict of distforge"):
        Verdict.from_json(broken)


def test_a_verdict_names_all_measures():
    with pytest.raises(ValueError, match="correlation"):
        Verdict({"ablation": CLEAR}, {}, 1, 1, 0.05, 0.0)
