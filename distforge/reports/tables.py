"""The final tables: what was reached, against what had to be (step 1) or what was (step 2)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from distforge.data.strategies import STRATEGIES, USAGE_TYPES
from distforge.reports.comparison import COMPARISON_HEADINGS, comparison_rows
from distforge.reports.formats import percent
from distforge.reports.step1_summary import Step1Summary
from distforge.reports.step2_summary import Step2Summary


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


def accuracy_rows(summary: Step1Summary) -> list[AccuracyRow]:
    """One row a strategy that the questions name, and the overall one last."""
    rows = [
        AccuracyRow(
            strategy,
            summary.champion_accuracy_by_strategy.get(strategy, math.nan),
            summary.accuracy.get(strategy, math.nan),
            summary.targets.accuracy_strategy,
        )
        for strategy in STRATEGIES
        if strategy in summary.accuracy
    ]
    overall = AccuracyRow(
        "overall",
        summary.champion_accuracy,
        summary.accuracy_overall,
        summary.targets.accuracy_overall,
        is_total=True,
    )
    return [*rows, overall]


def usage_rows(summary: Step1Summary) -> list[UsageRow]:
    """One row a usage type that was counted."""
    return [
        UsageRow(
            usage, summary.token_usage.get(usage, math.nan), summary.targets.token_usage[usage]
        )
        for usage in USAGE_TYPES
        if usage in summary.token_usage
    ]


def accuracy_table(summary: Step1Summary) -> Table:
    """Strategy by strategy: champion, baked model, target, and whether it is met."""
    table = _target_table("Step 1: accuracy on held-out questions", "strategy", "champion", "baked")
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


def usage_table(summary: Step1Summary) -> Table:
    """Token usage by type against its target; the caption says whether step 1 converged."""
    table = _target_table("Step 1: thinking tokens used", "token usage", "baked")
    table.caption = Text(f"converged: {'yes' if summary.converged else 'no'}", style="bold")
    table.caption_justify = "left"
    for row in usage_rows(summary):
        table.add_row(row.name, percent(row.baked), f"> {percent(row.target)}", _mark(row.met))
    return table


def reinforcement_table(summary: Step2Summary) -> Table:
    """What step 2 reached, against the baked model and the controls, with 95% intervals."""
    title = f"Step 2: {summary.items:,} held-out items"
    table = _table_of(title, COMPARISON_HEADINGS)
    for row in comparison_rows(summary):
        if row.opens:
            table.add_section()
        clear = "" if row.is_clear is None else _mark(row.is_clear)
        table.add_row(row.name, row.value, row.lead, row.interval, clear)
    table.caption = Text(
        f"improved: {'yes' if summary.improved else 'no'}   "
        f"verdict: {summary.verdict or 'not judged yet'}   {summary.episodes:,} episodes",
        style="bold",
    )
    table.caption_justify = "left"
    return table


def _target_table(title: str, first: str, *numbers: str) -> Table:
    return _table_of(title, (first, *numbers, "target", "met"))


def _table_of(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    first, *numbers, last = headings
    table.add_column(first)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column(last, justify="center")
    return table


def _mark(met: bool) -> Text:
    return Text("yes", style="green") if met else Text("no", style="bold red")
