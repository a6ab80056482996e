"""Whether a real pretrained model learns from questions and a verifier alone, and how fast.

    python benchmarks/bench_rl.py --model DIR --json benchmarks/results/rl.json \\
        --work rl_work [--trl PYTHON]

Arithmetic word problems (`word_problems`); the last number of an answer is checked, and no trace is
ever trained on. Each part is a process with one thread: the model as it is, `distforge think`, the
same with rewards dealt out at random (which must teach nothing), and TRL's RLOOTrainer in an
environment of its own (`python -m venv`, `pip install trl`) on the same model, questions, groups,
lengths and precision. Accuracy is greedy, over held-out problems that no run saw, by one exam.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import harness
import rl_rewards
import torch
from word_problems import write_problems

from distforge.cli import main as distforge
from distforge.evaluation.intervals import bootstrap_mean
from distforge.models.loading import load_champion
from distforge.quietstar.asked import asked_items, opening_of, read_questions, rendered
from distforge.quietstar.writing import AnswerTags, Writing
from distforge.rewards import RewardFunctions
from distforge.telemetry import metrics as names
from distforge.telemetry import read_metrics
from distforge.thinking.model import ThinkingModel
from distforge.thinking.sampling import ThoughtConfig
from distforge.training.distributed import World

SETTINGS = {
    "questions": 4,
    "group": 8,
    "max_tokens": 24,
    "temperature": 1.0,
    "steps": 30,
    "probe_every": 10,
    "lr": 5e-5,
    "kl": 0.02,
    "threads": 1,
    "train_problems": 2000,
    "heldout_problems": 300,
}
QUICK = {"steps": 3, "heldout_problems": 16, "questions": 2}


def data(work: Path, settings: dict[str, Any]) -> Path:
    """The problems, made once."""
    directory = work / "problems"
    if not (directory / "heldout.jsonl").is_file():
        write_problems(directory, 0, settings["train_problems"], settings["heldout_problems"] + 64)
    return directory


def examine(model: str, directory: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Greedy answers to the last held-out problems: how many are right, and how long it took."""
    champion = load_champion(model)
    rows = read_questions(_data_config(directory))
    rows = [row for row in rows if row.example.split == "heldout"][-settings["heldout_problems"] :]
    prompts = rendered(rows, champion.tokenizer, "")
    tags = AnswerTags.of(champion.tokenizer, champion.model, opening_of(prompts))
    thought = ThoughtConfig(max_tokens=settings["max_tokens"], closing="learned", greedy=True)
    writing = Writing(champion.tokenizer, tags, thought, RewardFunctions(("math",)))
    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    began = time.perf_counter()
    items = asked_items(rows, prompts, 1000)
    thinking = ThinkingModel.wrap(champion.model, mixing=False)
    answers = writing.answer(thinking, items, 64, world, 0)
    return {
        "right": [int(answer.reward) for answer in answers],
        "ended": sum(answer.finished for answer in answers) / len(answers),
        "seconds": time.perf_counter() - began,
        "samples": [answer.text for answer in answers[:4]],
    }


def _data_config(directory: Path) -> Any:
    from distforge.data import DataConfig

    return DataConfig(path=str(directory))


def ours(
    model: str, work: Path, settings: dict[str, Any], reward: str, seed: int
) -> dict[str, Any]:
    """`distforge think`, then the exam of what it left."""
    name = f"{reward}_{seed}"
    rl_rewards.CALLS.clear()
    problems = settings["steps"] * settings["questions"]
    words = {
        "baked": model,
        "data.path": str(data(work, settings)),
        "reward.function": f"rl_rewards:{reward}",
        "output": str(work),
        "name": name,
        "thought.max-tokens": settings["max_tokens"],
        "thought.temperature": settings["temperature"],
        "episodes.episodes": problems,
        "episodes.batch-size": settings["questions"],
        "episodes.thoughts": settings["group"],
        "episodes.schedule": "constant",
        "episodes.warmup-episodes": 0,
        "episodes.seed": seed,
        "optimizer.adamw.lr": settings["lr"],
        "optimizer.muon-grokfast.kl-coefficient": settings["kl"],
        "probe.every-steps": settings["probe_every"],
        "probe.items": 64,
        # Unlike a step's, so that the calls of both are told apart.
        "probe.batch-size": settings["questions"] * settings["group"] + 1,
        "probe.exam-items": 2,
        "checkpoint-every": 0,
        "engine.dtype": "float32",
        "telemetry.wandb-mode": "disabled",
    }
    given = [part for key, value in words.items() for part in (f"--{key}", str(value))]
    began = time.perf_counter()
    if distforge(["think", *given, "--registry.no-enabled"]) not in (0, 3):
        raise RuntimeError(f"the run {name} was refused or stopped")
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {
        "run_seconds": seconds,
        "peak_mb": peak,
        **_curve(work / name, settings),
        **examine(str(work / name / "model"), data(work, settings), settings),
    }


def _curve(run: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Rewards of each step, and its seconds."""
    records = [
        r.metrics for r in read_metrics(run / "metrics.jsonl") if names.RL["reward"] in r.metrics
    ]
    completions = settings["questions"] * settings["group"]
    # From one call of a step to the next is a whole step, where no probe came between.
    pairs = zip(rl_rewards.CALLS, rl_rewards.CALLS[1:], strict=False)
    whole = [(a, b) for a, b in pairs if a[0] == b[0] == completions]
    return {
        "rewards": [record[names.RL["reward"]] for record in records],
        "told_apart": [record[names.RL_TOLD_APART] for record in records],
        "kl": [record[names.RL["kl_divergence"]] for record in records],
        "lengths": [record[names.RL["thought_length"]] for record in records],
        "waited": [record[names.RL_WAITED] for record in records],
        "step_cpu_seconds": [b[1] - a[1] for a, b in whole],
        "step_seconds": [b[2] - a[2] for a, b in whole],
    }


def trl(model: str, work: Path, settings: dict[str, Any], python: str, seed: int) -> dict[str, Any]:
    """TRL on the same, then the same exam."""
    saved, job, result = work / f"trl_{seed}_model", work / "trl_job.json", work / "trl_result.json"
    given = {**settings, "model": model, "seed": seed, "save": str(saved), "micro_batch": 8}
    given |= {"output": str(work / "trl_out"), "train": str(data(work, settings) / "train.jsonl")}
    job.write_text(json.dumps(given), encoding="utf-8")
    peer = Path(__file__).with_name("trl_peer.py")
    subprocess.run([python, str(peer), str(job), str(result)], check=True)
    found = json.loads(result.read_text(encoding="utf-8"))
    return {**found, **examine(str(saved), data(work, settings), settings)}


def part(options: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """One of the processes."""
    kind, seed = options.part, options.seed
    if kind == "base":
        return examine(options.model, data(options.work, settings), settings)
    if kind == "trl":
        return trl(options.model, options.work, settings, options.trl, seed)
    return ours(options.model, options.work, settings, kind, seed)


def main() -> None:
    parser = harness.arguments(__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="a directory of a chat model")
    parser.add_argument("--work", type=Path, help="where parts are kept")
    parser.add_argument("--trl", default="", help="an interpreter that has TRL")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="parts at once")
    parser.add_argument("--part", default="", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    settings = SETTINGS | (QUICK if options.quick else {})
    with harness.work_directory(options.work) as work:
        options.work = work
        if options.part:
            torch.set_num_threads(settings["threads"])
            found = part(options, settings)
            harness.keep_part(found, work, f"{options.part}_{options.seed}_part")
            return
        publish(options, settings, measured(options))


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """All parts, by kind and seed."""
    kinds = [("base", 0), *(("math", seed) for seed in range(options.seeds)), ("shuffled", 0)]
    kinds += [("trl", 0)] if options.trl else []
    shared = ["--model", options.model, *(["--quick"] if options.quick else [])]
    shared += ["--trl", options.trl] if options.trl else []
    parts = {
        f"{kind}_{seed}_part": ["--part", kind, "--seed", str(seed), *shared]
        for kind, seed in kinds
    }
    return harness.measure_parts(parts, options.work, options.jobs)


def publish(options: argparse.Namespace, settings: dict[str, Any], found: dict[str, Any]) -> None:
    """The table and the file."""
    base = found["base_0_part"]["right"]
    gains, rows = {}, []
    completions = settings["questions"] * settings["group"]
    for name, one in found.items():
        if name == "base_0_part":
            continue
        pairs = zip(base, one["right"], strict=True)
        gain = bootstrap_mean([float(after - before) for before, after in pairs])
        after, before = (sum(right) / len(right) for right in (one["right"], base))
        gains[name] = {"before": before, "after": after, "gain": (gain.mean, gain.low, gain.high)}
        work = f"accuracy of {name.removesuffix('_part')}, gain [{gain.low:+.3f}, {gain.high:+.3f}]"
        rows.append(harness.Row(work, after, "model as it is", before, "share", after / before))
    if "trl_0_part" in found:
        speeds = [
            completions / statistics.median(found[name]["step_cpu_seconds"])
            for name in ("math_0_part", "trl_0_part")
        ]
        memory = [found[name]["peak_mb"] for name in ("math_0_part", "trl_0_part")]
        rows.append(
            harness.Row(
                "whole step",
                speeds[0],
                "TRL",
                speeds[1],
                "completions/s of the processor",
                speeds[0] / speeds[1],
            )
        )
        rows.append(harness.Row("peak", memory[0], "TRL", memory[1], "MB", memory[1] / memory[0]))
    harness.publish(rows, options.json, settings=settings, gains=gains, parts=found)


if __name__ == "__main__":
    main()
