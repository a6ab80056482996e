"""Tuning, medians, rows and records of bench_grokking, without training anything large."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import bench_grokking
import grokking_records
import pytest
from bench_grokking import (
    ADAMW,
    MUON,
    RECIPES,
    Study,
    censored_median,
    measure,
    row,
    rows,
    shown,
    summary,
    tune,
)
from grokking_plot import median_and_range, plot
from grokking_records import Records, Run
from modular_arithmetic import Setting, Task

from distforge.optim import OptimizerConfig

SETTING = Setting(limit=400, window=50, evaluate_every=25)
STUDY = Study(Task("division", 5), SETTING, seeds=(0, 1, 2), tuning_seeds=(100, 101))


def reaching(step: int | None, setting: Setting) -> list[float]:
    """A curve at 1.0 from ``step`` on, as long as training would have gone."""
    end = (step or setting.limit) + setting.window
    return [float(step is not None and at >= step) for at in range(25, end + 1, 25)]


class Scripted:
    """Stands for Records: each (rate, seed) reaches the threshold at a given step."""

    def __init__(self, steps: dict[tuple[float, int], int]) -> None:
        self.steps, self.asked = steps, []

    def run(
        self,
        task: Task,
        setting: Setting,
        name: str,
        config: OptimizerConfig,
        lr: float,
        seed: int,
    ) -> Run:
        self.asked.append((lr, seed, setting.limit))
        return Run(lr, seed, reaching(self.steps[lr, seed], setting), 0.0)


def test_the_rate_whose_slower_seed_is_fastest_wins_and_others_are_given_up_early() -> None:
    recipe = replace(MUON, grid=(0.1, 0.2, 0.3, 0.4))
    records = Scripted(
        {
            (0.1, 100): 200,
            (0.1, 101): 300,
            (0.2, 100): 100,  # faster on one seed,
            (0.2, 101): 325,  # slower on the other
            (0.3, 100): 250,
            (0.3, 101): 275,
            (0.4, 100): 375,
        }
    )
    pick, slowest = tune(STUDY, recipe, records)
    assert pick == 0.3
    assert slowest == {"0.1": 300, "0.2": math.inf, "0.3": 275, "0.4": math.inf}
    assert [(lr, limit) for lr, _, limit in records.asked] == [
        (0.1, 400),
        (0.1, 400),
        (0.2, 300),
        (0.2, 300),
        (0.3, 300),
        (0.3, 300),
        (0.4, 275),
    ]


def test_a_task_without_tuning_seeds_takes_the_rates_of_the_one_before(
    capsys: pytest.CaptureFixture,
) -> None:
    rates = {lr for recipe in RECIPES for lr in recipe.grid}
    fastest = 0.01  # in the grids of all, first in none
    steps = {
        (lr, seed): 100 if lr == fastest else 300 for lr in rates for seed in (*range(3), 100, 101)
    }
    records = Scripted(steps)
    later = replace(STUDY, task=Task("multiplication", 5), tuning_seeds=())
    table, summaries, curves = measure((STUDY, later), records)
    assert {found["lr"] for found in summaries} == {fastest}
    assert [found["tuning_seeds"] for found in summaries] == [(100, 101)] * 5 + [()] * 5
    assert {r.ratio for r in table} == {1.0}
    assert list(curves) == ["division mod 5", "multiplication mod 5"]
    assert all(len(runs) == 3 for by_name in curves.values() for runs in by_name.values())
    assert "multiplication mod 5: Muon at 0.01: median 100 steps" in capsys.readouterr().out


def test_reported_seeds_never_tune() -> None:
    for study in bench_grokking.STUDIES:
        assert not set(study.seeds) & set(study.tuning_seeds)
    assert len(bench_grokking.STUDIES[0].tuning_seeds) == 3
    assert len(bench_grokking.STUDIES[0].seeds) >= 5
    assert min(len(study.seeds) for study in bench_grokking.STUDIES) >= 3
    assert len({len(recipe.grid) for recipe in RECIPES}) == 1


@pytest.mark.parametrize(
    "steps,median",
    [
        ([300, 100, 200], 200),
        ([300, None, 200], 300),
        ([None, 100, None], math.inf),
        ([100, 300], 200),
        ([100, None], math.inf),
        ([100, 200, None, 400], 300),
    ],
)
def test_a_censored_run_is_later_than_any(steps: list[int | None], median: float) -> None:
    assert censored_median(steps) == median


def test_a_median_beyond_the_limit_says_so() -> None:
    assert (shown(250.0, 400), shown(math.inf, 400)) == ("250", "> 400")
    met = row(STUDY, "Muon", "AdamW", {"Muon": 100.0, "AdamW": 250.0})
    assert (met.ours, met.peer, met.peer_value, met.ratio) == (100, "AdamW", 250, 2.5)
    assert met.work == "division mod 5, 3 seeds: Muon"
    bound = row(STUDY, "Muon", "AdamW", {"Muon": 100.0, "AdamW": math.inf})
    assert (bound.peer, bound.peer_value, bound.ratio) == ("AdamW (> limit)", 400, 4)
    lost = row(STUDY, "Muon", "AdamW", {"Muon": math.inf, "AdamW": 100.0})
    assert (lost.work, lost.ratio) == ("division mod 5, 3 seeds: Muon (> limit)", 0.25)


def test_rows_leave_out_what_compares_nothing() -> None:
    medians = {recipe.name: math.inf for recipe in RECIPES}
    assert rows(STUDY, medians) == []
    named = {(r.work.partition(": ")[2], r.peer) for r in rows(STUDY, medians | {"Muon": 50.0})}
    assert named == {
        ("Muon", "AdamW (> limit)"),
        ("MuonGrokfast λ=0.2 (> limit)", "Muon"),
        ("MuonGrokfast λ=2 (> limit)", "Muon"),
    }


def test_the_summary_of_a_run_that_fell_back() -> None:
    fell = [0.5, 0.96, 0.4, 0.97, 0.98, 0.99]
    runs = [
        Run(0.1, 0, fell, 1.0),
        Run(0.1, 1, reaching(200, SETTING), 1.0),
        Run(0.1, 2, reaching(None, SETTING), 1.0),
    ]
    found = summary(STUDY, MUON, runs, {"0.1": 300.0, "0.2": math.inf})
    assert (found["median_steps"], found["range_steps"], found["censored"]) == (
        "200",
        [100, 200],
        1,
    )
    assert found["slowest_tuning_seed_by_lr"] == {"0.1": 300.0, "0.2": "given up"}
    assert found["runs"][0] == {
        "seed": 0,
        "steps_to_held_95": 100,
        "steps_to_first_95": 50,
        "steps_trained": 150,
        "last_accuracy": 0.99,
        "lowest_accuracy_after_first_95": 0.4,
    }
    assert found["runs"][2]["steps_to_held_95"] is None
    assert found["runs"][2]["lowest_accuracy_after_first_95"] is None


def test_the_recipes_are_what_they_are_called() -> None:
    by_name = {recipe.name: recipe.config(0.1) for recipe in RECIPES}
    peer = by_name["AdamW"]
    assert (peer.name, peer.adamw.lr, peer.adamw.weight_decay) == ("adamw", 0.1, 1.0)
    filtered = by_name["Grokfast-AdamW λ=2"].muon_grokfast
    assert (filtered.adamw_patterns, filtered.grokfast_on_adamw) == (("*",), True)
    assert (filtered.adamw_lr, filtered.grokfast_lambda) == (0.1, 2.0)
    lambdas = {name: config.muon_grokfast.grokfast_lambda for name, config in by_name.items()}
    assert (lambdas["Muon"], lambdas["MuonGrokfast λ=0.2"], lambdas["MuonGrokfast λ=2"]) == (
        0,
        0.2,
        2,
    )
    for name in ("Muon", "MuonGrokfast λ=0.2", "MuonGrokfast λ=2"):
        assert by_name[name].muon_grokfast.muon_lr == 0.1
        assert by_name[name].muon_grokfast.adamw_patterns == ()


def test_a_finished_run_is_read_back_and_another_setting_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, task, config = tmp_path / "new" / "runs.jsonl", Task("division", 5), ADAMW.config(0.01)
    tiny = Setting(width=8, num_heads=2, batch_size=0, limit=50, window=25, evaluate_every=25)
    made = Records(path).run(task, tiny, "AdamW", config, 0.01, 7)
    assert len(made.curve) == 2

    calls = []
    monkeypatch.setattr(grokking_records, "train", lambda *args: calls.append(args) or [0.5, 0.25])
    records = Records(path)
    assert records.run(task, tiny, "AdamW", config, 0.01, 7) == made
    assert calls == []
    for other in (
        (task, replace(tiny, limit=75), "AdamW", config, 0.01, 7),
        (Task("multiplication", 5), tiny, "AdamW", config, 0.01, 7),
        (task, tiny, "AdamW", ADAMW.config(0.02), 0.01, 7),
        (task, tiny, "AdamW", config, 0.01, 8),
    ):
        assert records.run(*other).curve == [0.5, 0.25]
    assert len(calls) == 4
    assert len(path.read_text().splitlines()) == 5


def test_the_plot_carries_finished_runs_on(tmp_path: Path) -> None:
    curves = [[0.1, 0.9, 1.0], [0.2], [0.3, 0.4]]
    assert median_and_range(curves) == [(0.2, 0.1, 0.3), (0.4, 0.2, 0.9), (0.4, 0.2, 1.0)]
    by_optimizer = {recipe.name: curves for recipe in RECIPES}
    plot({"division mod 5": by_optimizer}, {"division mod 5": SETTING}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
