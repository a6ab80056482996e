"""``distforge report``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from distforge.pipeline.any_report import write_any_report


@dataclass(frozen=True)
class ReportConfig:
    """Make the report of a run anew, from what lies in its directory; or the index of all runs.

    path: a run's directory, also of one that is still going; of a pipeline, which writes the report
        of the whole as well; or a directory of runs.
    """

    path: tyro.conf.Positional[Path]


def report(config: ReportConfig) -> int:
    """Write the pages, and say where they are."""
    for page in write_any_report(config.path):
        print(page)
    return 0
