"""``distforge report``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from distforge.activity import on_show
from distforge.errors import require_in
from distforge.pipeline.any_report import write_any_report
from distforge.pipeline.live_report import LiveReport


@dataclass(frozen=True)
class ReportConfig:
    """Make the report of a run again, from what lies in its directory; or the index of all runs.

    path: a run's directory, also of one that is still going; of a pipeline, which writes the report
        of the whole as well; or a directory of runs.
    follow: serve the run's report on this machine until Ctrl-C; it keeps up with the run.
    port: to serve it on; 0 takes a free one.
    """

    path: tyro.conf.Positional[Path]
    follow: bool = False
    port: int = 0

    def __post_init__(self) -> None:
        require_in("[0, 65535]", port=self.port)


def report(config: ReportConfig) -> int:
    """Write the pages, and say where they are."""
    if config.follow:
        return _follow(config)
    for page in write_any_report(config.path):
        print(page)
    return 0


def _follow(config: ReportConfig) -> int:
    with LiveReport(config.path, config.port) as server, on_show():
        print(f"{server.address} has the report of {config.path}; Ctrl-C ends", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0
