"""How many steps until a small transformer generalizes: AdamW, Muon, Grokfast and both together.

    python benchmarks/bench_grokking.py --json benchmarks/results/grokking.json

The learning rate of each optimizer is tuned on the first task, on seeds of its own; then every
task and seed is run with it until held-out accuracy has stayed at 95% for 300 steps, or the limit
is reached. The figure of a run is the first step of that stretch. Medians count a run that never
got there as beyond the limit. One thread: the model is tiny.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from grokking_plot import Curves, count_seeds, plot
from grokking_records import Records, Run
from harness import Row, arguments, publish
from modular_arithmetic import Setting, Task, first_step, sustained_step

from distforge.optim import AdamWConfig, MuonGrokfastConfig, OptimizerConfig

BETAS = (0.9, 0.98)  # Power et al. 2022
WEIGHT_DECAY = 1.0
# Embeddings, norms and head in the recipes that tune Muon's rate; not tuned.
EMBEDDING_LR = 3e-3
MUON_GRID = (0.05, 0.1, 0.02, 0.2, 0.01)
ADAMW_GRID = (3e-3, 5e-3, 2e-3, 1e-3, 1e-2)


@dataclass(frozen=True)
class Recipe:
    """One optimizer. ``grid``: its learning rates, the likeliest first, so that tuning is short.

    grokfast: lambda of the filter, which amplifies what is slow in the gradient by 1 + lambda.
    muon: whether hidden matrices are orthogonalised; the filter then is on them alone.
    peer: torch's own AdamW.
    """

    name: str
    grid: tuple[float, ...]
    grokfast: float = 0.0
    muon: bool = True
    peer: bool = False

    def config(self, lr: float) -> OptimizerConfig:
        """With the learning rate ``lr`` for hidden matrices, or for everything without Muon."""
        if self.peer:
            adamw = AdamWConfig(lr=lr, betas=BETAS, weight_decay=WEIGHT_DECAY)
            return OptimizerConfig(name="adamw", adamw=adamw)
        ours = MuonGrokfastConfig(
            muon_lr=lr,
            adamw_lr=EMBEDDING_LR if self.muon else lr,
            adamw_betas=BETAS,
            weight_decay=WEIGHT_DECAY,
            grokfast_lambda=self.grokfast,
            grokfast_on_adamw=not self.muon,
            adamw_patterns=() if self.muon else ("*",),
        )
        return OptimizerConfig(name="muon_grokfast", muon_grokfast=ours)


ADAMW = Recipe("AdamW", ADAMW_GRID, muon=False, peer=True)
MUON = Recipe("Muon", MUON_GRID)
RECIPES = (
    ADAMW,
    Recipe("Grokfast-AdamW λ=2", ADAMW_GRID, grokfast=2.0, muon=False),
    MUON,
    Recipe("MuonGrokfast λ=0.2", MUON_GRID, grokfast=0.2),
    Recipe("MuonGrokfast λ=2", MUON_GRID, grokfast=2.0),
)


@dataclass(frozen=True)
class Study:
    """A task, how it is trained, the seeds that are reported and those that tune.

    Without tuning seeds, a study takes the rates of the study before it.
    """

    task: Task
    setting: Setting
    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...]


STUDIES = (
    Study(Task("division", 61), Setting(), (0, 1, 2, 3, 4), (100, 101, 102)),
    Study(Task("division", 97), Setting(evaluate_every=20), (0, 1, 2), ()),
    Study(Task("multiplication", 97), Setting(evaluate_every=20), (0, 1, 2), ()),
)
QUICK = (Study(Task("division", 61), Setting(limit=400), (0,), ()),)


def tune(study: Study, recipe: Recipe, records: Records) -> tuple[float, dict[str, float]]:
    """The learning rate whose slower tuning seed is the fastest, and that step for each rate.

    A rate is given up (inf) as soon as one seed needs more steps than the best rate so far, which
    changes nothing in the choice.
    """
    pick, best = recipe.grid[0], float(study.setting.limit)
    slowest: dict[str, float] = {}
    for lr in recipe.grid:
        setting = replace(study.setting, limit=int(best))
        steps: list[float] = []
        for seed in study.tuning_seeds:
            run = records.run(study.task, setting, recipe.name, recipe.config(lr), lr, seed)
            steps.append(steps_of(run, setting) or math.inf)
            if steps[-1] == math.inf:
                break
        slowest[f"{lr:g}"] = max(steps)
        if max(steps) < best:
            pick, best = lr, max(steps)
    return pick, slowest


def steps_of(run: Run, setting: Setting) -> int | None:
    """First step of the stretch at the threshold; None when the run is censored at the limit."""
    return sustained_step(run.curve, setting)


def censored_median(steps: Sequence[int | None]) -> float:
    """Median with None as later than anything: inf where the middle is (or touches) a None."""
    return statistics.median(math.inf if step is None else step for step in steps)


def shown(steps: float, limit: int) -> str:
    """The median in words: a number of steps, or that it lies beyond the limit."""
    return f"> {limit}" if math.isinf(steps) else f"{steps:g}"


def row(study: Study, ours: str, peer: str, medians: dict[str, float]) -> Row:
    """Steps of two optimizers; a median beyond the limit stands as the limit and is said so."""
    limit = study.setting.limit
    values = {name: min(medians[name], float(limit)) for name in (ours, peer)}
    beyond = {name: " (> limit)" if math.isinf(medians[name]) else "" for name in (ours, peer)}
    return Row(
        f"{study.task.name}, {count_seeds(len(study.seeds))}: {ours}{beyond[ours]}",
        values[ours],
        peer + beyond[peer],
        values[peer],
        "median steps to a held 95%",
        values[peer] / values[ours],
    )


def rows(study: Study, medians: dict[str, float]) -> list[Row]:
    """Everything of ours against AdamW, then Grokfast with Muon against Muon alone.

    Two medians beyond the limit compare nothing, and make no row.
    """
    ours = [recipe.name for recipe in RECIPES if not recipe.peer]
    both = [recipe.name for recipe in RECIPES if recipe.muon and recipe.grokfast]
    pairs = [(name, ADAMW.name) for name in ours] + [(name, MUON.name) for name in both]
    return [
        row(study, name, peer, medians)
        for name, peer in pairs
        if math.isfinite(min(medians[name], medians[peer]))
    ]


def summary(study: Study, recipe: Recipe, runs: Sequence[Run], tuned: Any) -> dict[str, Any]:
    """What the JSON says of one optimizer on one task."""
    steps = [steps_of(run, study.setting) for run in runs]
    reached = [step for step in steps if step is not None]
    median = shown(censored_median(steps), study.setting.limit)
    return {
        "task": study.task.name,
        "optimizer": recipe.name,
        "lr": runs[0].lr,
        "tuning_seeds": study.tuning_seeds,
        "slowest_tuning_seed_by_lr": {
            lr: "given up" if math.isinf(step) else step for lr, step in tuned.items()
        },
        "median_steps": median,
        "range_steps": [min(reached), max(reached)] if reached else [],
        "censored": len(steps) - len(reached),
        "runs": [
            {
                "seed": run.seed,
                "steps_to_held_95": step,
                "steps_to_first_95": first_step(run.curve, study.setting),
                "steps_trained": len(run.curve) * study.setting.evaluate_every,
                "last_accuracy": round(run.curve[-1], 4),
                "lowest_accuracy_after_first_95": lowest_after_first(run, study.setting),
            }
            for run, step in zip(runs, steps, strict=True)
        ],
    }


def lowest_after_first(run: Run, setting: Setting) -> float | None:
    """How far accuracy fell back after it had first touched the threshold; None if it never did."""
    first = first_step(run.curve, setting)
    if first is None:
        return None
    return round(min(run.curve[first // setting.evaluate_every - 1 :]), 4)


def measure(studies: Sequence[Study], records: Records) -> tuple[list[Row], list[Any], Curves]:
    """Tunes and runs everything; rows, summaries, and the curves for the plot."""
    table: list[Row] = []
    summaries: list[Any] = []
    curves: Curves = {}
    picks = {recipe.name: recipe.grid[0] for recipe in RECIPES}
    for study in studies:
        medians = {}
        for recipe in RECIPES:
            tuned: dict[str, float] = {}
            if study.tuning_seeds:
                picks[recipe.name], tuned = tune(study, recipe, records)
            lr = picks[recipe.name]
            config = recipe.config(lr)
            runs = [
                records.run(study.task, study.setting, recipe.name, config, lr, seed)
                for seed in study.seeds
            ]
            steps = [steps_of(run, study.setting) for run in runs]
            medians[recipe.name] = censored_median(steps)
            print(
                f"{study.task.name}: {recipe.name} at {lr:g}: median "
                f"{shown(medians[recipe.name], study.setting.limit)} steps",
                flush=True,
            )
            summaries.append(summary(study, recipe, runs, tuned))
            curves.setdefault(study.task.name, {})[recipe.name] = [run.curve for run in runs]
        table += rows(study, medians)
    return table, summaries, curves


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--records", type=Path, help="JSONL of finished runs, to go on after an interruption"
    )
    parser.add_argument("--plot", type=Path, help="PNG; by default beside the JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    studies = QUICK if options.quick else STUDIES
    records = Records(options.records)
    table, summaries, curves = measure(studies, records)
    publish(
        table,
        options.json,
        settings=[
            asdict(study.task) | asdict(study.setting) | {"seeds": study.seeds} for study in studies
        ],
        weight_decay=WEIGHT_DECAY,
        adamw_betas=BETAS,
        embedding_lr_with_muon=EMBEDDING_LR,
        grids={recipe.name: sorted(recipe.grid) for recipe in RECIPES},
        optimizers=summaries,
    )
    picture = options.plot or options.json.with_suffix(".png")
    plot(curves, {study.task.name: study.setting for study in studies}, picture)
    print(f"{options.json} and {picture} written in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
