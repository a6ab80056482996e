"""A made-up run's directory, with every border case of the report in it."""

import json
from pathlib import Path
from typing import Any

from distforge.data.strategies import STRATEGIES
from distforge.registry import write_manifest
from distforge.telemetry import metrics as names
from distforge.telemetry.jsonl import MetricsWriter
from tests.unit.telemetry.test_metrics import make_metrics

HOSTILE = "<script>alert('&')</script>"


def make_summary() -> dict[str, Any]:
    """A run that missed: one strategy just below its mark, one not measured, usage on the mark."""
    return {
        "phase": 3,
        "step": 1,
        "converged": False,
        "shortfalls": [f"self_doubt {HOSTILE}"],
        "accuracy_overall": 0.85,
        "accuracy": {
            **dict.fromkeys(STRATEGIES, 0.9),
            "self_doubt": 0.764,
            "bayesian_rationalist": None,
        },
        "token_usage": {"thinking": 0.8, "step": 0.9, "mece": 0.9, "falsify": 0.9, "doubt": 0.501},
        "champion_accuracy": 0.208,
        "champion_accuracy_by_strategy": {name: 0.2 for name in STRATEGIES if name != "self_doubt"},
        "steps": 40,
        "seconds": 125.0,
        "parameters": 1234567,
        "model_dir": "runs/x/model",
        "heldout": "runs/x/data/heldout.jsonl",
        "registry_version": "baked_reasoning/3",
        "config_sha256": "a" * 64,
        "dataset_sha256": "b" * 64,
        "champion": HOSTILE,
        "champion_sha256": "e" * 64,
    }


def make_run(directory: Path) -> str:
    """Fills ``directory``; the id of the model's manifest."""
    directory.mkdir(parents=True, exist_ok=True)
    writer = MetricsWriter(directory / "metrics.jsonl")
    for step in range(1, 41):
        loss = float("nan") if step == 7 else 2.0 / step
        writer.write(step, {names.TRAIN_LOSS: loss, names.TRAIN_TOKEN_ACCURACY: 1 - 1 / step})
    writer.write(40, make_metrics(0.0)[0].as_dict())
    writer.close()
    (directory / "summary.json").write_text(json.dumps(make_summary()))
    (directory / "config.toml").write_text(f'name = "{HOSTILE}"\n')
    samples = [
        {
            "strategy": strategy,
            "question": f"What is {HOSTILE}?",
            "generated": f"<think>{strategy}</think>\nAnswer: 2",
            "answer": "2",
            "correct": strategy != "self_doubt",
        }
        for strategy in STRATEGIES
    ]
    lines = [json.dumps(sample) + "\n" for sample in samples]
    (directory / "samples.jsonl").write_text("".join(lines))
    (directory / "model").mkdir()
    (directory / "model" / "config.json").write_text("{}")
    return write_manifest(directory / "model")
