"""``report.html`` and ``report.png`` of step 2, to be looked at without a server."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from distforge.data.strategies import STRATEGIES
from distforge.reports import canvas, page
from distforge.reports.comparison import COMPARISON_HEADINGS, comparison_rows, lead_text
from distforge.reports.completions import COMPLETIONS_NAME, completions_table
from distforge.reports.counts import asked_by_strategy
from distforge.reports.formats import accuracy_of, interval, percent, points
from distforge.reports.page_parts import Badge, Card, Row, Table
from distforge.reports.related import links_of
from distforge.reports.samples import SAMPLES_NAME, read_samples, wrong_first
from distforge.reports.step2_plots import ReinforcementPlots
from distforge.reports.step2_summary import Step2Summary
from distforge.reports.summary import SUMMARY_NAME
from distforge.reports.verdict_section import verdict_badge, verdict_section
from distforge.telemetry.jsonl import METRICS_NAME, read_metrics

# Shown in a place of their own, or of no use to a reader.
_ELSEWHERE = {
    *("phase", "step", "registry_version", "improved", "verdict", "accuracy_overall", "accuracy"),
    *("token_usage", "controls", "bits", "intervals", "gain", "theater"),
    *("baked", "baked_sha256", "before_accuracy", "before_accuracy_by_strategy"),
}


def write_reinforcement_report(run_dir: Path) -> Path:
    """The same of a step 2; see `write_report` of step 1."""
    run_dir = Path(run_dir)
    summary = Step2Summary.read(run_dir / SUMMARY_NAME)
    plots = ReinforcementPlots(read_metrics(run_dir / METRICS_NAME), summary)
    samples = read_samples(run_dir / SAMPLES_NAME)
    details = summary.as_json()
    baked = {"source": summary.baked, "sha256": summary.baked_sha256}
    content = page.Page(
        title="Step 2",
        badges=[improved_badge(summary), verdict_badge(summary.verdict)],
        lead=step2_lead(summary),
        tiles=step2_tiles(summary),
        quiet=[*page.sizes(details), *page.when(run_dir)],
        panels=canvas.draw_apart(plots.panels),
        tables=[
            *_tables(summary, asked_by_strategy(run_dir, summary.items)),
            *completions_table(run_dir / COMPLETIONS_NAME),
        ],
        lineage=[
            Card("Baked model", baked),
            page.trained_card("Trained model", run_dir, details),
        ],
        samples=wrong_first(samples),
        details={name: value for name, value in details.items() if name not in _ELSEWHERE},
        links=links_of(run_dir, 2),
        verdict=verdict_section(summary, str(run_dir / SUMMARY_NAME)),
    )
    return page.write(run_dir, content, plots.overview())


def improved_badge(summary: Step2Summary) -> Badge:
    """Whether it beats what it started from."""
    word = "beats the baked model" if summary.improved else "no gain shown"
    return Badge("improved", word, summary.improved)


def step2_lead(summary: Step2Summary) -> str:
    """The gain in a sentence."""
    lead, between = lead_text(summary)
    on = f"On {summary.items:,} held-out items"
    if summary.task == "text":
        on += ", with thoughts on both sides,"
    if summary.note:
        return f"{on} the difference to the baked model is {lead}; {summary.note}."
    if summary.improved:
        return (
            f"{on} the trained model gains {lead} over the baked one, which it started from; "
            f"95% interval {between}."
        )
    return (
        f"{on} this run does not show that the trained model beats the baked one, which it started "
        f"from: the difference is {lead}, 95% interval {between}."
    )


def step2_tiles(summary: Step2Summary) -> list[tuple[str, str]]:
    """The gain with its interval, then what was reached and from where."""
    lead, between = lead_text(summary)
    on = f", n {summary.items:,}"
    tiles = [(f"{lead} {between}", f"gain over the baked model{on}")]
    if summary.task == "text":
        known = {m: summary.bits.get(f"{m}_with_thoughts", math.nan) for m in ("trained", "baked")}
        return tiles + [
            (f"{value:.3f}", f"bits a token, {model}")
            for model, value in known.items()
            if math.isfinite(value)
        ]
    tiles += [
        (accuracy_of(summary.accuracy_overall, summary.items), f"accuracy, trained model{on}"),
        (accuracy_of(summary.before_accuracy, summary.items), f"accuracy, baked model{on}"),
    ]
    ablations = [a for a in summary.ablations.values() if math.isfinite(a.mean)]
    if ablations:
        least = min(ablations, key=lambda ablation: ablation.mean)
        shown = f"{points(least.mean)} {interval(least.low, least.high, points)}"
        tiles.append((shown, f"own thoughts over the best control{on}"))
    return tiles


def _tables(summary: Step2Summary, asked: Mapping[str, int]) -> list[Table]:
    rows = [
        Row(
            row.name,
            # A row with nothing to compare still has its last cell.
            (row.value, row.lead, row.interval, *([""] if row.is_clear is None else [])),
            row.is_clear,
            opens=row.opens,
        )
        for row in comparison_rows(summary)
    ]
    tables = [Table("comparison", COMPARISON_HEADINGS, rows)]
    before, after = summary.before_accuracy_by_strategy, summary.accuracy
    if _any_known([*before.values(), *after.values()]):
        named = [name for name in STRATEGIES if name in after]
        rows = [_strategy_row(name, before, after, asked.get(name, 0)) for name in named]
        tables.append(Table("strategies", ("strategy", "n", "baked", "trained", "change"), rows))
    if _any_known([*summary.token_usage.values()]):
        rows = [Row(name, (percent(used),)) for name, used in summary.token_usage.items()]
        tables.append(Table("usage", ("token usage", "trained"), rows))
    return tables


def _strategy_row(
    name: str, before: Mapping[str, float], after: Mapping[str, float], asked: int
) -> Row:
    old, new = before.get(name, math.nan), after.get(name, math.nan)
    count = f"{asked:,}" if asked else "–"
    return Row(name, (count, percent(old), accuracy_of(new, asked), points(new - old)))


def _any_known(values: Iterable[float]) -> bool:
    return any(map(math.isfinite, values))
