"""A made-up directory of step 2, with every border case of its report in it."""

import json
import math
from pathlib import Path
from typing import Any

from distforge.data.strategies import STRATEGIES, USAGE_TYPES
from distforge.registry import write_manifest
from distforge.telemetry import RLMetrics
from distforge.telemetry import metrics as names
from distforge.telemetry.jsonl import MetricsWriter
from tests.unit.reports.run_directory import HOSTILE

STEPS = 60


def make_rl_summary() -> dict[str, Any]:
    """A run that improved on questions: one strategy, one control and the bits not measured."""
    return {
        "phase": 3,
        "step": 2,
        "improved": True,
        "task": "questions",
        "verdict": "",
        "accuracy_overall": 0.821,
        "accuracy": {**dict.fromkeys(STRATEGIES, 0.85), "self_doubt": None},
        "token_usage": dict.fromkeys(USAGE_TYPES, 0.9),
        "before_accuracy": 0.606,
        "before_accuracy_by_strategy": dict.fromkeys(STRATEGIES, 0.6),
        "controls": {"own": 0.821, "shuffled": 0.201, "random": 0.194, "filler": 0.84},
        "bits": {},
        "gain": 0.215,
        "intervals": {
            "gain": [0.198, 0.232],
            "ablation_shuffled": [0.598, 0.641],
            "ablation_random": [0.604, 0.649],
            "ablation_filler": [-0.031, -0.008],
            "ablation_none": None,
        },
        "items": 2000,
        "episodes": 9600,
        "steps": STEPS,
        "best_step": 55,
        "seconds": 312.0,
        "parameters": 106000,
        "model_dir": "runs/x/model",
        "heldout": "runs/x/data/heldout.jsonl",
        "registry_version": "rl_reasoning/2",
        "config_sha256": "a" * 64,
        "dataset_sha256": "b" * 64,
        "baked": HOSTILE,
        "baked_sha256": "e" * 64,
    }


def make_text_summary() -> dict[str, Any]:
    """A run on text that did not improve: no question was asked."""
    return {
        **make_rl_summary(),
        "task": "text",
        "improved": False,
        "verdict": "THEATRE",
        "accuracy_overall": None,
        "accuracy": {},
        "token_usage": dict.fromkeys(USAGE_TYPES),
        "before_accuracy": None,
        "before_accuracy_by_strategy": {},
        "controls": {},
        "bits": {
            "baked_with_thoughts": 3.31,
            "baked_without": 3.35,
            "trained_with_thoughts": 3.3,
            "trained_without": None,
        },
        "gain": 0.01,
        "intervals": {"gain": [-0.004, 0.024]},
    }


def rl_metrics(step: int) -> dict[str, float]:
    """What a step of the made-up run logs."""
    done = step / STEPS
    return {
        names.RL["reward"]: 0.5 + 0.3 * done + 0.05 * math.sin(9.0 * step),
        names.RL["avg_reward"]: 0.5 + 0.3 * done,
        names.RL["kl_divergence"]: 0.04 * done,
        names.RL["thought_length"]: 8.0 - done + 0.3 * math.sin(7.0 * step),
        names.RL_ENTROPY: math.nan if step == 7 else 1.2 - 0.8 * done + 0.05 * math.sin(5.0 * step),
    }


def make_probe(step: int) -> RLMetrics:
    """The probe of the made-up run at a step."""
    done = step / STEPS
    return RLMetrics(
        episode=160.0 * step,
        reward=0.5 + 0.3 * done,
        avg_reward=0.5 + 0.3 * done,
        thought_length=8.0 - done,
        kl_divergence=0.04 * done,
        ess=0.97,
        coherence_semantic=0.6 + 0.1 * done,
        coherence_syntactic=0.9 - 0.02 * done,
        coherence_predictive=0.4 + 0.4 * done,
        coherence_composite=0.63 + 0.15 * done,
        anti_theater_ablation=0.4 + 0.22 * done,
    )


def make_rl_run(directory: Path, summary: dict[str, Any]) -> str:
    """Fills ``directory``; the id of the model's manifest."""
    directory.mkdir(parents=True, exist_ok=True)
    writer = MetricsWriter(directory / "metrics.jsonl")
    for step in range(1, STEPS + 1):
        writer.write(step, rl_metrics(step))
        if step % 10 == 0:
            done = step / STEPS
            writer.write(step, make_probe(step).as_dict())
            controls = {"shuffled": 0.2, "random": 0.19, "none": 0.21, "filler": 0.22}
            levels = {"own": 0.6 + 0.22 * done, **controls}
            writer.write(step, {names.RL_ACCURACY[name]: x for name, x in levels.items()})
            writer.write(step, {names.RL_BITS_WITH_THOUGHTS: 3.31 - 0.01 * done})
    writer.close()
    (directory / "summary.json").write_text(json.dumps(summary))
    (directory / "config.toml").write_text(f'name = "{HOSTILE}"\n')
    sample = {
        "strategy": "self_doubt",
        "question": f"What is {HOSTILE}?",
        "generated": "<think>1 + 1</think>\nAnswer: 2",
        "answer": "2",
        "correct": True,
    }
    (directory / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    (directory / "model").mkdir()
    (directory / "model" / "config.json").write_text("{}")
    return write_manifest(directory / "model")
