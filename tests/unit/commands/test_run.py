"""``distforge run``: what it says at its end, and its exit status."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from distforge.commands import run as command
from distforge.pipeline import Outcome, PipelineConfig, StageTime

TIMES = (StageTime("champion", "found", 0.2, 366.0), StageTime("step1", "made again", 61.0))


def outcome(**changes) -> Outcome:
    values = {
        "missed": (),
        "refused": (),
        "times": TIMES,
        "model": Path("runs/two/model"),
        "report": Path("runs/one/index.html"),
    }
    return Outcome(**{**values, **changes})


@pytest.mark.parametrize(
    ("ended", "status", "said"),
    [
        (outcome(), 0, ["runs/two/model: ready for phase 4"]),
        (outcome(refused=None), 0, ["runs/two/model: every goal of step 1 is met"]),
        (
            outcome(missed=("the verdict is THEATRE",), refused=("verdict is 'THEATRE'",)),
            3,
            [
                "runs/two/model: NOT handed off",
                "  missed: the verdict is THEATRE",
                "  phase 4 refuses it: verdict is 'THEATRE'",
            ],
        ),
        (
            outcome(
                missed=("step 1 did not converge (overall accuracy 80.0% < 85.0%)",), refused=None
            ),
            3,
            [
                "runs/two/model: NOT handed off",
                "  missed: step 1 did not converge (overall accuracy 80.0% < 85.0%)",
            ],
        ),
    ],
)
def test_the_status_and_the_last_lines_say_the_same(monkeypatch, capsys, ended, status, said):
    monkeypatch.setattr(command, "run_pipeline", lambda config, say: ended)
    assert command.run(PipelineConfig()) == status
    lines = capsys.readouterr().out.splitlines()
    assert lines[-len(said) - 1 :] == [*said, "report runs/one/index.html"]


def test_the_table_has_the_time_of_each_stage_and_of_all():
    page = Console(file=io.StringIO(), width=80)
    page.print(command.time_table(TIMES))
    text = page.file.getvalue()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()]
    assert [row for row in rows if row] == [
        ["champion", "found (took 6:06)", "0:00"],
        ["step1", "made again", "1:01"],
        ["all", "", "1:01"],
    ]


def test_only_rank_0_says_it(monkeypatch, capsys):
    monkeypatch.setattr(command, "run_pipeline", lambda config, say: outcome())
    monkeypatch.setenv("RANK", "1")
    assert command.run(PipelineConfig()) == 0
    assert capsys.readouterr().out == ""
