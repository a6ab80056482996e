"""docs/judge.md: a verdict on what a run left, and on a model with tags of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from distforge.cli import GOAL_MISSED
from tests.documented import command
from tests.documented_folder import run

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]

PAGE = "docs/judge.md"


def test_judge_a_model(folder: Path) -> None:
    """Few steps teach no thought that pays: the verdict must not be PASS, nor the status 0."""
    line = command(PAGE, "distforge judge --model runs/quick_step2/model")
    done = run(folder, f"{line} --json verdict.json")
    assert done.returncode == GOAL_MISSED, done.stdout + done.stderr
    assert "THEATRE" in done.stdout or "INCONCLUSIVE" in done.stdout
    assert "PASS" not in (folder / "verdict.json").read_text(encoding="utf-8")
