"""TRL's RLOOTrainer on one job; run by the interpreter that has TRL.

    python benchmarks/trl_peer.py JOB.json RESULT.json

The job names model, questions, seed and sizes. Float32, transformers' own generation.
It knows nothing of distforge, but for the verifier, which is given as text: the last number of a
completion is the answer.
"""

from __future__ import annotations

import json
import re
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import RLOOConfig, RLOOTrainer

_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?")


def right(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """1 where the last number is the answer."""
    found = []
    for completion, truth in zip(completions, answer, strict=True):
        numbers = _NUMBER.findall(completion[0]["content"])
        last = numbers[-1].replace(",", "").replace("$", "") if numbers else "nan"
        found.append(float(float(last) == float(truth)))
    return found


def asked(row: dict[str, str]) -> dict[str, Any]:
    """The row as TRL wants it: a conversation, which it renders through the model's template."""
    return {"prompt": [{"role": "user", "content": row["question"]}], "answer": row["answer"]}


class Clock(TrainerCallback):  # type: ignore[misc]
    """When each step ended, in seconds of the processor and of the clock."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.ends.append((time.process_time(), time.perf_counter()))

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append((time.process_time(), time.perf_counter()))


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    rows = [json.loads(line) for line in Path(job["train"]).read_text("utf-8").splitlines()]
    questions = Dataset.from_list([asked(row) for row in rows])
    config = RLOOConfig(
        output_dir=job["output"],
        per_device_train_batch_size=job["micro_batch"],
        gradient_accumulation_steps=job["questions"] * job["group"] // job["micro_batch"],
        num_generations=job["group"],
        max_completion_length=job["max_tokens"],
        max_steps=job["steps"],
        learning_rate=job["lr"],
        lr_scheduler_type="constant",
        beta=job["kl"],
        temperature=job["temperature"],
        seed=job["seed"],
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=1.0,
        save_strategy="no",
        report_to=[],
        logging_steps=1,
    )
    clock = Clock()
    trainer = RLOOTrainer(
        model=AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        reward_funcs=right,
        args=config,
        train_dataset=questions,
        callbacks=[clock],
    )
    trainer.train()
    if job["save"]:
        trainer.save_model(job["save"])
        AutoTokenizer.from_pretrained(job["model"]).save_pretrained(job["save"])
    pairs = list(zip(clock.ends, clock.ends[1:], strict=False))
    result = {
        "step_cpu_seconds": [after[0] - before[0] for before, after in pairs],
        "step_seconds": [after[1] - before[1] for before, after in pairs],
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "rewards": [r["reward"] for r in trainer.state.log_history if "reward" in r],
        "lengths": [
            r["completions/mean_length"]
            for r in trainer.state.log_history
            if "completions/mean_length" in r
        ],
        "versions": {name: version(name) for name in ("trl", "transformers", "torch")},
    }
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
