"""Verdicts as step 2 writes them into its summary, made with the class that writes them."""

from __future__ import annotations

import math
from typing import Any

from distforge.handoff.verdict import Measure, Verdict


def make_verdict(outcome: str) -> dict[str, Any]:
    """Of an inconclusive one nothing was measured of the correlation, and a control is missing."""
    edit = {"PASS": (0.34, 0.44), "THEATRE": (0.02, 0.1), "INCONCLUSIVE": (0.2, 0.44)}[outcome]
    correlation = Measure(0.62, 0.55, 0.66, 0.5, 2100)
    if outcome == "INCONCLUSIVE":
        correlation = Measure(math.nan, -math.inf, math.inf, 0.5, 0)
    verdict = Verdict(
        measures={
            "divergence_edit": Measure(sum(edit) / 2, *edit, 0.3, 2000),
            "divergence_prediction": Measure(0.71, 0.69, 0.74, 0.3, 2000),
            "ablation": Measure(0.42, 0.39, 0.44, 0.02, 2000),
            "correlation": correlation,
        },
        controls={"own": 0.82, "none": 0.0, "direct": 0.384},
        items=1652,
        thoughts=6608,
        alpha=0.05,
        floor=0.012,
        missing=("no model of equal compute",) if outcome == "INCONCLUSIVE" else (),
        notes=("one of <b>two</b>",),
    )
    assert verdict.outcome == outcome
    return verdict.as_json()
