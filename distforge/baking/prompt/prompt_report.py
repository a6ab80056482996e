"""What a baked prompt is worth: four conditions, forgetting, seconds; the forgetting matrix."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Column, Table

from distforge.reports.formats import percent
from distforge.reports.prompt_summary import BakeReport, ForgettingMatrix

CONDITIONS = ("unprompted", "prompted", "baked", "baked_prompted")


def report_table(reports: Sequence[BakeReport]) -> Table:
    """Every prompt with its KL, and a row for each of its four conditions."""
    table = Table(Column("prompt", no_wrap=True), Column("asked", no_wrap=True))
    for name in ("accuracy", "follows", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    for report in reports:
        facts = (
            report.strategy or report.prompt[:24],
            f"KL {report.kl_before:.4f} to {report.kl_after:.4f}",
            f"in {report.seconds:.0f} s",
            "",
        )
        for fact, name in zip(facts, CONDITIONS, strict=True):
            found = report.conditions[name]
            asked = name.replace("_", " and ")
            shares = (percent(found.accuracy), percent(found.adherence))
            table.add_row(fact, asked, *shares, f"{found.questions:,}")
        table.add_section()
    return table


def forgetting_table(matrix: ForgettingMatrix) -> Table:
    """The forgetting matrix: accuracy, share that follows the prompt, and KL in a cell."""
    table = Table("after baking", *(prompt[:32] for prompt in matrix.prompts))
    names = ("nothing", *(prompt[:32] for prompt in matrix.prompts))
    for name, *rows in zip(names, matrix.accuracy, matrix.adherence, matrix.kl, strict=True):
        cells = (f"{percent(a)}, {percent(f)}\nKL {k:.4f}" for a, f, k in zip(*rows, strict=True))
        table.add_row(name, *cells)
    return table
