"""The page of a run that has not ended: what its metrics say so far, and how far that is."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

from distforge.errors import InputError
from distforge.reports import canvas, page
from distforge.reports.page_parts import Badge
from distforge.reports.related import links_of, peek
from distforge.reports.step1_plots import progress_panels as step1_panels
from distforge.reports.step2_plots import progress_panels as step2_panels
from distforge.telemetry.jsonl import METRICS_NAME, MetricRecord, read_metrics

Kind = Literal["step 1", "step 2", "prompt bake"]
_CONFIG_NAME = "config.toml"


def kind_of(run_dir: Path) -> Kind | None:
    """What a run is, by its summary, or else by its configuration; None where it is no run.

    Raises:
        InputError: the file that says it is malformed.
    """
    summary = peek(run_dir)
    if not summary:
        return _kind_of_config(run_dir)
    if summary.get("step") == 2:
        return "step 2"
    return "prompt bake" if "reports" in summary else "step 1"


def _kind_of_config(run_dir: Path) -> Kind | None:
    path = run_dir / _CONFIG_NAME
    if not path.is_file():
        return None
    try:
        config = tomllib.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not TOML ({error}); start the run again") from None
    if "episodes" in config:
        return "step 2"
    if "champion" in config:
        return "step 1"
    return "prompt bake" if "prompt" in config else None


def how_far(run_dir: Path) -> str:
    """In a sentence: the last step that a run reported, and when."""
    records = _records(run_dir)
    if not records:
        return "nothing is reported yet."
    last = records[-1]
    return f"the last record is of step {last.step:,}, at {page.minute(last.time)}."


def write_unfinished_report(run_dir: Path, kind: Kind) -> Path:
    """Write ``report.html`` of a run without a summary, from its metrics so far; its path."""
    records = _records(run_dir)
    panels = {
        "step 1": step1_panels,
        "step 2": step2_panels,
        "prompt bake": step1_panels,
    }[kind](records)
    content = page.Page(
        title=kind.capitalize(),
        badges=[Badge("unfinished", "unfinished", None)],
        lead=f"This run has not ended: {how_far(run_dir)} What follows is what it logged so far; "
        f"update this page with `distforge report {run_dir}`.",
        panels=canvas.draw_apart(panels) if records else {},
        links=links_of(run_dir, 2) if kind == "step 2" else links_of(run_dir, 1),
        details={"directory": run_dir},
    )
    return page.write(run_dir, content)


def _records(run_dir: Path) -> list[MetricRecord]:
    path = run_dir / METRICS_NAME
    return read_metrics(path) if path.is_file() else []
