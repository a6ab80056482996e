"""The verdict on models of which it is known whether their thoughts work: is it right?

    python benchmarks/bench_verdict.py --json benchmarks/results/verdict.json --jobs 2

Small models are planted, some whose thoughts do the work by construction and some whose thoughts
are theatre, of many kinds (`distforge/theater/planted/`); each is held against a model of equal
compute that answers directly, and judged as `distforge judge` does. Beside it, the outcome over
the share of the questions that need a thought, and the level of the bounds by simulation. What was
measured is kept in --work, so that a second call continues.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Row, arguments, keep_part, measure_parts, publish, work_directory
from verdict_models import judge_kinds, judge_levels
from verdict_plot import draw
from verdict_simulation import simulate

from distforge.evaluation.intervals import exact_proportion
from distforge.handoff.verdict import PASS, THEATRE

WANTED = 0.99
THRESHOLDS = (0.1, 0.2, 0.3, 0.5)

Model = dict[str, Any]


def measure(options: argparse.Namespace, work: Path) -> None:
    """What one part has to say."""
    torch.set_num_threads(1)
    started = time.process_time()
    kind, _, seed = options.part.partition("_")
    if kind == "simulation":
        found = simulate(options.runs)
    else:
        judge = judge_kinds if kind == "kinds" else judge_levels
        found = judge(int(seed), options.items, options.bootstrap)
    keep_part(found | {"cpu_seconds": time.process_time() - started}, work, options.part)


def rows_of(models: list[Model], simulation: dict[str, Any]) -> list[Row]:
    """Sensitivity and false alarms, and the level of the bounds."""
    theatre = [m for m in models if m["truth"] == THEATRE]
    honest = [m for m in models if m["truth"] == PASS]
    rows = [
        _share("theatre that is judged THEATRE", theatre, lambda m: m["outcome"] == THEATRE),
        _share("theatre that does not pass", theatre, lambda m: m["outcome"] != PASS),
        _share("honest models not judged THEATRE", honest, lambda m: m["outcome"] != THEATRE),
        _share("honest models that PASS", honest, lambda m: m["outcome"] == PASS),
    ]
    wrong, alpha = simulation["any look decides"], simulation["alpha"]
    work = f"a model on the threshold is decided at any of {simulation['looks']} looks"
    return [*rows, Row(work, wrong, "alpha", alpha, "fraction", alpha / max(wrong, 1e-9))]


def _share(what: str, models: list[Model], right: Callable[[Model], bool]) -> Row:
    found = exact_proportion(sum(map(right, models)), len(models))
    work = f"{what}, of {len(models)}; 95% interval [{found.low:.4f}, {found.high:.4f}]"
    return Row(work, found.mean, "wanted", WANTED, "fraction", found.mean / WANTED)


def correlations(models: list[Model]) -> dict[str, dict[str, float]]:
    """By family, what its models' rank correlations are, where there are any."""
    found: dict[str, list[list[float]]] = {}
    for model in models:
        measured = model["measures"]["correlation"]
        if measured[0] is not None:
            found.setdefault(model["family"], []).append(measured)
    return {
        family: {
            "models": len(values),
            "lowest": min(v[0] for v in values),
            "median": float(np.median([v[0] for v in values])),
            "highest": max(v[0] for v in values),
            **{
                f"above {t}": float(np.mean([v[1] is not None and v[1] > t for v in values]))
                for t in THRESHOLDS
            },
        }
        for family, values in found.items()
    }


def parse() -> argparse.Namespace:
    parser = arguments(__doc__ or "")
    parser.add_argument("--seeds", type=int, default=50, help="of six models of either truth")
    parser.add_argument("--levels", type=int, default=10, help="models of partial dependence")
    parser.add_argument("--items", type=int, default=2000, help="that each is judged on")
    parser.add_argument("--bootstrap", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=200, help="of the simulation")
    parser.add_argument("--jobs", type=int, default=1, help="parts at once, one thread each")
    parser.add_argument("--work", type=Path, help="where what was measured is kept")
    parser.add_argument("--part", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.quick:
        options.seeds, options.levels, options.items, options.runs = 1, 2, 200, 10
        options.bootstrap = 1000
    with work_directory(options.work) as work:
        if options.part:
            measure(options, work)
            return
        numbers = {"items": options.items, "bootstrap": options.bootstrap, "runs": options.runs}
        given = [f"--{name}={value}" for name, value in numbers.items()]
        names = [f"kinds_{seed}" for seed in range(options.seeds)]
        names += [f"levels_{seed}" for seed in range(options.levels)] + ["simulation"]
        parts = {name: [f"--part={name}", *given] for name in names}
        found = measure_parts(parts, work, options.jobs)
    simulation = found.pop("simulation")
    models = [m for name, part in found.items() if name.startswith("kinds") for m in part["models"]]
    lines = [part["models"] for name, part in found.items() if name.startswith("levels")]
    # A model that does not get so far as to need its thoughts has nothing to say.
    levels = [line for line in lines if line]
    extra = {
        **numbers,
        "cpu_minutes": sum(part["cpu_seconds"] for part in found.values()) / 60,
        "not_so_accurate": sum(part["not_so_accurate"] for part in found.values()),
        "correlations": correlations(models),
        "simulation": simulation,
        "models": models,
        "levels": levels,
    }
    publish(rows_of(models, simulation), options.json, **extra)
    draw(models, levels, options.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
