"""Who starts a run again: what is started again, what is not, and how it ends, by real shells.

The launched program stands in for a training: it tells its outcome as ``distforge`` does, but needs
no torch. `test_stop_signal.py` has the real one.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.free_port import free_port

ROOT = Path(__file__).parents[2]
DEADLINE = 60

# Ends the n-th time as the n-th word says: a status of distforge's, an error, or a signal. A word
# with "+" saves a checkpoint before. What it is started with is noted.
PROGRAM = """
import os, sys, signal, time
from pathlib import Path
from distforge import cli
from distforge.errors import RunStopped
from distforge.training.outcome import works_on

run = Path("run")
(run / "checkpoints").mkdir(parents=True, exist_ok=True)
with open("starts", "a") as starts:
    starts.write(" ".join(sys.argv[2:]) + "\\n")
number = len(open("starts").readlines())
words = sys.argv[1].split(",")
word = words[min(number, len(words)) - 1]

def work(_):
    works_on(run)
    if word.endswith("+"):
        (run / "checkpoints" / "latest").write_text(f"step_{number}")
    what = word.rstrip("+")
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what in ("wait", "slow", "deaf"):
        def stop(*_):
            time.sleep(2 * (what == "slow"))
            raise RunStopped("step 3 of 9 is saved")
        signal.signal(signal.SIGTERM, signal.SIG_IGN if what == "deaf" else stop)
        os.mkfifo("never")
        Path("begun").write_text(str(os.getpid()))
        os.replace("begun", "waits")
        open("never")
    if what == "peer":
        raise RuntimeError("Connection closed by peer")
    if not what.isdigit():
        raise KeyError(f"{what} in batch {number}")
    return int(what)

cli._dispatch = work
sys.exit(cli.main([]))
"""
# As torchrun does it: passes SIGTERM on, and turns every status but 0 into 1.
TORCHRUN = """#!/usr/bin/env bash
trap 'kill -TERM "$child"' TERM
"$@" & child=$!
wait "$child"; status=$?
while kill -0 "$child" 2>/dev/null; do wait "$child"; status=$?; done
((status == 0)) || exit 1
"""
# As DeepSpeed's launcher does it: tells its ranks, and is gone.
DEEPSPEED = """#!/usr/bin/env bash
"$@" & child=$!
trap 'kill -TERM "$child"; exit 143' TERM
wait "$child"
"""


def script(path: Path, text: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def program(tmp_path: Path, monkeypatch) -> list[str]:
    """Under the stand-in for torchrun."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "program.py").write_text(PROGRAM)
    return [script(tmp_path / "torchrun", TORCHRUN), sys.executable, "program.py"]


def keep_running(
    command: list[str], seconds: float = DEADLINE, **environment: str
) -> tuple[int, int, str]:
    """Exit status, how often it was started, and what was said."""
    done = subprocess.run(
        [str(ROOT / "launch" / "keep_running.sh"), *command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    starts = Path("starts").read_text(encoding="utf-8").splitlines()
    assert set(starts) == {"--resume auto"}
    assert not list(Path().glob(".keep_running.*"))
    return done.returncode, len(starts), done.stderr


@pytest.mark.parametrize(
    "plan, status, starts",
    [
        ("0", 0, 1),
        ("3", 3, 1),
        ("2", 2, 1),
        ("75,3", 3, 2),
        ("kill,kill,kill,0", 0, 4),
        ("peer,peer,peer,0", 0, 4),
        ("bug", 1, 2),
        ("bug+", 1, 4),  # a new checkpoint each time: until MAX_RESTARTS
        ("bug,other,bug,bug", 1, 4),
        ("bug,kill,bug,0", 0, 4),
    ],
)
def test_what_is_started_again(program, plan: str, status: int, starts: int) -> None:
    found = keep_running([*program, plan], MAX_RESTARTS="3")
    assert found[:2] == (status, starts), found[2]


def test_an_error_that_comes_always_is_named(program) -> None:
    _, _, said = keep_running([*program, "bug"])
    assert "the same error came twice without a new checkpoint, so it will come again: " in said
    assert "KeyError: 'bug in batch 2'" in said


def test_a_status_that_nobody_told_is_the_launcher_s(program) -> None:
    command = ["bash", "-c", 'echo "--resume auto" >> starts; exit 3', "it"]
    assert keep_running(command)[:2] == (3, 1)


def test_a_rank_that_crashed_is_why_the_others_were_stopped(program) -> None:
    told = 'printf \'{\\n  "status": 1,\\n  "ended": "crashed",\\n  "why": "E"\\n}\\n\''
    command = ["bash", "-c", f'{told} > "$DISTFORGE_OUTCOME.rank1"; "$@"', "it", *program, "75"]
    status, starts, said = keep_running(command)
    assert (status, starts) == (1, 2), said


def test_a_launcher_that_fails_before_anything_began_is_started_twice(program) -> None:
    command = ["bash", "-c", 'echo "--resume auto" >> starts; exit 1', "it"]
    status, starts, said = keep_running(command)
    assert (status, starts) == (1, 2), said
    assert "the launcher failed twice before distforge began" in said
    assert "distforge doctor --hostfile FILE" in said


def test_what_another_node_was_refused_is_the_launcher_s_to_say(program) -> None:
    """On a disk that rank 0 does not see: it has lost a rank, and does not know why."""
    status, starts, said = keep_running(["bash", "-c", '"$@"; exit 2', "it", *program, "peer"])
    assert (status, starts) == (2, 1), said


def test_deepspeed_is_given_a_file_of_what_it_would_not_pass_on(program, monkeypatch) -> None:
    """It passes on MLFLOW*, PYTHON* and few more; the file of the user's own stays in force."""
    Path("home").mkdir()
    Path("home", ".deepspeed_env").write_text("HF_HOME=/models", encoding="utf-8")
    Path(".deepspeed_env").write_text("A=1\n\nB=2=3\n", encoding="utf-8")
    monkeypatch.setenv("HOME", str(Path("home").resolve()))
    monkeypatch.setenv("DISTFORGE_JOIN_SECONDS", "7")
    monkeypatch.delenv("DS_ENV_FILE", raising=False)
    command = ["bash", "-c", 'cp "$DS_ENV_FILE" passed; "$@"', "it", *program, "0"]
    assert keep_running(command)[:2] == (0, 1)
    passed = Path("passed").read_text(encoding="utf-8").splitlines()
    assert {"HF_HOME=/models", "A=1", "B=2=3", "DISTFORGE_JOIN_SECONDS=7"} <= {*passed}
    assert passed[-1].startswith(f"DISTFORGE_OUTCOME={Path().resolve()}/.keep_running.")
    assert all("=" in line for line in passed)  # DeepSpeed fails on any other


# What DeepSpeed's launcher calls: each host is this machine, in an environment of its own.
SSH = """#!/bin/sh
echo 127.0.0.1
"""
PDSH = """#!/usr/bin/env bash
while [[ $1 == -* ]]; do case $1 in -S) shift ;; *) host=$2; shift 2 ;; esac; done
# Told to stop, the launcher has pkill end all of DeepSpeed's on its hosts: here every other test's.
[[ $1 == pkill* ]] && exit
worst=0 n=0
for _ in ${host//,/ }; do
  env -i HOME="$HOME" PATH="$PATH" sh -c "${*//%n/$n}" & pids+=($!); n=$((n + 1))
done
for pid in "${pids[@]}"; do wait "$pid"; s=$?; ((s > worst)) && worst=$s; done
exit "$worst"
"""


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_over_ssh_the_outcome_comes_back(program, tmp_path: Path, monkeypatch) -> None:
    """Without it the launcher tells that a run crashed, not that the error came before."""
    for name, text in (("ssh", SSH), ("pdsh", PDSH)):
        script(tmp_path / "bin" / name, text)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    Path("hosts").write_text("node-1 slots=1\nnode-2 slots=1\n", encoding="utf-8")
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--hostfile", "hosts"]
    launcher += ["--master_port", str(free_port()), "--no_local_rank", "program.py", "bug"]
    status, _, said = keep_running(launcher, MAX_RESTARTS="3", seconds=500)
    assert "the same error came twice without a new checkpoint, so it will come again: " in said
    assert status == 1


def test_a_node_whose_disk_has_no_word_of_rank_0_knows_how_its_own_rank_ended(program) -> None:
    status, starts, said = keep_running([*program, "75,3"], RANK="1", LOCAL_RANK="0")
    assert (status, starts) == (3, 2), said


def wait_until(condition, process: subprocess.Popen[str]) -> None:
    deadline = DEADLINE * 200
    while not condition():
        assert process.poll() is None, process.stderr.read()
        deadline -= 1
        assert deadline
        try:
            process.wait(0.005)
        except subprocess.TimeoutExpired:
            continue


def test_told_to_stop_it_saves_once_and_ends_with_75(program) -> None:
    process = subprocess.Popen(
        [str(ROOT / "launch" / "keep_running.sh"), *program, "wait"],
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(Path("waits").exists, process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == 75, said
    assert said.count("stopped by a signal: step 3 of 9 is saved") == 1
    assert len(Path("starts").read_text(encoding="utf-8").splitlines()) == 1


@pytest.mark.parametrize("word, seconds, status", [("slow", "60", 75), ("deaf", "1", 143)])
def test_ranks_that_outlive_their_launcher_are_waited_for(
    program, tmp_path: Path, word: str, seconds: str, status: int
) -> None:
    launcher = script(tmp_path / "deepspeed", DEEPSPEED)
    process = subprocess.Popen(
        [str(ROOT / "launch" / "keep_running.sh"), launcher, *program[1:], word],
        env={**os.environ, "STOP_SECONDS": seconds},
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(Path("waits").exists, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == status
        assert len(Path("starts").read_text(encoding="utf-8").splitlines()) == 1
    finally:
        if word == "deaf":
            os.kill(int(Path("waits").read_text(encoding="utf-8")), signal.SIGKILL)


# srun runs a launcher on every node, here on one, and passes SIGTERM on; scontrol names the nodes,
# and puts the job back into the queue: which is noted.
SRUN = TORCHRUN.replace("trap", "while [[ $1 == --* ]]; do shift; done\ntrap", 1).replace(
    "((status == 0)) || exit 1", 'exit "$status"'
)
SCONTROL = """#!/usr/bin/env bash
case $1 in show) echo node-1 ;; *) echo "$*" >> requeued ;; esac
"""
# What the job starts as torchrun: the program, without torchrun's and the job's words.
JOB_TORCHRUN = """#!/usr/bin/env bash
trap 'kill -TERM "$child"' TERM
"$PYTHON" program.py "$PLAN" --resume auto & child=$!
wait "$child"; status=$?
while kill -0 "$child" 2>/dev/null; do wait "$child"; status=$?; done
((status == 0)) || exit 1
"""


@pytest.fixture
def job(program, tmp_path: Path, monkeypatch):
    """Submits the batch script: a process, as Slurm starts it."""
    script(tmp_path / "bin" / "srun", SRUN)
    script(tmp_path / "bin" / "scontrol", SCONTROL)
    (tmp_path / ".venv").mkdir()
    script(tmp_path / ".venv" / "bin" / "torchrun", JOB_TORCHRUN)
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for name, value in (("JOB_ID", "7"), ("NNODES", "1"), ("JOB_NODELIST", "node-1")):
        monkeypatch.setenv(f"SLURM_{name}", value)

    def submit(plan: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "launch/slurm/step1.sbatch"],
            env={**os.environ, "PYTHON": sys.executable, "PLAN": plan},
            stderr=subprocess.PIPE,
            text=True,
        )

    return submit


@pytest.mark.parametrize(
    "plan, status, starts", [("0", 0, 1), ("3", 3, 1), ("kill,3", 3, 2), ("bug", 1, 2)]
)
def test_a_job_ends_as_its_run_does(job, plan: str, status: int, starts: int) -> None:
    process = job(plan)
    _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == status, said
    assert len(Path("starts").read_text(encoding="utf-8").splitlines()) == starts
    assert not Path("requeued").exists()


def test_a_job_that_is_told_to_stop_saves_once_and_is_queued_again(job) -> None:
    process = job("wait,3")
    wait_until(Path("waits").exists, process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, said
    assert said.count("stopped by a signal: step 3 of 9 is saved") == 1
    assert Path("requeued").read_text(encoding="utf-8") == "requeue 7\n"
    again = job("wait,3")
    _, said = again.communicate(timeout=DEADLINE)
    assert again.returncode == 3, said
    assert len(Path("starts").read_text(encoding="utf-8").splitlines()) == 2
