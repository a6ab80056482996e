"""Told to stop: every rank saves at one step and exits 75; started again, the run ends the same."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from distforge.baking.supervised.trainer import PromptBakingTrainer
from distforge.cli import main
from distforge.telemetry import read_metrics
from distforge.telemetry.metrics import BAKING_LOSS, TRAIN_LOSS
from distforge.training.checkpoint import verify_checkpoint
from distforge.training.distributed import World
from tests.distributed.harness import run_ranks

ROOT = Path(__file__).parents[2]
DEADLINE = 240
STEPS = 8


def bake(world: World, words: list[str], step: int, rank: int, number: int) -> int:
    """``distforge bake`` on this rank; rank ``rank`` signals itself in optimizer step ``step``."""
    genuine = PromptBakingTrainer._after_step

    def tell(trainer, record):
        if trainer.loop.step == step and world.rank == rank:
            os.kill(os.getpid(), number)
        genuine(trainer, record)

    PromptBakingTrainer._after_step = tell
    return main(["bake", *words])


def curve(run: Path, name: str) -> list[tuple[int, float]]:
    records = read_metrics(run / "metrics.jsonl")
    return [(r.step, r.metrics[name]) for r in records if name in r.metrics]


def tensors(value, prefix: str = "") -> dict[str, torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return {prefix: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    nested = [(k, v) for k, v in items if isinstance(v, dict | list | tuple | torch.Tensor)]
    return {n: t for k, v in nested for n, t in tensors(v, f"{prefix}.{k}").items()}


def assert_same_checkpoint(ours: Path, theirs: Path) -> None:
    names = {p.relative_to(theirs) for p in theirs.rglob("*.pt")}
    assert names
    assert names == {p.relative_to(ours) for p in ours.rglob("*.pt")}
    for name in names:
        one, two = (tensors(torch.load(r / name, weights_only=False)) for r in (ours, theirs))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in two), name


@pytest.fixture(scope="module")
def straight(config: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Unbroken runs, by the number of ranks."""
    runs = {}
    for size in (1, 2):
        output = tmp_path_factory.mktemp(f"straight{size}")
        words = ["--config", str(config), "--output", str(output)]
        assert set(run_ranks(size, bake, words, 0, 0, 0)) == {3}
        runs[size] = output / "tiny"
    return runs


# Step 5 is any step, step 4 is due for an evaluation, which then waits for the resumed run.
@pytest.mark.parametrize(
    "step, number", [(5, signal.SIGTERM), pytest.param(4, signal.SIGINT, marks=pytest.mark.nightly)]
)
def test_one_rank_of_two_is_told(
    config: Path, straight: dict[int, Path], tmp_path: Path, step: int, number: int
) -> None:
    words = ["--config", str(config), "--output", str(tmp_path)]
    assert run_ranks(2, bake, words, step, 1, number) == [75, 75]
    checkpoints = tmp_path / "tiny" / "checkpoints"
    assert (checkpoints / "latest").read_text() == f"step_{step}\n"
    assert not (tmp_path / "tiny" / "summary.json").exists()
    # --existing replace would start over; what starts a run again says --resume auto.
    words += ["--existing", "replace", "--resume", "auto"]
    assert run_ranks(2, bake, words, 0, 0, 0) == [3, 3]
    expected = straight[2]
    assert_same_checkpoint(checkpoints / "step_8", expected / "checkpoints" / "step_8")
    for name in (TRAIN_LOSS, BAKING_LOSS):
        assert curve(tmp_path / "tiny", name) == curve(expected, name)
    for key in ("best_step", "accuracy_overall", "token_usage"):
        ours, theirs = (
            json.loads((run / "summary.json").read_text())[key]
            for run in (tmp_path / "tiny", expected)
        )
        assert ours == theirs


def bake_apart(world: World, config: str, folder: str, step: int, *more: str) -> int:
    """`bake` where each rank's node has a disk of its own; the last rank signals itself."""
    words = ["--config", config, "--output", f"{folder}/node{world.rank}", *more]
    return bake(world, words, step, world.size - 1, signal.SIGTERM)


def test_on_nodes_with_a_disk_each_the_run_lies_on_the_first(
    config: Path, straight: dict[int, Path], tmp_path: Path
) -> None:
    """The other one comes back with an empty disk, as when it was replaced."""
    words, runs = (str(config), str(tmp_path)), [tmp_path / f"node{n}" / "tiny" for n in (0, 1)]
    assert run_ranks(2, bake_apart, *words, 5) == [75, 75]
    verify_checkpoint(runs[0] / "checkpoints" / "step_5")
    assert not list((runs[1] / "checkpoints").iterdir())
    shutil.rmtree(tmp_path / "node1")
    assert run_ranks(2, bake_apart, *words, 0, "--resume", "auto") == [3, 3]
    assert curve(runs[0], TRAIN_LOSS) == curve(straight[2], TRAIN_LOSS)
    assert {digest(run) for run in runs} == {digest(straight[2])}
    assert run_ranks(2, bake_apart, *words, 0, "--resume", "auto") == [3, 3]  # it is finished


@pytest.mark.nightly
@pytest.mark.parametrize("stage", ["1", "2", "3"])
@pytest.mark.parametrize("before", [1, 2])
def test_shards_of_nodes_with_a_disk_each(
    config: Path, tmp_path: Path, stage: str, before: int
) -> None:
    """Also those that are converted, for another number of ranks."""
    more = ("--engine.zero_stage", stage, "--resume", "auto")
    words = (str(config), str(tmp_path))
    assert run_ranks(before, bake_apart, *words, 5, *more) == [75] * before
    assert run_ranks(2, bake_apart, *words, 0, *more) == [3, 3]
    alone = ["--config", str(config), "--output", str(tmp_path / "whole"), *more]
    assert run_ranks(2, bake, alone, 0, 0, 0) == [3, 3]
    ours, theirs = (
        [value for _, value in curve(run / "tiny", TRAIN_LOSS)]
        for run in (tmp_path / "node0", tmp_path / "whole")
    )
    assert ours == pytest.approx(theirs, rel=0 if before == 2 else 1e-4)


def test_told_outside_of_training_ends_at_once(config: Path, tmp_path: Path) -> None:
    words = ["--config", str(config), "--output", str(tmp_path)]
    assert run_ranks(1, told_while_judging, words) == [75]
    assert run_ranks(1, bake, words, 0, 0, 0) == [3]
    assert (tmp_path / "tiny" / "model" / "manifest.json").exists()


def told_while_judging(world: World, words: list[str]) -> int:
    from distforge.baking import step1

    genuine = step1._ask_exported

    def tell(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return genuine(*arguments)

    step1._ask_exported = tell
    return main(["bake", *words])


def digest(run: Path) -> str:
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()


def start(config: Path, output: Path) -> subprocess.Popen[str]:
    command = [str(ROOT / "launch" / "keep_running.sh"), sys.executable]
    command += [str(ROOT / "launch" / "step1.py"), "--config", str(config)]
    command += ["--output", str(output), "--existing", "replace"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
    }
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for_file(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not path.exists():
        assert process.poll() is None, process.stderr.read() if process.stderr else process.args
        assert time.monotonic() < deadline, f"{path} did not appear"
        try:
            process.wait(0.005)
        except subprocess.TimeoutExpired:
            continue


@pytest.mark.nightly
def test_the_launcher_starts_a_killed_run_again(
    config: Path, straight: dict[int, Path], tmp_path: Path
) -> None:
    process = start(config, tmp_path)
    wait_for_file(tmp_path / "tiny" / "checkpoints" / "step_3", process)
    [run] = psutil.Process(process.pid).children()
    run.kill()
    _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == 3, said
    assert "ended with status 137; starting it again" in said
    assert digest(tmp_path / "tiny") == digest(straight[1])
    assert curve(tmp_path / "tiny", TRAIN_LOSS)[-1] == curve(straight[1], TRAIN_LOSS)[-1]


@pytest.mark.nightly
def test_the_launcher_passes_a_stop_on(config: Path, tmp_path: Path) -> None:
    process = start(config, tmp_path)
    wait_for_file(tmp_path / "tiny" / "metrics.jsonl", process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == 75, said
    assert "stopped by a signal" in said
    assert not (tmp_path / "tiny" / "summary.json").exists()
