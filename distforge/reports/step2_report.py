"""``report.html`` and ``report.png`` of step 2, to be looked at without a server."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from distforge.data.strategies import STRATEGIES
from distforge.reports import canvas, page
from distforge.reports.comparison import COMPARISON_HEADINGS, comparison_rows, lead_text
from distforge.reports.formats import percent, points
from distforge.reports.samples import SAMPLES_NAME, read_samples
from distforge.reports.step2_plots import ReinforcementPlots
from distforge.reports.step2_summary import Step2Summary
from distforge.reports.summary import SUMMARY_NAME
from distforge.telemetry.jsonl import METRICS_NAME, read_metrics

# Shown in a place of their own, or of no use to a reader.
_ELSEWHERE = {
    *("phase", "step", "registry_version", "improved", "verdict", "accuracy_overall", "accuracy"),
    *("token_usage", "controls", "bits", "intervals", "gain"),
    *("baked", "baked_sha256", "before_accuracy", "before_accuracy_by_strategy"),
}
_VERDICTS = {
    "": "Whether its thoughts are theatre has not been judged yet.",
    "PASS": "The anti-theatre verdict is PASS: the thoughts do what they seem to do.",
    "THEATRE": "The anti-theatre verdict is THEATRE: the thoughts do not carry the answers.",
    "INCONCLUSIVE": "The anti-theatre verdict is INCONCLUSIVE: more items are needed to tell.",
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
        badges=_badges(summary),
        lead=_lead(summary),
        tiles=[*_result_tiles(summary), *page.size_tiles(details)],
        panels=canvas.draw_apart(plots.panels),
        tables=_tables(summary),
        lineage=[
            page.Card("Baked model", baked),
            page.trained_card("Trained model", run_dir, details),
        ],
        samples=samples,
        details={name: value for name, value in details.items() if name not in _ELSEWHERE},
    )
    return page.write(run_dir, content, plots.overview())


def _badges(summary: Step2Summary) -> list[page.Badge]:
    word = "beats the baked model" if summary.improved else "no gain shown"
    # Neither a pending nor an inconclusive verdict is a failure.
    passed = {"PASS": True, "THEATRE": False}.get(summary.verdict)
    return [
        page.Badge("improved", word, summary.improved),
        page.Badge("verdict", summary.verdict or "not judged yet", passed),
    ]


def _lead(summary: Step2Summary) -> str:
    lead, between = lead_text(summary)
    on = f"On {summary.items:,} held-out items"
    if summary.improved:
        shown = f"{on} the trained model gains {lead} over the baked one, 95% interval {between}."
    else:
        shown = (
            f"{on} this run does not show that the trained model beats the baked one: "
            f"the difference is {lead}, 95% interval {between}."
        )
    return f"{shown} {_VERDICTS[summary.verdict]}"


def _result_tiles(summary: Step2Summary) -> list[tuple[str, str]]:
    lead, _ = lead_text(summary)
    if summary.task == "text":
        models = ("trained", "baked")
        known = {m: summary.bits.get(f"{m}_with_thoughts", math.nan) for m in models}
        bits = [
            (f"{value:.3f}", f"bits a token, {model}")
            for model, value in known.items()
            if math.isfinite(value)
        ]
        return [*bits, (lead, "gain over baked")]
    tiles = [
        (percent(summary.accuracy_overall), "accuracy, trained"),
        (percent(summary.before_accuracy), "accuracy, baked"),
        (lead, "gain over baked"),
    ]
    ablations = [a.mean for a in summary.ablations.values() if math.isfinite(a.mean)]
    if ablations:
        tiles.append((points(min(ablations)), "own thoughts over the best control"))
    return tiles


def _tables(summary: Step2Summary) -> list[page.Table]:
    rows = [
        page.Row(
            row.name,
            # A row with nothing to compare still has its last cell.
            (row.value, row.lead, row.interval, *([""] if row.is_clear is None else [])),
            row.is_clear,
            opens=row.opens,
        )
        for row in comparison_rows(summary)
    ]
    tables = [page.Table("comparison", COMPARISON_HEADINGS, rows)]
    before, after = summary.before_accuracy_by_strategy, summary.accuracy
    if _any_known([*before.values(), *after.values()]):
        rows = [_strategy_row(name, before, after) for name in STRATEGIES]
        tables.append(page.Table("strategies", ("strategy", "baked", "trained", "change"), rows))
    if _any_known([*summary.token_usage.values()]):
        rows = [page.Row(name, (percent(used),)) for name, used in summary.token_usage.items()]
        tables.append(page.Table("usage", ("token usage", "trained"), rows))
    return tables


def _strategy_row(name: str, before: Mapping[str, float], after: Mapping[str, float]) -> page.Row:
    old, new = before.get(name, math.nan), after.get(name, math.nan)
    return page.Row(name, (percent(old), percent(new), points(new - old)))


def _any_known(values: Iterable[float]) -> bool:
    return any(map(math.isfinite, values))
