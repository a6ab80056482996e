"""Reinforcement learning creates a capability: swap tracking in S5, with thoughts nobody labelled.

    python benchmarks/bench_s5.py --json benchmarks/results/s5.json --jobs 2

For each seed a small model is baked on true thoughts until it answers 60% greedily; then it is
reinforced on its own thoughts, with the answers alone as reward. Beside it: the same baked model
fine-tuned on answers without thoughts for as much compute, reinforced by AdamW, and, from scratch,
a model that answers directly and one that gets fillers. Nothing is chosen on the items that are
reported. What a seed measured is kept in --work, so that a second call continues.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from harness import Row, arguments, keep_part, measure_parts, publish, work_directory
from s5_plot import draw
from s5_training import CONTROLS, PROMPTS, THOUGHTS, Seed
from swap_tracking import BAKED_BATCH, CHANCE, STEPS, SWAPS

from distforge.optim.build import OptimizerName

WANTED_TRAINED, SECONDS_ALLOWED = 0.95, 600.0
# Beside so many seeds stand the models without thoughts, and reinforcement by AdamW.
REFERENCED, BY_ADAMW = 2, 1
# Student's t at 97.5%, for intervals over 2 to 10 seeds.
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


def measure(seed: int, steps: int, work: Path, optimizer: OptimizerName) -> dict[str, Any]:
    """All that one seed has to say; by AdamW, the reinforcement alone."""
    model = Seed(seed, work)
    found = model.reinforced(steps, optimizer)
    if optimizer != "adamw":
        found["fine_tuned"] = model.fine_tuned(found["cpu_seconds"])
        if seed < REFERENCED:
            found |= model.references(4 * steps)
    return found


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and 95% interval over seeds, by Student's t; of one seed, the value alone."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, mean, mean
    half = _T[min(len(values), len(_T) + 1) - 2] * float(np.std(values, ddof=1))
    half /= len(values) ** 0.5
    return mean, mean - half, mean + half


def rows_of(seeds: dict[str, dict[str, Any]]) -> list[Row]:
    """The figure in rows; intervals are over seeds."""
    found = list(seeds.values())
    trained = [seed["trained"]["own"] for seed in found]
    mean, low, high = interval(trained)
    over = f"{len(found)} seeds, 95% interval [{low:.3f}, {high:.3f}]"
    baked = [seed["baked"]["own"] for seed in found]
    rows = [
        Row(
            f"S5, {SWAPS} swaps, {STEPS} thought tokens: accuracy after RL, {over}",
            mean,
            "partial bake",
            float(np.mean(baked)),
            "fraction",
            mean / float(np.mean(baked)),
        ),
        Row("the same", mean, "wanted", WANTED_TRAINED, "fraction", mean / WANTED_TRAINED),
    ]
    gains = [
        s["trained"]["own"] - max(s["fine_tuned"].get(c, 0) for c in ("own", "none")) for s in found
    ]
    mean_gain, low, high = interval(gains)
    tuned = mean - mean_gain
    rows.append(
        Row(
            f"gain over fine-tuning for as much compute [{low:+.3f}, {high:+.3f}]",
            mean,
            "fine-tuned on answers",
            tuned,
            "fraction",
            mean / tuned,
        )
    )
    for control in CONTROLS:
        value = float(np.mean([seed["trained"][control] for seed in found]))
        what = f"the trained model, {control} thoughts (chance {CHANCE})"
        rows.append(Row(what, mean, control, value, "fraction", mean / value))
    for name, condition in (("direct", "none"), ("filler", "filler")):
        values = [seed[name][condition] for seed in found if name in seed]
        if values:
            peer = float(np.mean(values))
            what = f"a model that was trained without thoughts ({name}), {len(values)} seeds"
            rows.append(Row(what, mean, name, peer, "fraction", mean / peer))
    for seed in found:
        if "by_adamw" in seed:
            ours, peer = seed["trained"]["own"], seed["by_adamw"]["trained"]["own"]
            rows.append(
                Row(
                    "MuonGrokfast, same seed and steps",
                    ours,
                    "AdamW",
                    peer,
                    "fraction",
                    ours / peer,
                )
            )
    seconds = float(np.median([seed["seconds"] for seed in found]))
    work = "time of the reinforcement, one thread"
    rows.append(Row(work, seconds, "allowed", SECONDS_ALLOWED, "s", SECONDS_ALLOWED / seconds))
    return rows


def measure_seeds(options: argparse.Namespace, work: Path) -> dict[str, dict[str, Any]]:
    """What each seed has to say, by AdamW in ``by_adamw``."""
    wanted = [("muon_grokfast", seed) for seed in range(options.seeds)]
    wanted += [("adamw", seed) for seed in range(min(BY_ADAMW, options.seeds))]
    steps = ["--steps", str(options.steps)]
    parts = {
        f"{optimizer}_{seed}": ["--seed", str(seed), "--optimizer", optimizer, *steps]
        for optimizer, seed in wanted
    }
    measured = measure_parts(parts, work, options.jobs)
    seeds = {str(seed): measured[f"muon_grokfast_{seed}"] for seed in range(options.seeds)}
    for seed, found in seeds.items():
        if f"adamw_{seed}" in measured:
            found["by_adamw"] = measured[f"adamw_{seed}"]
    return seeds


def parse() -> argparse.Namespace:
    parser = arguments(__doc__ or "")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="seeds at once, one thread each")
    parser.add_argument("--steps", type=int, default=2900, help="of the reinforcement")
    parser.add_argument("--work", type=Path, help="where what was measured is kept")
    parser.add_argument("--seed", type=int, default=-1, help=argparse.SUPPRESS)
    parser.add_argument("--optimizer", default="muon_grokfast", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.quick:
        options.seeds, options.steps = 1, 10
    with work_directory(options.work) as work:
        if options.seed >= 0:
            found = measure(options.seed, options.steps, work, options.optimizer)
            keep_part(found, work, f"{options.optimizer}_{options.seed}")
            return
        seeds = measure_seeds(options, work)
    publish(
        rows_of(seeds),
        options.json,
        seeds=seeds,
        prompts=PROMPTS,
        thoughts=THOUGHTS,
        baked_batch=BAKED_BATCH,
    )
    draw(seeds, options.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
