"""What step 1 is worth, and what a step costs.

    python benchmarks/bench_step.py --run runs/quick --json benchmarks/results/step.json

Without ``--run`` the baked model is trained first, as `distforge run` does.

Accuracy: the baked model against its champion, and against a control from the same champion that
learns to answer at once and is trained on as many tokens. Where the control stays far below, the
tasks need the reasoning that was baked in. Time: one optimizer step of MuonGrokfast against AdamW.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from harness import Row, arguments, publish, step1_config

from distforge.baking import Step1Config, Step1Summary, run_step1_baking
from distforge.champion.make import ensure_champion
from distforge.config import load_config
from distforge.data import ReasoningDataset, load_data
from distforge.models.loading import load_champion
from distforge.optim import build_optimizer
from distforge.training.distributed import World, init_world
from distforge.training.engine import TrainingEngine
from distforge.training.supervised import SupervisedLoop

TIMED_STEPS = 12
QUICK_STEPS = 40


def run(config: Step1Config, target: str, steps: int, output: str) -> Step1Summary:
    """Step 1 from the same champion on the same questions, with another target."""
    return run_step1_baking(
        replace(
            config,
            name=target,
            output=output,
            target=target,
            training=replace(config.training, max_steps=steps),
            registry=replace(config.registry, enabled=False),
        )
    )


def mean_length(config: Step1Config, *, direct: bool) -> float:
    """Mean tokens of a training example, with the reasoning or without."""
    train = [e for e in load_data(config.data) if e.split == "train"]
    tokenizer = load_champion(config.champion.path).tokenizer
    dataset = ReasoningDataset(
        train, tokenizer, config.data.max_length, direct=[direct] * len(train)
    )
    return statistics.mean(dataset.lengths)


def step_seconds(config: Step1Config, world: World) -> dict[str, float]:
    """Median seconds of an optimizer step, by optimizer; the two take turns, step by step."""
    champion = load_champion(config.champion.path)
    train = [e for e in load_data(config.data) if e.split == "train"]
    dataset = ReasoningDataset(train, champion.tokenizer, config.data.max_length)
    steps = {}
    for name in ("muon_grokfast", "adamw"):
        optimizer = replace(config.optimizer, name=name)
        engine = TrainingEngine(
            load_champion(config.champion.path).model,
            lambda module, optimizer=optimizer: build_optimizer(module, optimizer),
            config.engine,
            world,
            config.training.micro_batches,
        )
        loop = SupervisedLoop(
            engine, dataset, config.training, world, champion.tokenizer.pad_token_id
        )
        steps[name] = loop.steps()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(TIMED_STEPS + 2):
        for name, records in steps.items():
            began = time.perf_counter()
            next(records)
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values[2:]) for name, values in times.items()}


def finished_run(directory: Path) -> tuple[Step1Config, Step1Summary]:
    """Configuration and summary of a run that has ended."""
    config = load_config(Step1Config, directory / "config.toml", [])
    return config, Step1Summary.read(directory / "summary.json")


def accuracy_rows(baked: Step1Summary, direct: Step1Summary) -> list[Row]:
    """The baked model against its champion, asked both ways, and against the control."""
    work = f"held-out accuracy after {baked.steps} steps, {baked.questions} questions"
    return [
        Row(
            work,
            baked.accuracy_overall,
            name,
            value,
            "fraction",
            baked.accuracy_overall / max(value, 1e-9),
        )
        for name, value in (
            ("champion, unprompted", baked.champion_accuracy),
            ("champion, prompted", baked.champion_prompted_accuracy),
            (f"direct answers, {direct.steps} steps (as many tokens)", direct.accuracy_overall),
        )
    ]


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--config", type=Path, default=Path("configs/quick.toml"))
    parser.add_argument("--run", type=Path, help="a finished run, in place of training one")
    options = parser.parse_args()
    world = init_world()
    if options.run:
        config, baked = finished_run(options.run)
    else:
        config = step1_config(options.config)
        ensure_champion(config.champion, config.engine, config.data.max_length, world)
    steps = QUICK_STEPS if options.quick else config.training.max_steps
    longer = mean_length(config, direct=False) / mean_length(config, direct=True)
    with tempfile.TemporaryDirectory() as output:
        if not options.run:
            baked = run(config, "reasoning", steps, output)
        direct = run(config, "direct", round(steps * longer), output)
    seconds = step_seconds(config, world)
    rows = accuracy_rows(baked, direct)
    rows.append(
        Row(
            f"optimizer step, batch {config.training.batch_size}, {baked.parameters / 1e6:.1f}M",
            seconds["muon_grokfast"],
            "torch AdamW, same engine",
            seconds["adamw"],
            "s",
            seconds["adamw"] / seconds["muon_grokfast"],
        )
    )
    publish(
        rows,
        options.json,
        accuracy_by_strategy={
            "baked": baked.accuracy,
            "direct": direct.accuracy,
            "champion": baked.champion_accuracy_by_strategy,
        },
        seconds={"baked": baked.seconds, "direct": direct.seconds},
    )


if __name__ == "__main__":
    main()
