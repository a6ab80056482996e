"""``report.html`` and ``report.png`` of step 1, to be looked at without a server."""

import math
from pathlib import Path

from distforge.reports import canvas, page
from distforge.reports.formats import percent
from distforge.reports.samples import SAMPLES_NAME, read_samples
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
        badges=[_verdict(summary)],
        lead=_lead(summary),
        tiles=[*_accuracy_tiles(summary), *page.size_tiles(details)],
        panels=canvas.draw_apart(plots.panels),
        tables=[_accuracy_table(summary), _usage_table(summary)],
        lineage=[
            page.Card("Champion", champion),
            page.trained_card("Baked model", run_dir, details),
        ],
        samples=samples,
        details={name: value for name, value in details.items() if name not in _ELSEWHERE},
    )
    return page.write(run_dir, content, plots.overview())


def _verdict(summary: Step1Summary) -> page.Badge:
    word = "converged" if summary.converged else "not converged"
    return page.Badge("verdict", word, summary.converged)


def _lead(summary: Step1Summary) -> str:
    if summary.converged:
        return (
            "Every target is met: free, greedy generations from the question alone, on held-out "
            "questions, judged by the checker."
        )
    shortfalls = summary.shortfalls or ("a target was missed, see the tables",)
    return f"Not every target is met: {'; '.join(shortfalls)}."


def _accuracy_tiles(summary: Step1Summary) -> list[tuple[str, str]]:
    tiles = [
        (percent(summary.accuracy_overall), "accuracy, baked"),
        (percent(summary.champion_accuracy), "accuracy, champion"),
    ]
    if math.isfinite(summary.champion_prompted_accuracy):
        tiles.append((percent(summary.champion_prompted_accuracy), "champion with prompts"))
    return tiles


def _accuracy_table(summary: Step1Summary) -> page.Table:
    rows = [
        page.Row(
            row.name,
            (percent(row.champion), percent(row.baked), f"≥ {percent(row.target)}"),
            row.met,
            is_total=row.is_total,
        )
        for row in accuracy_rows(summary)
    ]
    return page.Table("accuracy", ("strategy", "champion", "baked", "target", "met"), rows)


def _usage_table(summary: Step1Summary) -> page.Table:
    rows = [
        page.Row(row.name, (percent(row.baked), f"> {percent(row.target)}"), row.met)
        for row in usage_rows(summary)
    ]
    return page.Table("usage", ("token usage", "baked", "target", "met"), rows)
