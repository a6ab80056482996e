"""The verdict as a table on the console."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from distforge.reports.verdict_section import MEANINGS


def verdict_table(verdict: Mapping[str, Any]) -> Table:
    """Outcome, measures with bounds and thresholds, controls and notes.

    Args:
        verdict: what `Verdict.as_json` gave.
    """
    table = Table(
        "measure", "estimate", "bounds", "threshold", "", title=f"verdict: {verdict['outcome']}"
    )
    for name, measure in verdict["measures"].items():
        low, high, threshold = measure["low"], measure["high"], measure["threshold"]
        clears = low is not None and low > threshold
        below = high is not None and high < threshold
        table.add_row(
            MEANINGS.get(name, name),
            _number(measure["estimate"]),
            f"{_number(low)} to {_number(high)}",
            f"above {threshold:g}",
            "clears" if clears else "below" if below else "open",
        )
    table.add_section()
    for name, accuracy in verdict["controls"].items():
        label = "own thoughts" if name == "own" else f"control: {name}"
        table.add_row(label, f"{accuracy:.1%}", "", "", "")
    remarks = [*verdict["missing"], *verdict["notes"]]
    counted = f"{verdict['items']:,} items, {verdict['thoughts']:,} thoughts"
    table.caption = "\n".join([counted, *remarks])
    return table


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
