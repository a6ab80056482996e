"""Whether a real pretrained model learns from questions and a verifier alone, and how fast.

    python benchmarks/bench_rl.py --model DIR --json benchmarks/results/rl.json \
        --work rl_work [--gsm8k DIR] [--trl PYTHON] [--seeds 3] [--jobs 2]

Arithmetic word problems (`word_problems`); the last number of an answer is checked, and no trace is
ever trained on. Each part is a process with one thread: the model as it is, `distforge think`, the
same with shuffled rewards (which must teach nothing), supervised training on the given answers for
the same time of the processor, `distforge think` on GSM8K as published, and TRL's RLOOTrainer in an
environment of its own (`python -m venv`, `pip install trl`) on the same model, questions, groups,
lengths and precision. Accuracy is greedy, over held-out problems that no run saw, by one exam.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import harness
import rl_parts
import torch

SETTINGS = {
    "questions": 4,
    "group": 8,
    "max_tokens": 24,
    "temperature": 0.7,
    "steps": 24,
    "probe_every": 12,
    "probe_items": 64,
    "lr": 2e-5,
    "kl": 0.02,
    "threads": 1,
    "train_problems": 2000,
    "heldout_problems": 500,
}
QUICK = {"steps": 3, "probe_items": 8, "heldout_problems": 16, "questions": 2}
# GSM8K asks for longer answers, of which as many fit the same time.
GSM8K = {"max_tokens": 128, "steps": 16, "probe_every": 8, "probe_items": 16}
GSM8K |= {"heldout_problems": 100}


def part(options: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """One of the processes."""
    kind, work, model = options.part, options.work, options.model
    words = rl_parts.problems(work, settings)
    if kind == "base":
        return rl_parts.examine(model, words, settings)
    if kind == "gsm8k_base":
        return rl_parts.examine(model, options.gsm8k, settings | GSM8K)
    if kind == "gsm8k":
        return rl_parts.reinforced(model, options.gsm8k, work, settings | GSM8K, "math", 0)
    if kind == "supervised":
        return rl_parts.supervised(model, words, work, settings, options.cpu_seconds)
    if kind == "trl":
        return rl_parts.trl(model, work, settings, options.trl, options.seed)
    return rl_parts.reinforced(model, words, work, settings, kind, options.seed)


def main() -> None:
    parser = harness.arguments(__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="a directory of a chat model")
    parser.add_argument("--work", type=Path, help="where parts are kept")
    parser.add_argument("--gsm8k", type=Path, help="a directory of GSM8K's train and test rows")
    parser.add_argument("--trl", default="", help="an interpreter that has TRL")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="parts at once")
    parser.add_argument("--part", default="", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--cpu-seconds", type=float, default=0.0, help=argparse.SUPPRESS)
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
    kinds += [("gsm8k_base", 0), ("gsm8k", 0)] if options.gsm8k else []
    kinds += [("trl", 0)] if options.trl else []
    found = run_parts(options, kinds)
    seconds = found["math_0_part"]["run_cpu_seconds"]
    return found | run_parts(options, [("supervised", 0)], "--cpu-seconds", str(seconds))


def run_parts(
    options: argparse.Namespace, kinds: list[tuple[str, int]], *more: str
) -> dict[str, Any]:
    """These parts, each in its process."""
    shared = ["--model", options.model, *(["--quick"] if options.quick else []), *more]
    shared += ["--gsm8k", str(options.gsm8k)] if options.gsm8k else []
    shared += ["--trl", options.trl] if options.trl else []
    parts = {
        f"{kind}_{seed}_part": ["--part", kind, "--seed", str(seed), *shared]
        for kind, seed in kinds
    }
    return harness.measure_parts(parts, options.work, options.jobs)


def publish(options: argparse.Namespace, settings: dict[str, Any], found: dict[str, Any]) -> None:
    """The table and the file."""
    gains, rows = {}, []
    for name, one in found.items():
        kind = name.removesuffix("_part")
        if kind.startswith(("base", "gsm8k_base")):
            continue
        before = "gsm8k_base_0_part" if kind.startswith("gsm8k") else "base_0_part"
        gains[kind] = gained = rl_parts.gain(found[before]["right"], one["right"])
        interval = f"gain [{gained['gain']['low']:+.3f}, {gained['gain']['high']:+.3f}]"
        rows.append(
            harness.Row(
                f"accuracy of {kind}, {interval}",
                gained["after"],
                "model as it is",
                gained["before"],
                "share",
                gained["after"] / max(gained["before"], 1 / len(one["right"])),
            )
        )
    if "trl_0_part" in found:
        rows += against_trl(found["math_0_part"], found["trl_0_part"], settings)
    harness.publish(rows, options.json, settings=settings, gsm8k=GSM8K, gains=gains, parts=found)


def against_trl(
    ours: dict[str, Any], trl: dict[str, Any], settings: dict[str, Any]
) -> list[harness.Row]:
    """Speed of whole steps and peak memory."""
    completions = settings["questions"] * settings["group"]
    mine, theirs = (completions / statistics.median(one["step_cpu_seconds"]) for one in (ours, trl))
    unit = "completions/s of the processor"
    peaks = ours["peak_mb"], trl["peak_mb"]
    return [
        harness.Row("whole step", mine, "TRL", theirs, unit, mine / theirs),
        harness.Row("peak", peaks[0], "TRL", peaks[1], "MB", peaks[1] / peaks[0]),
    ]


if __name__ == "__main__":
    main()
