"""What the tests of both steps share: a run in a process of its own, and its loss curve."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from distforge.telemetry import read_metrics
from distforge.telemetry.metrics import TRAIN_LOSS
from tests.free_port import free_port

ROOT = Path(__file__).parents[2]
DEADLINE = 300


def run(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )


def run_two_ranks(script: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Under DeepSpeed's launcher; its own port is the same for every job on a machine."""
    launcher = str(Path(sys.executable).parent / "deepspeed")
    command = [launcher, "--num_accelerators", "2", "--master_port", str(free_port()), script]
    return run([*command, *arguments], DS_ACCELERATOR="cpu")


def curve(directory: Path) -> dict[int, float]:
    records = read_metrics(directory / "metrics.jsonl")
    return {r.step: r.metrics[TRAIN_LOSS] for r in records if TRAIN_LOSS in r.metrics}
