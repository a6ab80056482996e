"""The verdict as a reader sees it: a badge, a plain sentence, the measures and their plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from distforge.errors import InputError
from distforge.handoff.verdict import WANTED_ITEMS, Measure, Verdict
from distforge.reports import canvas
from distforge.reports.formats import accuracy_of, percent, points
from distforge.reports.page_parts import Badge, Row, Table
from distforge.reports.step2_summary import CONTROL_NAMES, Step2Summary
from distforge.reports.verdict_plot import draw_measures

MEANINGS = {
    "divergence_edit": "thoughts differ from what the model would write anyway (edit distance)",
    "divergence_prediction": "another item's thought moves the prediction (total variation)",
    "ablation": "accuracy lost with the best control in the thought's place",
    "correlation": "more coherent thoughts help more (rank correlation)",
}
_SENTENCES = {
    "": (
        "Not judged yet: run `distforge judge` to see whether the answers depend on the thoughts; "
        "without a PASS this model is not handed to phase 4."
    ),
    "PASS": "PASS: the thoughts do the work. Every interval is above its threshold.",
    "THEATRE": "THEATRE: the thoughts do not carry the answers.",
    "INCONCLUSIVE": "INCONCLUSIVE: the measurements do not show whether the thoughts do the work.",
}


@dataclass(frozen=True)
class VerdictSection:
    """What the template shows: ``plots`` and ``table`` are empty where nothing was measured.

    meanings: of the measures, a line each. facts: short statements such as how many items. missing:
    what keeps it from PASS whatever the measures say. notes: what a reader should know beside it.
    """

    badge: Badge
    sentence: str
    table: Table | None
    plots: Mapping[str, str]
    meanings: Sequence[str]
    facts: Sequence[str]
    missing: Sequence[str]
    notes: Sequence[str]


def verdict_badge(outcome: str) -> Badge:
    """PASS is good and THEATRE bad; neither a pending nor an inconclusive verdict is a failure."""
    good = {"PASS": True, "THEATRE": False}.get(outcome)
    return Badge("verdict", outcome or "not judged yet", good)


def recorded_verdict(summary: Step2Summary, origin: str) -> Verdict | None:
    """That of a step 2 that was judged; None of one that was not.

    Raises:
        InputError: what stands there is no verdict.
    """
    if not summary.theater:
        return None
    try:
        return Verdict.from_json(summary.theater)
    except InputError as error:
        raise InputError(f"{origin}: theater: {error}") from None


def verdict_section(summary: Step2Summary, origin: str) -> VerdictSection:
    """The section of a finished step 2; ``origin`` is how an error names its file."""
    record = recorded_verdict(summary, origin)
    badge = verdict_badge(summary.verdict)
    if record is None:
        return VerdictSection(badge, _SENTENCES[summary.verdict], None, {}, (), (), (), ())
    panel = {"Measures of the verdict": partial(draw_measures, measures=record.measures)}
    return VerdictSection(
        badge,
        _sentence(summary.verdict, record),
        Table(
            "measures",
            ("measure", "estimate and interval", "threshold", "sources", "clears"),
            [_measure_row(name, measure) for name, measure in record.measures.items()],
        ),
        canvas.draw_apart(panel),
        [f"{n.replace('_', ' of ')}: {MEANINGS[n]}" for n in record.measures if n in MEANINGS],
        _facts(record),
        record.missing,
        record.notes,
    )


def control_table(summary: Step2Summary, record: Verdict | None) -> Table | None:
    """Accuracy with the own thoughts and with what stood in for them, with n and intervals."""
    controls = record.controls if record else summary.controls
    items = record.items if record else summary.items
    own = controls.get("own", math.nan)
    rows = [
        Row(
            "its own thoughts"
            if name == "own"
            else CONTROL_NAMES.get(name, name).replace("_", " "),
            (accuracy_of(value, items), "" if name == "own" else points(own - value)),
            opens=name != "own" and i == 1,
        )
        for i, (name, value) in enumerate(
            sorted(controls.items(), key=lambda pair: (pair[0] != "own", -pair[1]))
        )
        if math.isfinite(value)
    ]
    headings = ("given", f"accuracy, n {items:,}", "own thoughts lead by")
    return Table("controls", headings, rows) if rows else None


def _sentence(outcome: str, record: Verdict) -> str:
    sentence = _SENTENCES[outcome]
    below = [n for n, m in record.measures.items() if m.is_below]
    unclear = [n for n, m in record.measures.items() if not m.is_below and not m.clears]
    if outcome == "THEATRE" and below:
        return f"{sentence} Interval below the threshold: {_names(below)}."
    if outcome == "INCONCLUSIVE" and unclear:
        return f"{sentence} On either side of the threshold: {_names(unclear)}."
    return sentence


def _names(measures: Sequence[str]) -> str:
    return ", ".join(name.replace("_", " of ") for name in measures)


def _measure_row(name: str, measure: Measure) -> Row:
    numbers = (
        f"{_number(measure.estimate)} [{_number(measure.low)}, {_number(measure.high)}]",
        f"> {measure.threshold:g}",
        f"{measure.sources:,}",
    )
    met = True if measure.clears else False if measure.is_below else None
    return Row(
        name.replace("_", " of "), numbers if met is not None else (*numbers, "unclear"), met
    )


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"


def _facts(record: Verdict) -> list[str]:
    facts = [f"{record.items:,} held-out items, {record.thoughts:,} thoughts"]
    if record.items < WANTED_ITEMS:
        facts.append(f"fewer than the {WANTED_ITEMS:,} items that a verdict should rest on")
    facts.append(f"{percent(1 - record.alpha)} confidence, shared out over the three tests (Holm)")
    if math.isfinite(record.floor):
        facts.append(f"two thoughts on one item differ by {record.floor:.3f} (edit distance)")
    return facts
