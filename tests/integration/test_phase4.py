"""A model that `distforge handoff check` accepts serves phase 4, which has no distforge."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.handed_over import handed_over, restate

SCRIPT = Path(__file__).with_name("phase4_stand_in.py")


def phase4(model: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(model)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )


def test_what_is_accepted_is_loaded_asked_pruned_and_asked_again() -> None:
    done = phase4(handed_over())
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    before, after = said["answers"]
    # Both write, and the lost layer shows.
    assert before
    assert after
    assert before != after
    assert said["distforge"] == []


def test_what_it_refuses_by_itself(tmp_path: Path) -> None:
    model = Path(shutil.copytree(handed_over(), tmp_path / "model"))
    restate(model, verdict="INCONCLUSIVE")
    assert "the verdict is INCONCLUSIVE" in phase4(model).stderr
    (model / "more").touch()
    assert "not those of the manifest" in phase4(model).stderr
