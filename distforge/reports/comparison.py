"""What step 2 reached beside what it is measured against, row by row."""

import math
from dataclasses import dataclass, replace

from distforge.reports.formats import bits, interval, percent, plain, points
from distforge.reports.step2_summary import (
    CONTROL_NAMES,
    CONTROLS,
    Difference,
    Step2Summary,
)

COMPARISON_HEADINGS = ("held-out items", "reached", "lead over it", "95% interval", "above 0")

_SAVED = {
    "with": "bits saved, thoughts on both sides",
    "without": "bits saved, none on both sides",
    "by thoughts": "bits saved by thoughts",
}


@dataclass(frozen=True)
class ComparisonRow:
    """A model or a kind of thought, what was reached with it, and the lead over it.

    Attributes:
        name, value: as they are shown.
        lead, interval: of the trained model over the baked one, or of its own thoughts over a
            control, as they are shown; empty where there is nothing to compare.
        is_clear: whether the interval lies above zero; None where there is none.
        opens: whether it begins a group of rows.
    """

    name: str
    value: str
    lead: str = ""
    interval: str = ""
    is_clear: bool | None = None
    opens: bool = False


def comparison_rows(summary: Step2Summary) -> list[ComparisonRow]:
    """Trained against baked, own thoughts against the controls, bits a token where measured."""
    rows: list[ComparisonRow] = []
    for group in (_model_rows(summary), _control_rows(summary), _bits_rows(summary)):
        if group and rows:
            group[0] = replace(group[0], opens=True)
        rows += group
    return rows


def lead_text(summary: Step2Summary) -> tuple[str, str]:
    """The gain over the baked model and its interval, in the unit of the task."""
    show = {"questions": points, "text": bits, "reward": plain}[summary.task]
    return show(summary.lead.mean), interval(summary.lead.low, summary.lead.high, show)


def _model_rows(summary: Step2Summary) -> list[ComparisonRow]:
    if summary.task == "text":
        # Older runs held the trained model with thoughts against the baked one without.
        names = (
            _SAVED if math.isfinite(summary.gain_without) else {"with": "gain over the baked model"}
        )
        return [
            ComparisonRow(
                names[how], "", bits(lead.mean), interval(lead.low, lead.high, bits), _clear(lead)
            )
            for how, lead in summary.leads.items()
            if math.isfinite(lead.mean)
        ]
    lead, between = lead_text(summary)
    baked = percent(summary.before_accuracy)
    return [
        ComparisonRow("trained model", percent(summary.accuracy_overall)),
        ComparisonRow("baked model", baked, lead, between, _clear(summary.lead)),
    ]


def _control_rows(summary: Step2Summary) -> list[ComparisonRow]:
    if not any(map(math.isfinite, summary.controls.values())):
        return []
    rows = [ComparisonRow("own thoughts", percent(summary.controls.get("own", math.nan)))]
    for control in CONTROLS:
        ablation = summary.ablations[control]
        rows.append(
            ComparisonRow(
                CONTROL_NAMES[control],
                percent(summary.controls.get(control, math.nan)),
                points(ablation.mean),
                interval(ablation.low, ablation.high, points),
                _clear(ablation),
            )
        )
    return rows


def _bits_rows(summary: Step2Summary) -> list[ComparisonRow]:
    return [
        ComparisonRow(name.replace("_", ", ", 1).replace("_", " "), f"{value:.3f} bits")
        for name, value in summary.bits.items()
        if math.isfinite(value)
    ]


def _clear(difference: Difference) -> bool | None:
    return difference.is_clear if math.isfinite(difference.low) else None
