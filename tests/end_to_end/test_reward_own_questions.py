"""docs/reinforce.md: the page's rewards.py judges a chat model's answers to a file of questions."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from distforge.cli import GOAL_MISSED, OK
from distforge.telemetry import read_metrics
from distforge.telemetry.metrics import RL
from tests.documented import blocks, command
from tests.documented_folder import CHAT_MODEL, run

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]

PAGE = "docs/reinforce.md"


def test_reward_ones_own_questions(folder: Path) -> None:
    [code] = [block for block in blocks(PAGE) if block.saved_as == "rewards.py"]
    (folder / "rewards.py").write_text(code.text + "\n", encoding="utf-8")
    line = command(PAGE, f"distforge think --baked {CHAT_MODEL} --data.path questions.jsonl")
    done = run(folder, line)
    assert done.returncode in (OK, GOAL_MISSED), done.stdout + done.stderr

    directory = folder / "runs" / "own"
    asked = [json.loads(line) for line in (folder / "questions.jsonl").open(encoding="utf-8")]
    answers = {row["question"]: row["answer"] for row in asked}
    score = runpy.run_path(str(folder / "rewards.py"))["score"]
    rows = [json.loads(line) for line in (directory / "completions.jsonl").open(encoding="utf-8")]
    first = [row for row in rows if row["step"] == 1]
    assert first
    for row in first:
        [question] = [question for question in answers if question in row["prompt"]]
        [expected] = score([row["completion"]], [answers[question]])
        assert list(row["rewards"].values()) == [pytest.approx(expected)]
    shown = [r.metrics[RL["reward"]] for r in read_metrics(directory / "metrics.jsonl")
             if RL["reward"] in r.metrics]  # fmt: skip
    assert len(shown) == 2  # steps
    assert "score" in (directory / "report.html").read_text(encoding="utf-8")
    assert (directory / "model" / "model.safetensors").is_file()
