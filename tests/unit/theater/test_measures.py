"""From evidence to measures: worked out by hand, and judged right around known truths."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from distforge.handoff.verdict import INCONCLUSIVE, PASS, THEATRE, Verdict
from distforge.theater.config import TheaterConfig
from distforge.theater.evidence import PlaceEvidence
from distforge.theater.measures import reach_verdict
from distforge.theater.planted.synthetic import synthetic_evidence

CONFIG = TheaterConfig(bootstrap=1000)


def drawn(seed: int = 0, count: int = 400, **truth: Any) -> list[PlaceEvidence]:
    rng, own = np.random.default_rng(seed), truth.pop("own", 0.8)
    return synthetic_evidence(count, own, {"none": 0.2, "direct": 0.3}, rng, **truth)


def judged(evidence: list[PlaceEvidence], **settings: object) -> Verdict:
    return reach_verdict(evidence, replace(CONFIG, **settings), 0.05)


@pytest.mark.parametrize(
    ("truth", "outcome"),
    [
        ({}, PASS),
        ({"own": 0.15}, THEATRE),
        ({"own": 0.33}, INCONCLUSIVE),
        ({"divergence": 0.1}, THEATRE),
        ({"divergence": 0.3}, INCONCLUSIVE),
        ({"correlation": -0.2}, THEATRE),
    ],
)
def test_known_truths(truth, outcome):
    assert judged(drawn(**truth)).outcome == outcome


def test_strict_asks_for_the_correlation_of_the_specification():
    evidence = drawn(correlation=0.4)
    assert judged(evidence).outcome == PASS
    strict = judged(evidence, strict=True)
    assert strict.outcome == THEATRE
    assert strict.measures["correlation"].threshold == 0.5


@pytest.mark.parametrize(("right", "known"), [(0, False), (29, False), (30, True)])
def test_questions_that_nothing_answers_say_nothing_of_whether_thoughts_are_needed(right, known):
    """All wrong, with thoughts and without, is no theatre: the questions are too hard."""
    evidence = [
        replace(place, own=0.0, controls={"none": 0.0, "direct": float(n < right)})
        for n, place in enumerate(drawn(count=200))
    ]
    verdict = judged(evidence)
    ablation = verdict.measures["ablation"]
    assert ablation.sources == right
    assert math.isfinite(ablation.high) == known
    assert verdict.outcome == (THEATRE if known else INCONCLUSIVE)
    noted = [note for note in verdict.notes if "answered right" in note]
    assert noted == [] if known else noted[0].startswith(f"only {right} items are answered right")


def test_missing_is_passed_on():
    assert reach_verdict(drawn(), CONFIG, 0.05, ["no control"]).missing == ("no control",)


def test_estimates_by_hand():
    places = [
        PlaceEvidence("a", 1.0, {"none": 0.0, "direct": 1.0}, 4, 0.2, 0.1, [(2.0, 0.8)], [], []),
        PlaceEvidence(
            "a", 0.5, {"none": 1.0, "direct": 0.0}, 8, 0.4, 0.3, [(1.0, 0.0)], [1, 2, 3], [1, 3, 2]
        ),
        PlaceEvidence("b", 0.75, {"none": 0.0, "direct": 0.0}, 4, 0.6, 0.2, [(3.0, 0.4)], [], []),
        PlaceEvidence(
            "c", 0.75, {"none": 0.0, "direct": 1.0}, 4, 0.8, 0.2, [(0.5, 0.9)], [1, 2], [5, 5]
        ),
    ]
    verdict = judged(places)
    found = {name: measure.estimate for name, measure in verdict.measures.items()}
    assert found["divergence_edit"] == pytest.approx(0.5)
    assert found["divergence_prediction"] == pytest.approx(0.4)  # of one token, the unsurest
    assert found["ablation"] == pytest.approx(0.75 - 0.5)
    # Ranks 1, 2, 3 and 1, 3, 2: half. Equal gains say nothing.
    assert found["correlation"] == pytest.approx(0.5)
    assert verdict.controls == {"own": 0.75, "none": 0.25, "direct": 0.5}
    assert (verdict.items, verdict.thoughts) == (3, 20)
    assert verdict.floor == pytest.approx(0.2)
    assert verdict.measures["correlation"].sources == 1


def test_places_of_one_document_are_not_independent():
    evidence = drawn(count=100, thoughts=0)
    repeated = [place for place in evidence for _ in range(20)]
    alone, many = judged(evidence).measures["ablation"], judged(repeated).measures["ablation"]
    assert many.sources == alone.sources == 100
    assert many.high - many.low == pytest.approx(alone.high - alone.low)


def test_thoughts_that_do_not_differ_say_so_and_do_not_pass():
    evidence = [replace(place, coherence=[], gain=[]) for place in drawn()]
    verdict = judged(evidence)
    assert verdict.outcome == INCONCLUSIVE
    assert math.isnan(verdict.measures["correlation"].estimate)
    assert any("higher temperature" in note for note in verdict.notes)


def test_a_correlation_at_few_places_bounds_nothing_and_says_so():
    evidence = drawn()
    evidence = [*evidence[:12], *(replace(p, coherence=[], gain=[]) for p in evidence[12:])]
    verdict = judged(evidence)
    correlation = verdict.measures["correlation"]
    assert verdict.outcome == INCONCLUSIVE
    assert correlation.sources == 12
    assert correlation.estimate > 0.3
    assert (correlation.low, correlation.high) == (-math.inf, math.inf)
    assert any("at only 12 items" in note for note in verdict.notes)


def test_the_notes_say_how_many_items_are_wanted():
    notes = judged(drawn(own=0.36)).notes
    assert "on 400 items; 2,000 are wanted" in notes
    assert any("would decide it" in note for note in notes)


def test_the_null_of_random_pairings_is_near_zero():
    notes = judged(drawn(correlation=0.0)).notes
    # 400 places of 8 thoughts: z has standard deviation near 1 / sqrt(5 * 400), 95% at 0.04.
    assert any("below 0.03" in note or "below 0.04" in note for note in notes)
