"""The report of whatever lies in a directory: a run of any kind, ended or not, or all runs."""

from __future__ import annotations

from pathlib import Path

from distforge.errors import InputError
from distforge.pipeline.whole_report import write_whole_report
from distforge.reports.prompt_page import write_prompt_report
from distforge.reports.related import peek, related_runs
from distforge.reports.run_index import find_runs, write_run_index
from distforge.reports.step1_report import write_report
from distforge.reports.step2_report import write_reinforcement_report
from distforge.reports.unfinished import kind_of, write_unfinished_report
from distforge.training.run_directory import PIPELINE_FILE

_WRITERS = {
    "step 1": write_report,
    "step 2": write_reinforcement_report,
    "prompt bake": write_prompt_report,
}


def write_any_report(directory: Path) -> list[Path]:
    """Write anew what there is to report of a directory; the pages' paths.

    Of a run: its own report, and that of the whole where it is part of one. Of a directory of runs:
    the index of them.

    Raises:
        InputError: it is neither, or a file in it is malformed.
    """
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory; give a run's, or one that holds runs")
    if kind_of(directory) is not None:
        pages = [write_step_report(directory)]
        related = related_runs(directory)
        if related is not None and (related.record is not None or related.step2 is not None):
            pages.append(write_whole_report(directory))
        return pages
    if (directory / PIPELINE_FILE).is_file():  # its champion is being made
        return [write_whole_report(directory)]
    if find_runs(directory):
        return [write_run_index(directory)]
    raise InputError(
        f"{directory} is no run of distforge and holds none: there is neither a summary.json nor "
        "the config.toml of a run; give a run's directory, or one that holds runs"
    )


def write_step_report(run_dir: Path) -> Path:
    """Write ``report.html`` of a run, ended or not; its path."""
    kind = kind_of(run_dir)
    if kind is None:
        raise InputError(f"{run_dir} is no run of distforge; give a run's directory")
    if not peek(run_dir):
        return write_unfinished_report(run_dir, kind)
    return _WRITERS[kind](run_dir)
