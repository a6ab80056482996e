"""The final table of step 1: what was reached, against what had to be."""

import math
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from distforge.data.strategies import STRATEGIES, USAGE_TYPES
from distforge.telemetry.summary import BakingSummary


@dataclass(frozen=True)
class AccuracyRow:
    """A strategy's accuracy, or the overall one (``is_total``); fractions, NaN if unknown."""

    name: str
    champion: float
    baked: float
    target: float
    is_total: bool = False

    @property
    def met(self) -> bool:
        """Whether the baked model reaches the target."""
        return self.baked >= self.target


@dataclass(frozen=True)
class UsageRow:
    """How often free generations use a kind of token; fractions, NaN if unknown."""

    name: str
    baked: float
    target: float

    @property
    def met(self) -> bool:
        """Whether the baked model exceeds the target."""
        return self.baked > self.target


def accuracy_rows(summary: BakingSummary) -> list[AccuracyRow]:
    """One row a strategy, and the overall one last."""
    rows = [
        AccuracyRow(
            strategy,
            summary.champion_accuracy_by_strategy.get(strategy, math.nan),
            summary.accuracy.get(strategy, math.nan),
            summary.targets.accuracy_strategy,
        )
        for strategy in STRATEGIES
    ]
    overall = AccuracyRow(
        "overall",
        summary.champion_accuracy,
        summary.accuracy_overall,
        summary.targets.accuracy_overall,
        is_total=True,
    )
    return [*rows, overall]


def usage_rows(summary: BakingSummary) -> list[UsageRow]:
    """One row a usage type."""
    return [
        UsageRow(
            usage, summary.token_usage.get(usage, math.nan), summary.targets.token_usage[usage]
        )
        for usage in USAGE_TYPES
    ]


def accuracy_table(summary: BakingSummary) -> Table:
    """Strategy by strategy: champion, baked model, target, and whether it is met."""
    table = _table("Step 1: accuracy on held-out questions", "strategy", "champion", "baked")
    for row in accuracy_rows(summary):
        if row.is_total:
            table.add_section()
        table.add_row(
            row.name,
            percent(row.champion),
            percent(row.baked),
            f"≥ {percent(row.target)}",
            _mark(row.met),
            style="bold" if row.is_total else None,
        )
    return table


def usage_table(summary: BakingSummary) -> Table:
    """Token usage by type against its target; the caption says whether step 1 converged."""
    table = _table("Step 1: thinking tokens used", "token usage", "baked")
    table.caption = Text(f"converged: {'yes' if summary.converged else 'no'}", style="bold")
    table.caption_justify = "left"
    for row in usage_rows(summary):
        table.add_row(row.name, percent(row.baked), f"> {percent(row.target)}", _mark(row.met))
    return table


def percent(fraction: float) -> str:
    """``0.8765`` as ``87.7%``; a dash where nothing was measured."""
    return f"{fraction:.1%}" if math.isfinite(fraction) else "–"


def _table(title: str, first: str, *numbers: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for heading in (*numbers, "target"):
        table.add_column(heading, justify="right")
    table.add_column("met", justify="center")
    return table


def _mark(met: bool) -> Text:
    return Text("yes", style="green") if met else Text("no", style="bold red")
