"""docs/machines.md: a run that was killed, and one that was stopped, end as if nothing had been."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from distforge.cli import GOAL_MISSED, STOPPED
from tests.documented import command
from tests.documented_folder import environment, run

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]

PAGE = "docs/machines.md"
FIRST = "distforge bake --config configs/quick.toml --name mine"
LONGER = " --training.max-steps 60 --checkpoint-every 10"
DEADLINE = 300


def start_and_signal(folder: Path, line: str, number: signal.Signals) -> tuple[int, str]:
    """Send the signal once the first checkpoint is there; the status and what was said."""
    process = subprocess.Popen(
        ["bash", "-c", f"exec {line}"],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + DEADLINE
    while not (folder / "runs" / "mine" / "checkpoints" / "step_10").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no checkpoint appeared"
        try:
            process.wait(0.005)
        except subprocess.TimeoutExpired:
            continue
    psutil.Process(process.pid).send_signal(number)
    _, said = process.communicate(timeout=DEADLINE)
    return process.returncode, said


def weights(folder: Path, name: str) -> str:
    model = folder / "runs" / name / "model" / "model.safetensors"
    return hashlib.sha256(model.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, STOPPED)]
)
def test_resume_a_killed_run(folder: Path, number: signal.Signals, status: int) -> None:
    first, again = command(PAGE, FIRST), command(PAGE, f"{FIRST} --resume auto")
    ended, said = start_and_signal(folder, first + LONGER, number)
    assert ended == status, said
    assert not (folder / "runs" / "mine" / "summary.json").exists()
    if status == STOPPED:
        assert "--resume auto" in said
    done = run(folder, again + LONGER)
    assert done.returncode == GOAL_MISSED, done.stdout + done.stderr
    assert json.loads((folder / "runs" / "mine" / "summary.json").read_text())["steps"] == 60
    straight = run(folder, first.replace("--name mine", "--name straight") + LONGER)
    assert straight.returncode == GOAL_MISSED, straight.stdout + straight.stderr
    assert weights(folder, "mine") == weights(folder, "straight")
