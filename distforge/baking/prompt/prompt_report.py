"""What a baked prompt is worth: four conditions, forgetting, seconds; the forgetting matrix."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from distforge.reports.formats import percent
from distforge.reports.prompt_summary import BakeReport, Condition, ForgettingMatrix

CONDITIONS = ("unprompted", "prompted", "baked", "baked_prompted")


def report_table(reports: Sequence[BakeReport]) -> Table:
    """Every prompt with its KL and its four conditions (accuracy / adherence)."""
    table = Table("prompt", "KL before", "KL after", *CONDITIONS, "seconds")
    for report in reports:
        table.add_row(
            report.strategy or report.prompt[:40],
            f"{report.kl_before:.4f}",
            f"{report.kl_after:.4f}",
            *(_pair(report.conditions[name]) for name in CONDITIONS),
            f"{report.seconds:.0f}",
        )
    return table


def forgetting_table(matrix: ForgettingMatrix) -> Table:
    """The forgetting matrix, accuracy / adherence / KL a cell."""
    table = Table("after baking", *(prompt[:32] for prompt in matrix.prompts))
    names = ("nothing", *(prompt[:32] for prompt in matrix.prompts))
    for name, *rows in zip(names, matrix.accuracy, matrix.adherence, matrix.kl, strict=True):
        cells = (f"{percent(a)} / {percent(f)} / {k:.4f}" for a, f, k in zip(*rows, strict=True))
        table.add_row(name, *cells)
    return table


def _pair(condition: Condition) -> str:
    return f"{percent(condition.accuracy)} / {percent(condition.adherence)}"
