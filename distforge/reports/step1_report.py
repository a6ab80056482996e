"""``report.html`` and ``report.png`` of step 1, to be looked at without a server."""

import math
from collections.abc import Mapping
from pathlib import Path

from distforge.data.strategies import STRATEGIES
from distforge.reports import canvas, page
from distforge.reports.counts import asked_by_strategy
from distforge.reports.formats import accuracy_of, percent
from distforge.reports.page_parts import Badge, Card, Row, Table
from distforge.reports.related import links_of
from distforge.reports.samples import SAMPLES_NAME, read_samples, wrong_first
from distforge.reports.step1_plots import RunPlots
from distforge.reports.step1_summary import Step1Summary
from distforge.reports.summary import SUMMARY_NAME
from distforge.reports.tables import accuracy_rows, usage_rows
from distforge.telemetry.jsonl import METRICS_NAME, read_metrics

# Shown in a place of their own, or of no use to a reader.
_ELSEWHERE = {
    *("phase", "step", "registry_version", "converged", "shortfalls", "targets"),
    *("accuracy_overall", "accuracy", "token_usage"),
    *("champion", "champion_sha256", "champion_accuracy", "champion_accuracy_by_strategy"),
}
_WORDS = (
    "The champion is the model that was given; baking trains reasoning strategies into its "
    "weights, which makes it the baked model."
)


def write_report(run_dir: Path) -> Path:
    """Writes ``report.html`` (self-contained) and ``report.png`` into a run's directory.

    Reads ``summary.json`` and ``metrics.jsonl``, and, where they are, ``config.toml``,
    ``samples.jsonl`` (``strategy, question, generated, answer, correct``) and the model's manifest.
    Both files appear whole or not at all.

    Returns:
        The path of ``report.html``.

    Raises:
        InputError: ``summary.json`` or ``metrics.jsonl`` is missing, or a file is malformed.
    """
    run_dir = Path(run_dir)
    summary = Step1Summary.read(run_dir / SUMMARY_NAME)
    plots = RunPlots(read_metrics(run_dir / METRICS_NAME), summary)
    samples = read_samples(run_dir / SAMPLES_NAME)
    details = summary.as_json()
    champion = {"source": summary.champion, "sha256": summary.champion_sha256}
    content = page.Page(
        title="Step 1",
        badges=[step1_badge(summary)],
        lead=f"{step1_lead(summary)} {_WORDS}",
        tiles=step1_tiles(summary),
        quiet=[*page.sizes(details), *page.when(run_dir)],
        panels=canvas.draw_apart(plots.panels),
        tables=[
            _accuracy_table(summary, asked_by_strategy(run_dir, summary.questions)),
            *([_usage_table(summary)] if summary.token_usage else []),
        ],
        lineage=[
            Card("Champion", champion),
            page.trained_card("Baked model", run_dir, details),
        ],
        samples=wrong_first(samples),
        details={name: value for name, value in details.items() if name not in _ELSEWHERE},
        links=links_of(run_dir, 1),
    )
    return page.write(run_dir, content, plots.overview())


def step1_badge(summary: Step1Summary) -> Badge:
    """Whether it converged."""
    word = "converged" if summary.converged else "not converged"
    return Badge("verdict", word, summary.converged)


def step1_lead(summary: Step1Summary) -> str:
    """The outcome in a sentence."""
    if summary.converged:
        return (
            "Every target is met: free, greedy generations from the question alone, on held-out "
            "questions, judged by the checker."
        )
    shortfalls = summary.shortfalls or ("a target was missed, see the tables",)
    return f"Not every target is met: {'; '.join(shortfalls)}."


def step1_tiles(summary: Step1Summary) -> list[tuple[str, str]]:
    """Accuracy of the baked model, and of the champion in both ways to ask it."""
    asked = summary.questions
    on = f", n {asked:,}" if asked else ""
    tiles = [
        (accuracy_of(summary.accuracy_overall, asked), f"accuracy, baked model{on}"),
        (accuracy_of(summary.champion_accuracy, asked), f"accuracy, champion{on}"),
    ]
    if math.isfinite(summary.champion_prompted_accuracy):
        count = summary.champion_prompted_questions
        label = "champion with strategy prompts, on the validation questions"
        shown = accuracy_of(summary.champion_prompted_accuracy, count)
        tiles.append((shown, f"{label}, n {count:,}" if count else label))
    return tiles


def _accuracy_table(summary: Step1Summary, asked: Mapping[str, int]) -> Table:
    rows = [
        Row(
            row.name,
            (
                percent(row.champion),
                accuracy_of(row.baked, asked.get(row.name, 0)),
                f"≥ {percent(row.target)}",
            ),
            row.met,
            is_total=row.is_total,
        )
        for row in accuracy_rows(summary)
    ]
    counts = sorted({asked[name] for name in STRATEGIES if name in asked})
    each = f", n {counts[0]:,} to {counts[-1]:,}" if counts else ""
    return Table("accuracy", (f"strategy{each}", "champion", "baked", "target", "met"), rows)


def _usage_table(summary: Step1Summary) -> Table:
    rows = [
        Row(row.name, (percent(row.baked), f"> {percent(row.target)}"), row.met)
        for row in usage_rows(summary)
    ]
    return Table("usage", ("token usage", "baked", "target", "met"), rows)
