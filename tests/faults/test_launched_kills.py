"""SIGKILL under torchrun and DeepSpeed's launcher, at a random moment of the whole command.

Killed are all processes at once, as when a node goes down, or one rank alone.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from distforge.errors import InputError
from distforge.training.checkpoint import verify_checkpoint
from tests.faults.short_runs import NAME, is_finished, made, weights
from tests.free_port import free_port

ROOT = Path(__file__).parents[2]
DEADLINE = 300.0
KILLS = 4
SEED = 23
SCRIPT = str(ROOT / "launch" / "step1.py")


def torchrun(port: int) -> list[str]:
    words = ["--nproc_per_node", "2", "--master_port", str(port)]
    return [sys.executable, "-m", "torch.distributed.run", *words]


def deepspeed(port: int) -> list[str]:
    launcher = str(Path(sys.executable).parent / "deepspeed")
    return [launcher, "--num_accelerators", "2", "--master_port", str(port)]


Launcher = Callable[[int], list[str]]


@contextmanager
def started(launcher: Launcher, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Step 1 on two ranks, in a process group of its own, which is gone afterwards."""
    words = ["--config", str(made() / "step1.toml"), "--output", str(folder), "--resume", "auto"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    with open(folder.with_suffix(".said"), "ab") as said:
        process = subprocess.Popen(
            [*launcher(free_port()), SCRIPT, *words],
            env={**environment, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        for child in family(process):
            child.kill()
        process.wait(DEADLINE)


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """A process and all below it; DeepSpeed's ranks are in sessions of their own."""
    try:
        root = psutil.Process(process.pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def finish(launcher: Launcher, folder: Path) -> float:
    """The run to its end; how long it took."""
    began = time.monotonic()
    with started(launcher, folder) as process:
        process.wait(DEADLINE)
    assert is_finished(folder), folder.with_suffix(".said").read_text()[-3000:]
    return time.monotonic() - began


def kill(launcher: Launcher, folder: Path, seconds: float, rng: random.Random) -> int:
    """How many processes were killed; none if the command had ended by then."""
    with started(launcher, folder) as process:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            members = family(process)
            chosen = members if rng.random() < 0.5 else [rng.choice(members)]
            for member in chosen:
                member.send_signal(signal.SIGKILL)
            process.wait(DEADLINE)
            return len(chosen)
    return 0


def faults_in(checkpoints: Sequence[Path]) -> list[str]:
    faults = []
    for path in checkpoints:
        try:
            verify_checkpoint(path)
        except InputError as error:
            faults.append(str(error))
    return faults


@pytest.mark.nightly
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("launcher", [torchrun, deepspeed])
def test_killed_under_a_launcher(launcher: Launcher, tmp_path: Path) -> None:
    rng = random.Random(SEED)
    straight = tmp_path / "straight"
    seconds = finish(launcher, straight)
    expected = weights(straight)
    killed: list[int] = []
    while sum(map(bool, killed)) < KILLS:
        assert len(killed) < 3 * KILLS, f"most commands ended before their moment: {killed}"
        folder = tmp_path / f"broken{len(killed)}"
        for _ in range(2):  # also while it is resumed
            if not is_finished(folder):
                killed.append(kill(launcher, folder, rng.uniform(0.2, 0.8) * seconds, rng))
            root = folder / NAME / "checkpoints"
            faults = faults_in([p for p in root.glob("step_*") if p.suffix != ".tmp"])
            assert not faults, faults
        if not is_finished(folder):
            finish(launcher, folder)
        assert weights(folder) == expected
    print(f"{launcher.__name__}: processes killed, by run: {killed}")
