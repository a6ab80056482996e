"""keep_running.sh over real launchers: the documented exit statuses, and a stop that saves once."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.distributed.harness import run_ranks
from tests.faults.test_stop_signal import DEADLINE, ROOT, bake, digest, wait_for_file
from tests.free_port import free_port

RANKS = 2
LAUNCHERS = {
    "torchrun": ["--standalone", "--nproc_per_node", str(RANKS)],
    "deepspeed": ["--num_accelerators", str(RANKS)],
}


def start(
    launcher: str, config: Path, output: Path, cwd: Path, *more: str
) -> subprocess.Popen[str]:
    program = str(Path(sys.executable).parent / launcher)
    command = [str(ROOT / "launch" / "keep_running.sh"), program, *LAUNCHERS[launcher], *more]
    if launcher == "deepspeed":  # its own port is the same for every job on a machine
        command += ["--master_port", str(free_port())]
    command += [str(ROOT / "launch" / "step1.py"), "--config", str(config)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
    }
    return subprocess.Popen(
        [*command, "--output", str(output), "--existing", "replace"],
        cwd=cwd,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def launchers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """What stands between keep_running.sh and the ranks, from the top: DeepSpeed has two."""
    parent = ranks(process)[0].parent()
    assert parent is not None
    return [each for each in [*reversed(parent.parents()), parent] if process.pid in above(each)]


def above(process: psutil.Process) -> list[int]:
    return [each.pid for each in process.parents()]


def ranks(process: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    """The training processes, by rank."""
    found = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        if "step1.py" in " ".join(child.cmdline()) and "RANK" in (environment := child.environ()):
            found[int(environment["RANK"])] = child
    return found


@pytest.fixture(scope="module")
def straight(config: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the weights of an unbroken run on as many ranks hash to."""
    output = tmp_path_factory.mktemp("straight")
    words = ["--config", str(config), "--output", str(output)]
    assert set(run_ranks(RANKS, bake, words, 0, 0, 0)) == {3}
    return digest(output / "tiny")


@pytest.mark.nightly
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_missed_goal_ends_it_once_and_a_second_start_says_so(
    config: Path, straight: str, tmp_path: Path, launcher: str
) -> None:
    for _ in range(2):
        process = start(launcher, config, tmp_path / "runs", tmp_path)
        _, said = process.communicate(timeout=DEADLINE)
        assert process.returncode == 3, said
        assert "starting it again" not in said
        assert digest(tmp_path / "runs" / "tiny") == straight


@pytest.mark.nightly
def test_without_its_hostfile_nothing_is_trained(config: Path, tmp_path: Path) -> None:
    """DeepSpeed would train on this machine alone."""
    process = start("deepspeed", config, tmp_path / "runs", tmp_path, "--hostfile", "absent")
    _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == 2, said
    assert f"the hostfile {tmp_path}/absent is not there, so only this machine would train" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.nightly
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_one_rank_that_is_told_has_all_save_once_and_go_on(
    config: Path, straight: str, tmp_path: Path, launcher: str
) -> None:
    process = start(launcher, config, tmp_path / "runs", tmp_path)
    wait_for_file(tmp_path / "runs" / "tiny" / "checkpoints" / "step_3", process)
    ranks(process)[1].send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == 3, said
    assert said.count("the run ended with status 75; starting it again") == 1
    assert digest(tmp_path / "runs" / "tiny") == straight


@pytest.mark.nightly
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_told_to_stop_it_ends_with_75_and_goes_on_later(
    config: Path, straight: str, tmp_path: Path, launcher: str
) -> None:
    process = start(launcher, config, tmp_path / "runs", tmp_path)
    wait_for_file(tmp_path / "runs" / "tiny" / "checkpoints" / "step_3", process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == 75, said
    process = start(launcher, config, tmp_path / "runs", tmp_path)
    _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == 3, said
    assert digest(tmp_path / "runs" / "tiny") == straight


@pytest.mark.nightly
@pytest.mark.parametrize("launcher, which", [("torchrun", 0), ("deepspeed", 0), ("deepspeed", 1)])
def test_ranks_whose_launcher_was_killed_save_once_and_end(
    config: Path, straight: str, tmp_path: Path, launcher: str, which: int
) -> None:
    process = start(launcher, config, tmp_path / "runs", tmp_path)
    wait_for_file(tmp_path / "runs" / "tiny" / "checkpoints" / "step_3", process)
    before = list(ranks(process).values())
    launchers(process)[which].kill()
    _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == 3, said
    saved = re.findall(r"stopped by a signal: step (\d) of 8 is saved", said)
    assert (len(saved), len(set(saved))) == (RANKS, 1), said
    assert said.count("starting it again") == 1, said
    assert not any(rank.is_running() for rank in before)
    assert digest(tmp_path / "runs" / "tiny") == straight
