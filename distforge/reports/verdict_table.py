"""The verdict as a table on the console."""

from __future__ import annotations

import math

from rich.table import Table

from distforge.handoff.verdict import Verdict
from distforge.reports.verdict_section import MEANINGS


def verdict_table(verdict: Verdict) -> Table:
    """Outcome, measures with bounds and thresholds, controls and notes."""
    table = Table(
        "measure", "estimate", "bounds", "threshold", "", title=f"verdict: {verdict.outcome}"
    )
    for name, measure in verdict.measures.items():
        table.add_row(
            MEANINGS.get(name, name),
            _number(measure.estimate),
            f"{_number(measure.low)} to {_number(measure.high)}",
            f"above {measure.threshold:g}",
            "clears" if measure.clears else "below" if measure.is_below else "open",
        )
    table.add_section()
    for name, accuracy in verdict.controls.items():
        label = "own thoughts" if name == "own" else f"control: {name}"
        table.add_row(label, f"{accuracy:.1%}", "", "", "")
    remarks = [*verdict.missing, *verdict.notes]
    counted = f"{verdict.items:,} items, {verdict.thoughts:,} thoughts"
    table.caption = "\n".join([counted, *remarks])
    return table


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "unknown"
