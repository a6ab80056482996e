"""Every block of README and docs runs as it is written, in `documented_folder`.

What those tiny models answer is wrong, so a command may also end with 3, its goal missed. Launchers
and make turn that into statuses of their own, so it is read from where keep_running.sh reads it.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from distforge.cli import GOAL_MISSED, OK
from distforge.training.outcome import VARIABLE
from tests.documented import FILES, Block, blocks, lines_of
from tests.documented_folder import documented_folder, run

BLOCKS = [
    block for file in FILES for block in blocks(file) if not block.why_not and not block.run_by
]


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_a_documented_block_runs_as_written(block: Block, tmp_path: Path) -> None:
    folder = documented_folder(tmp_path / "folder")
    for other in blocks(block.file):
        if other.saved_as:
            (folder / other.saved_as).write_text(other.text + "\n", encoding="utf-8")
    if block.language == "python":
        text = f"{block.first}\n{block.text}"
        lines = [f"{shlex.quote(sys.executable)} -c {shlex.quote(text)}"]
    else:
        lines = lines_of(block)
    if lines[0].startswith("make run"):  # what comes first is given where there is nothing yet
        shutil.rmtree(folder / "runs")
        shutil.rmtree(folder / "champions")
    for line in lines:
        outcome = folder / "outcome.json"
        outcome.unlink(missing_ok=True)
        done = run(folder, line, environment={VARIABLE: str(outcome)})
        missed = outcome.exists() and json.loads(outcome.read_text("utf-8"))["ended"] == "missed"
        # keep_running.sh tells by its own status, and keeps the file of its run to itself.
        assert missed or done.returncode in (OK, GOAL_MISSED), f"{line}\n{done.stdout}{done.stderr}"
