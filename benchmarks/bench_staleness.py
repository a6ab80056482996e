"""What a lag of the rollouts' policy costs in accuracy: S5, two Ray actors, equal samples.

    python benchmarks/bench_staleness.py --json benchmarks/results/staleness.json

The partial bake of each seed (see `bench_s5.py`) is reinforced twice, for as many steps, on the
same questions: with no lag, where actors wait for the learner and it for them, and with one of two
steps, where they work at once. `bench_rollouts.py` measures the machinery of the same with engines
that sleep; here the models are real, and actors and learner share the machine's cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from bench_s5 import interval
from harness import Row, arguments, keep_part, measure_parts, publish, work_directory
from s5_training import PROMPTS, Seed

from distforge.rollouts import RolloutConfig

ACTORS, STALENESS = 2, 2


def measure(seed: int, staleness: int, steps: int, work: Path) -> dict[str, Any]:
    """Accuracy before and after, and samples a second, the actors' start included."""
    rollouts = RolloutConfig(num_actors=ACTORS, staleness=staleness)
    found = Seed(seed, work).reinforced(steps, rollouts=rollouts)
    return found | {"samples_per_second": steps * PROMPTS / found["seconds"]}


def rows_of(seeds: list[dict[str, dict[str, Any]]]) -> list[Row]:
    """The figure in rows; intervals are over seeds, of differences between pairs."""
    after = {
        lag: [seed[lag]["trained"]["own"] for seed in seeds] for lag in ("synchronous", "lagging")
    }
    pairs = zip(after["lagging"], after["synchronous"], strict=True)
    _, low, high = interval([ours - peer for ours, peer in pairs])
    ours, peer = float(np.mean(after["lagging"])), float(np.mean(after["synchronous"]))
    speed = [
        float(np.median([seed[lag]["samples_per_second"] for seed in seeds]))
        for lag in ("lagging", "synchronous")
    ]
    over = f"{len(seeds)} seeds, difference [{low:+.3f}, {high:+.3f}]"
    return [
        Row(
            f"accuracy at equal samples, staleness {STALENESS}, {ACTORS} actors, {over}",
            ours,
            "staleness 0",
            peer,
            "fraction",
            ours / peer,
        ),
        Row(
            "samples a second of the same, actors and learner on the same cores",
            speed[0],
            "staleness 0",
            speed[1],
            "questions/s",
            speed[0] / speed[1],
        ),
    ]


def parse() -> argparse.Namespace:
    parser = arguments(__doc__ or "")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=600, help="of the reinforcement")
    parser.add_argument("--work", type=Path, help="where what was measured is kept")
    parser.add_argument("--seed", type=int, default=-1, help=argparse.SUPPRESS)
    parser.add_argument("--staleness", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.quick:
        options.seeds, options.steps = 1, 10
    with work_directory(options.work) as work:
        if options.seed >= 0:
            found = measure(options.seed, options.staleness, options.steps, work)
            keep_part(found, work, f"lag_{options.staleness}_{options.seed}")
            return
        lags = {"synchronous": 0, "lagging": STALENESS}
        parts = {
            f"lag_{lag}_{seed}": [
                f"--seed={seed}",
                f"--staleness={lag}",
                f"--steps={options.steps}",
            ]
            for seed in range(options.seeds)
            for lag in lags.values()
        }
        # One at a time: each has two actors and a learner.
        measured = measure_parts(parts, work, jobs=1)
    seeds = [
        {name: measured[f"lag_{lag}_{seed}"] for name, lag in lags.items()}
        for seed in range(options.seeds)
    ]
    publish(rows_of(seeds), options.json, seeds=seeds, steps=options.steps)


if __name__ == "__main__":
    main()
