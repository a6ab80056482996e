"""``report.html`` of a prompt bake: what each prompt is worth, and what its bake cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from distforge.activity import format_seconds
from distforge.reports import canvas, page
from distforge.reports.formats import accuracy_of, percent
from distforge.reports.page_parts import Badge, Card, Row, Table
from distforge.reports.prompt_answers import read_answers
from distforge.reports.prompt_summary import (
    AnswerMark,
    AnswerRow,
    BakeReport,
    Condition,
    ForgettingMatrix,
    PromptSummary,
)
from distforge.reports.step1_plots import RunPlots
from distforge.reports.summary import SUMMARY_NAME
from distforge.telemetry.jsonl import METRICS_NAME, read_metrics

_CONDITIONS = {
    "unprompted": "champion, without the prompt",
    "prompted": "champion, with it",
    "baked": "baked, without it",
    "baked_prompted": "baked, with it",
}
_PROMPT_LENGTH, _ANSWER_LENGTH = 60, 280
# Questions whose answers stand on the page; all are in the file.
_SHOWN = 8


def write_prompt_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a prompt bake's directory; its path.

    Raises:
        InputError: the summary is missing, or a file is malformed.
    """
    summary = PromptSummary.read(run_dir / SUMMARY_NAME)
    metrics = run_dir / METRICS_NAME
    records = read_metrics(metrics) if metrics.is_file() else []
    panels = {"Training loss": RunPlots(records, None).draw_loss} if records else {}
    details, answers = summary.as_json(), read_answers(run_dir)
    content = page.Page(
        title="Prompt bake",
        badges=[
            Badge(
                "followed", "follows the prompt" if summary.followed else "missed", summary.followed
            )
        ],
        lead=_lead(summary),
        tiles=[(_fall(report), _name(report)) for report in summary.reports],
        quiet=[*_how_told(answers), *page.when(run_dir)],
        panels=canvas.draw_apart(panels),
        tables=[
            _condition_table(summary),
            *_answer_tables(answers),
            *([_forgetting_table(summary.forgetting)] if summary.forgetting else []),
        ],
        lineage=[
            Card("Champion", {"source": summary.champion, "sha256": summary.champion_sha256}),
            page.trained_card("Baked model", run_dir, details),
        ],
        details={n: v for n, v in details.items() if n not in ("reports", "forgetting")},
    )
    return page.write(run_dir, content)


def _lead(summary: PromptSummary) -> str:
    what = (
        "Baking a prompt trains the model to answer without it as the champion answers with it. "
        "How far apart the two are is a Kullback–Leibler divergence (KL), in nats a token."
    )
    if summary.followed:
        return f"{what} Every prompt's came down."
    return f"{what} Of one prompt or more it did not come down."


def _how_told(rows: Sequence[AnswerRow]) -> list[str]:
    ways = dict.fromkeys(row.told_by for row in rows)
    return [f"whether an answer follows is judged {way}" for way in ways]


def _fall(report: BakeReport) -> str:
    return f"{report.kl_before:.4f} → {report.kl_after:.4f}"


def _name(report: BakeReport) -> str:
    name = report.strategy or report.prompt
    return (
        f"KL of {name[:_PROMPT_LENGTH]}, {report.steps} steps in {format_seconds(report.seconds)}"
    )


def _condition_table(summary: PromptSummary) -> Table:
    rows: list[Row] = []
    for report in summary.reports:
        for i, (name, condition) in enumerate(report.conditions.items()):
            label = _CONDITIONS.get(name, name)
            numbers = (f"{condition.questions:,}", _accuracy(condition), _adherence(condition))
            prefix = f"{(report.strategy or report.prompt)[:_PROMPT_LENGTH]}: "
            rows.append(Row(prefix + label, numbers, opens=i == 0 and bool(rows)))
    return Table("conditions", ("model", "n", "accuracy", "follows the prompt"), rows)


def _accuracy(condition: Condition) -> str:
    return accuracy_of(condition.accuracy, condition.questions)


def _adherence(condition: Condition) -> str:
    return percent(condition.adherence)


def _answer_tables(rows: Sequence[AnswerRow]) -> list[Table]:
    """Of each prompt, some questions with their answers side by side."""
    return [
        Table(
            f"what is answered: {prompt[:_PROMPT_LENGTH]}",
            ("question", *_CONDITIONS.values()),
            [
                Row(
                    _short(row.question),
                    [_marked(row.answers[name]) for name in _CONDITIONS if name in row.answers],
                )
                for row in [row for row in rows if row.prompt == prompt][:_SHOWN]
            ],
        )
        for prompt in dict.fromkeys(row.prompt for row in rows)
    ]


def _marked(answer: AnswerMark) -> str:
    mark = {True: "✓ follows: ", False: "✗ does not follow: ", None: ""}[answer.follows]
    return mark + _short(answer.text)


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _ANSWER_LENGTH else flat[: _ANSWER_LENGTH - 1] + "…"


def _forgetting_table(matrix: ForgettingMatrix) -> Table:
    names = ("nothing", *(prompt[:_PROMPT_LENGTH] for prompt in matrix.prompts))
    rows = [
        Row(
            name,
            [
                f"{percent(a)} · KL {k:.4f}" if math.isfinite(k) else percent(a)
                for a, k in zip(accuracies, kls, strict=True)
            ],
        )
        for name, accuracies, kls in zip(names, matrix.accuracy, matrix.kl, strict=True)
    ]
    return Table("forgetting", ("after baking", *names[1:]), rows)
