"""Scores, the forgetting matrix and what is written of them."""

from __future__ import annotations

import io
import json
import math

from rich.console import Console

from distforge.baking.prompt.prompt_report import forgetting_table, report_table
from distforge.reports.prompt_summary import (
    BakeReport,
    Condition,
    ForgettingMatrix,
    PromptSummary,
)

MATRIX = ForgettingMatrix(
    prompts=("first", "second"),
    kl=((1.0, 2.0), (0.1, 1.9), (0.2, 0.3)),
    accuracy=((0.1, 0.2), (0.9, 0.25), (0.8, 0.7)),
    adherence=((0.0, 0.0), (1.0, 0.5), (0.95, 1.0)),
)
CELL = Condition(0.5, 0.75, 4)


def report(**changes) -> BakeReport:
    values = {
        "prompt": "Think.",
        "strategy": "",
        "kl_before": 1.0,
        "kl_after": 0.05,
        "conditions": dict.fromkeys(("unprompted", "prompted", "baked", "baked_prompted"), CELL),
        "forgetting": {"self_doubt": (CELL, Condition(math.nan, math.nan, 0))},
        "steps": 7,
        "stopped_early": False,
        "strength": 1.0,
        "seconds": 3.25,
    }
    return BakeReport(**{**values, **changes})


def test_what_a_prompt_lost_since_its_own_bake() -> None:
    assert round(MATRIX.forgotten(0), 12) == 0.1
    assert MATRIX.forgotten(1) == 0.0


def test_a_report_is_json_without_nan(tmp_path) -> None:
    path = tmp_path / "summary.json"
    summary = PromptSummary(
        mode="prompt",
        reports=(report(), report(kl_after=0.0)),
        model_dir="model",
        registry_version="",
        champion="champion",
        champion_sha256="a" * 64,
        config_sha256="b" * 64,
    )
    summary.write(path)
    first, second = json.loads(path.read_text())["reports"]
    assert first["kl_fall"] == 20
    assert second["kl_fall"] is None  # infinite
    assert first["forgetting"]["self_doubt"][1]["accuracy"] is None
    assert first["conditions"]["baked"] == {"accuracy": 0.5, "adherence": 0.75, "questions": 4}
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_tables_show_every_number() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report_table([report()]))
    console.print(forgetting_table(MATRIX))
    shown = console.export_text()
    for text in ("Think.", "KL 1.0000 to 0.0500", "in 3 s", "nothing", "80.0%, 95.0%", "KL 0.2000"):
        assert text in shown
    for condition in ("unprompted", "prompted", "baked", "baked and prompted"):
        row = next(line for line in shown.splitlines() if f"│ {condition} " in line)
        assert [cell.strip() for cell in row.split("│")[3:6]] == ["50.0%", "75.0%", "4"]
