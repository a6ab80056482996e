"""The last stage: the report of the whole, and the links to it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from distforge.pipeline.any_report import write_step_report
from distforge.pipeline.notes import Notes
from distforge.pipeline.stages import Found, StageName
from distforge.pipeline.whole_report import write_whole_report
from distforge.registry.manifest import MANIFEST_NAME
from distforge.reports.page import REPORT_HTML
from distforge.reports.related import INDEX_NAME
from distforge.training.distributed import World
from distforge.training.run_directory import SUMMARY_FILE


class ReportStage:
    """Writes ``index.html`` into step 1's run.

    Step 1's own report is written anew: when it was made, there was no step 2 to lead to.

    Args:
        runs: the directories of the steps, in order.
        notes: of the pipeline.
    """

    name: StageName = "report"

    def __init__(self, runs: list[Path], notes: Notes, world: World) -> None:
        self._runs, self._notes, self._world = runs, notes, world
        self.page = runs[0] / INDEX_NAME

    def find(self) -> Found:
        """By the hashes of the summaries and models it was made from, and of the page itself."""
        if not self.page.is_file():
            return Found("absent", f"{self.page} is not there")
        if self._notes.record.report != self._hashes():
            return Found("absent", f"{self.page} is of other results")
        return Found("finished", f"{self.page} is of these results")

    def run(self) -> None:
        if self._world.is_main:
            first, *others = filter(_is_finished, self._runs)
            missing = [run for run in others if not (run / REPORT_HTML).is_file()]
            for run in (first, *missing):
                write_step_report(run)
            write_whole_report(self._runs[0])
            self._notes.note_report(self._hashes())
        self._world.barrier()

    def missed(self) -> list[str]:
        """Nothing: what there is, is reported."""
        return []

    def remove(self) -> None:
        self.page.unlink(missing_ok=True)

    def _hashes(self) -> dict[str, str]:
        files = [run / name for run in self._runs for name in (SUMMARY_FILE, _MODEL_MANIFEST)]
        return {
            f"{file.parent.name}/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest()
            for file in [*files, self.page]
            if file.is_file()
        }


_MODEL_MANIFEST = f"model/{MANIFEST_NAME}"


def _is_finished(run: Path) -> bool:
    return (run / SUMMARY_FILE).is_file()
