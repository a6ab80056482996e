"""Reinforcement learning creates a capability: swap tracking in S5, with thoughts nobody labelled.

    python benchmarks/bench_s5.py --json benchmarks/results/s5.json --jobs 2

For each seed a small model is baked on true thoughts until it answers 60% greedily; then it is
reinforced on its own thoughts, with the answers alone as reward. Beside it: the same baked model
fine-tuned on answers without thoughts for as much compute, and, from scratch, a model that answers
directly and one that gets fillers. Nothing is chosen on the items that are reported. What a seed
measured is kept in --work, so that a second call continues.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Row, arguments, publish
from s5_plot import draw
from swap_tracking import (
    BAKED_BATCH,
    CHANCE,
    STEPS,
    SWAPS,
    THOUGHT,
    SupervisedTraining,
    accuracy,
    bake_partly,
    make_items,
    make_model,
    make_tokenizer,
)

from distforge.optim import MuonGrokfastConfig, OptimizerConfig
from distforge.optim.build import AdamWConfig
from distforge.quietstar import ThinkingModel, ThoughtTrainer
from distforge.quietstar.config import EpisodeConfig, LearnerConfig, ObjectiveConfig, ProbeConfig
from distforge.quietstar.tags import Tags
from distforge.telemetry import RunLogger, TelemetryConfig, read_metrics
from distforge.telemetry.metrics import RL_ACCURACY
from distforge.training.distributed import init_world
from distforge.training.engine_config import EngineConfig

WANTED_BAKED, WANTED_TRAINED, SECONDS_ALLOWED = 0.6, 0.95, 600.0
CONTROLS = ("shuffled", "random", "filler", "none")
DIRECT_STEPS, FILLER_STEPS = 1200, 900
PROMPTS, THOUGHTS = 32, 8
# Student's t at 97.5%, for intervals over 2 to 10 seeds.
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


def learner_config(steps: int, warmup: int) -> LearnerConfig:
    """AdamW at a rate that rises slowly: from a weak start, early noise does the damage."""
    return LearnerConfig(
        checkpoint_every=0,
        thought=THOUGHT,
        # Weights of the sum over a thought's eight tokens.
        objective=ObjectiveConfig(baseline="reinforce_pp", nll_weight=0.8, entropy_bonus=0.0),
        episodes=EpisodeConfig(
            episodes=steps * PROMPTS,
            batch_size=PROMPTS,
            thoughts=THOUGHTS,
            episodes_per_request=PROMPTS,
            warmup_episodes=warmup * PROMPTS,
            final_fraction=0.3,
        ),
        optimizer=OptimizerConfig(
            name="adamw",
            adamw=AdamWConfig(lr=1.5e-4, betas=(0.9, 0.99)),
            muon_grokfast=MuonGrokfastConfig.rl().replace(kl_coefficient=0.003),
        ),
        engine=EngineConfig(dtype="float32", qk_clip_every=0),
        probe=ProbeConfig(every_steps=100, items=1000, batch_size=500, coherence_items=16),
    )


def measure_seed(seed: int, steps: int, work: Path, references: bool) -> dict[str, Any]:
    """All that one seed has to say; single-threaded."""
    torch.set_num_threads(1)
    tokenizer = make_tokenizer()
    tags = Tags.from_tokenizer(tokenizer)
    probed, reported = make_items(1000, 900 + seed), make_items(2000, 800 + seed)

    def ask(model: torch.nn.Module, *conditions: str) -> dict[str, float]:
        return {c: accuracy(model, reported, tags, c) for c in conditions}

    baked, baked_steps = bake_partly(seed, tags, WANTED_BAKED, probed)
    state = {name: value.clone() for name, value in baked.state_dict().items()}
    found: dict[str, Any] = {
        "baked_steps": baked_steps,
        "baked": ask(baked, "own", "sampled", "gold", *CONTROLS),
    }
    directory = work / f"rl_{seed}"
    telemetry = TelemetryConfig(wandb_mode="disabled", console_interval_seconds=60)
    # From 60% sampled on would be safe; 60% greedy is what is asked, and reached with a slow start.
    config = learner_config(steps, warmup=max(1, steps // 15))
    items = make_items(steps * PROMPTS, 700 + seed)
    with RunLogger(directory, telemetry, {}, f"s5-{seed}") as log:
        trainer = ThoughtTrainer(
            ThinkingModel.wrap(baked, mixing=False),
            tokenizer,
            items,
            probed,
            config,
            init_world(),
            log,
            directory,
        )
        torch.set_num_threads(1)
        began, used = time.perf_counter(), time.process_time()
        trainer.train()
    found["seconds"] = time.perf_counter() - began
    found["cpu_seconds"] = time.process_time() - used
    trained = ThinkingModel.from_pretrained(trainer.save_model(directory / "model"))
    found["trained"] = ask(trained, "own", "sampled", "gold", *CONTROLS)
    found["curve"] = [
        [record.step, record.seconds, record.metrics[RL_ACCURACY["own"]]]
        for record in read_metrics(directory / "metrics.jsonl")
        if RL_ACCURACY["own"] in record.metrics
    ]
    tuned = make_model(seed)
    tuned.load_state_dict(state)
    found["fine_tuned"] = _fine_tune(tuned, tags, seed, found["cpu_seconds"], ask)
    if references:
        for name, thought, most in (
            ("direct", "none", DIRECT_STEPS),
            ("filler", "filler", FILLER_STEPS),
        ):
            model = make_model(seed)
            SupervisedTraining(model, tags, thought, seed + 50).run(min(most, 4 * steps))
            found[name] = ask(model, "none" if thought == "none" else "filler")
    return found


def _fine_tune(
    model: torch.nn.Module, tags: Tags, seed: int, cpu_seconds: float, ask: Any
) -> dict[str, Any]:
    """On answers without thoughts, with the rate of the reinforcement, for as much CPU time."""
    training = SupervisedTraining(model, tags, "none", seed + 100, lr=1.5e-4)
    began = time.process_time()
    while time.process_time() - began < cpu_seconds:
        training.run(10)
    return {"steps": training.steps, **ask(model, "own", "none")}


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
    seconds = float(np.median([seed["seconds"] for seed in found]))
    rows.append(
        Row(
            "time of the reinforcement, one thread",
            seconds,
            "allowed",
            SECONDS_ALLOWED,
            "s",
            SECONDS_ALLOWED / seconds,
        )
    )
    return rows


def run_seeds(options: argparse.Namespace, work: Path) -> dict[str, dict[str, Any]]:
    """Each seed in a process of its own, ``--jobs`` at once; those that are kept are read."""
    waiting = [s for s in range(options.seeds) if not (work / f"seed_{s}.json").exists()]
    running: dict[int, subprocess.Popen[bytes]] = {}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        while waiting or running:
            while waiting and len(running) < options.jobs:
                seed = waiting.pop(0)
                command = [sys.executable, __file__, "--seed", str(seed), "--work", str(work)]
                command += ["--json", str(work / "unused.json")]
                command += ["--steps", str(options.steps)] + ["--quick"] * options.quick
                running[seed] = subprocess.Popen(command, env=environment)
            seed, process = next(iter(running.items()))
            if process.wait(timeout=3600):
                raise RuntimeError(f"seed {seed} ended with status {process.returncode}")
            del running[seed]
    finally:
        for process in running.values():
            process.kill()
    return {
        str(seed): json.loads((work / f"seed_{seed}.json").read_text())
        for seed in range(options.seeds)
    }


def parse() -> argparse.Namespace:
    parser = arguments(__doc__ or "")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="seeds at once, one thread each")
    parser.add_argument("--steps", type=int, default=1600, help="of the reinforcement")
    parser.add_argument("--work", type=Path, help="where what was measured is kept")
    parser.add_argument("--seed", type=int, default=-1, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.quick:
        options.seeds, options.steps = 1, 10
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        if options.seed >= 0:
            found = measure_seed(options.seed, options.steps, work, references=options.seed < 2)
            (work / f"seed_{options.seed}.json").write_text(json.dumps(found, indent=1))
            return
        seeds = run_seeds(options, work)
    publish(rows_of(seeds), options.json, seeds=seeds, prompts=PROMPTS, baked_batch=BAKED_BATCH)
    if options.json:
        draw(seeds, Path(options.json).with_suffix(".png"))


if __name__ == "__main__":
    main()
