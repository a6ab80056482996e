"""A rank is told to stop when a process above it that is its launcher's has ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from distforge.errors import InputError
from distforge.training import launcher
from distforge.training.launcher import require_hostfile, stop_with_launcher

MARK = "TORCHELASTIC_RUN_ID"
RANK = """
import signal, sys
from distforge.training.launcher import stop_with_launcher
signal.signal(signal.SIGTERM, lambda *_: (print("told", flush=True), sys.exit()))
signal.alarm(60)
stop_with_launcher()
print("ready", flush=True)
signal.pause()
"""
LAUNCHER = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


def test_a_rank_is_told_when_its_launcher_is_killed() -> None:
    command = [sys.executable, "-c", LAUNCHER, RANK]
    environment = {**os.environ, MARK: "run", "PYTHONPATH": os.getcwd()}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
        assert process.stdout.read() == "told\n"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The signals that this process sends itself."""
    sent: list[int] = []
    monkeypatch.setattr(launcher, "_watched_by", None)
    monkeypatch.setattr(os, "kill", lambda _, number: sent.append(number))
    return sent


def test_a_rank_whose_launcher_is_gone_before_it_looks_is_told_at_once(
    told: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MARK, "run")
    monkeypatch.setattr(os, "getppid", lambda: 1)
    monkeypatch.setattr(launcher, "_words", lambda _: ["/sbin/init"])
    stop_with_launcher()
    stop_with_launcher()
    assert told == [signal.SIGTERM]


def test_a_parent_that_ends_while_it_is_looked_up_counts_as_gone(
    told: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MARK, "run")
    ended = subprocess.Popen(["true"])
    ended.wait()
    monkeypatch.setattr(os, "getppid", lambda: ended.pid)
    stop_with_launcher()
    assert told == [signal.SIGTERM]


def test_without_a_launcher_nothing_is_watched(
    told: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(MARK, raising=False)
    monkeypatch.delenv("CROSS_RANK", raising=False)
    before = threading.active_count()
    stop_with_launcher()
    assert (told, threading.active_count()) == ([], before)


def test_both_of_deepspeed_s_processes_are_watched_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    programs = {
        40: ["/venv/bin/python", "-u", "-m", "deepspeed.launcher.launch", "--world_info=x"],
        30: ["/venv/bin/python3.11", "/venv/bin/deepspeed", "step1.py"],
        20: ["bash", "launch/keep_running.sh", "deepspeed", "step1.py"],
    }
    monkeypatch.setattr(os, "getppid", lambda: 40)
    monkeypatch.setattr(launcher, "_words", programs.__getitem__)
    monkeypatch.setattr(launcher, "_parent", {40: 30, 30: 20, 20: 1}.__getitem__)
    assert list(launcher._launchers()) == [40, 30]


@pytest.mark.parametrize("words", [["--hostfile", "hosts"], ["-H", "hosts"], ["--hostfile=hosts"]])
def test_a_hostfile_that_is_not_there_is_refused_and_one_that_is_taken(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed's launcher warns and trains on this machine alone."""
    monkeypatch.setenv("CROSS_RANK", "0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launcher, "_launchers", lambda: [os.getpid()])
    monkeypatch.setattr(launcher, "_words", lambda _: ["python", "deepspeed", *words, "step1.py"])
    with pytest.raises(InputError, match=f"the hostfile {tmp_path}/hosts is not there, so only"):
        require_hostfile()
    (tmp_path / "hosts").touch()
    require_hostfile()
