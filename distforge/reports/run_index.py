"""``index.html`` over a directory of runs: a table of all of them, the newest first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from distforge import durable
from distforge.activity import format_seconds
from distforge.errors import InputError
from distforge.reports import page
from distforge.reports.formats import accuracy_of, points
from distforge.reports.page_parts import Link, Row, Table
from distforge.reports.related import INDEX_NAME, peek
from distforge.reports.unfinished import how_far, kind_of
from distforge.telemetry.jsonl import METRICS_NAME
from distforge.training.run_directory import PIPELINE_FILE

_HEADINGS = ("run", "kind", "state", "date (UTC)", "accuracy", "gain", "verdict", "time", "pages")


def write_run_index(directory: Path) -> Path:
    """Write the index of the runs in ``directory``; its path. What is wrong with a run stands in
    its row: the others are shown all the same."""
    runs = find_runs(directory)
    rows = [_row(run) for run in sorted(runs, key=_changed, reverse=True)]
    text = page.render(
        "runs.html.jinja",
        title=f"Runs in {directory.resolve().name}",
        lead=f"{len(runs)} runs, the newest first. A pipeline's page is listed with its step 1; "
        "accuracies are those of the runs' own held-out questions, with 95% intervals.",
        table=Table("runs", _HEADINGS, rows),
    )
    path = directory / INDEX_NAME
    durable.write_text(path, text)
    return path


def find_runs(directory: Path) -> list[Path]:
    """The directories in ``directory`` that are runs; what is being replaced is hidden."""
    runs = (run for run in sorted(directory.iterdir()) if not run.name.startswith("."))
    return [run for run in runs if run.is_dir() and _is_run(run)]


def _is_run(run: Path) -> bool:
    if (run / "summary.json").is_file() or (run / PIPELINE_FILE).is_file():
        return True
    try:
        return kind_of(run) is not None
    except InputError:
        return False


def _changed(run: Path) -> float:
    known = [run / name for name in ("summary.json", METRICS_NAME, "config.toml", PIPELINE_FILE)]
    return max(path.stat().st_mtime for path in known if path.is_file())


def _row(run: Path) -> Row:
    date = datetime.fromtimestamp(_changed(run), UTC).strftime("%Y-%m-%d %H:%M")
    try:
        summary = peek(run)
        kind: str | None = kind_of(run)
        state = "finished" if summary else f"unfinished: {how_far(run)}"
    except InputError as error:
        summary, kind, state = {}, None, f"unreadable: {error}"
    pages = {"report": page.REPORT_HTML, "whole": INDEX_NAME}
    links = [
        Link(text, f"{run.name}/{name}") for text, name in pages.items() if (run / name).is_file()
    ]
    numbers = (kind or "–", state, date, *_numbers(summary))
    return Row(run.name, numbers if links else (*numbers, "–"), links=links)


def _numbers(summary: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Accuracy, gain, verdict and time, as far as a summary tells them."""
    accuracy = _number(summary, "accuracy_overall")
    asked = summary.get("items" if summary.get("step") == 2 else "questions")
    gain = _number(summary, "gain") if summary.get("task") == "questions" else math.nan
    reached = accuracy_of(accuracy, asked if isinstance(asked, int) else 0)
    seconds = _number(summary, "seconds")
    return (
        reached,
        points(gain),
        str(summary.get("verdict") or "–"),
        format_seconds(seconds) if math.isfinite(seconds) else "–",
    )


def _number(summary: Mapping[str, Any], name: str) -> float:
    value = summary.get(name)
    return float(value) if isinstance(value, int | float) else math.nan
