"""A lock is one process's, free once that is gone, and says who has it; with flock or without."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from distforge import locks
from distforge.locks import Held, Holder, exclusive

WHAT = "the run directory runs/quick"
DEADLINE_SECONDS = 30


def refuse_flock(code: int) -> Callable:
    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return flock


@pytest.fixture(params=["flock", errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK], ids=str)
def kind(request, monkeypatch) -> str | int:
    if request.param != "flock":
        monkeypatch.setattr(fcntl, "flock", refuse_flock(request.param))
    return request.param


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".quick.lock"


@contextmanager
def forked(work: Callable[[Callable[[], None]], None]) -> Iterator[int]:
    """A child that runs ``work``, entered when that calls what it is given; killed at the end."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work(lambda: os.write(write, b".") and signal.pause())
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    try:
        assert select.select([read], [], [], DEADLINE_SECONDS)[0]
        yield child
    finally:
        os.close(read)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def holding(path: Path, *, with_worker: bool = False) -> Callable[[Callable[[], None]], None]:
    def work(ready: Callable[[], None]) -> None:
        with exclusive(path, what=WHAT):
            if with_worker and (worker := os.fork()) == 0:
                raise KeyError
            if with_worker:
                os.waitpid(worker, 0)
            if with_worker and os.fork() == 0:
                signal.alarm(DEADLINE_SECONDS)
                ready()  # only now has it let go of what it was born with
            if with_worker:
                signal.pause()
            ready()

    return work


def another_host(**changes: object) -> Holder:
    other = {"host": "node-2", "pid": 77, "boot": "0000/pid:[1]", "started": "5", "job": ""}
    return Holder(**{**other, "since": "2026-01-01 10:00:00+00:00", **changes})  # type: ignore[arg-type]


def leave(path: Path, holder: Holder) -> Path:
    """As a process leaves it that had no time to release it."""
    file = path.with_name(f"{path.name}.held.{holder.host}.{holder.pid}.0123abcd")
    file.write_text(json.dumps(dataclasses.asdict(holder)))
    return file


def test_a_second_process_is_told_who_has_it(path, kind) -> None:
    with forked(holding(path)) as child:
        with pytest.raises(Held) as refusal, exclusive(path, what=WHAT):
            raise AssertionError("both hold it")
        assert refusal.value.holder is not None
        assert refusal.value.holder.pid == child
        assert f"{WHAT} is in use by process {child} on {socket.gethostname()} since 2" in str(
            refusal.value
        )


def test_it_is_free_after_its_holder_was_killed(path, kind) -> None:
    with forked(holding(path)):
        pass
    with exclusive(path, what=WHAT):
        pass
    assert list(path.parent.iterdir()) == []


def test_a_killed_holder_that_nobody_waited_for_is_gone_too(path, kind) -> None:
    with forked(holding(path)) as child:
        os.kill(child, signal.SIGKILL)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # a zombie still has its number
        with exclusive(path, what=WHAT):
            pass


def test_free_again_after_the_block_and_after_an_error_in_it(path, kind) -> None:
    for _ in range(2):
        with pytest.raises(KeyError), exclusive(path, what=WHAT):
            raise KeyError
    assert list(path.parent.iterdir()) == []


def test_not_twice_in_one_process(path, kind) -> None:
    with exclusive(path, what=WHAT):
        with pytest.raises(Held, match=f"process {os.getpid()} "), exclusive(path, what=WHAT):
            pass
        with pytest.raises(Held), exclusive(path, what=WHAT):
            pass


def test_what_was_forked_inside_neither_releases_nor_keeps_it(path, kind) -> None:
    with (
        forked(holding(path, with_worker=True)) as child,
        # A worker has left the block by its own error, which released nothing.
        pytest.raises(Held, match=f"process {child} "),
        exclusive(path, what=WHAT),
    ):
        pass
    with exclusive(path, what=WHAT):  # though the other worker lives on
        pass


def test_waits_as_long_as_it_is_told(path, kind, monkeypatch) -> None:
    now = iter(range(0, 1000, 10))
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    monkeypatch.setattr(time, "time", lambda: -1.0)  # whatever the clock says
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with forked(holding(path)) as child:
        with pytest.raises(Held), exclusive(path, what=WHAT, wait=35):
            pass
        assert len(pauses) == 3

        def end_it(_: float) -> None:
            os.kill(child, signal.SIGKILL)
            os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)

        monkeypatch.setattr(time, "sleep", end_it)
        with exclusive(path, what=WHAT, wait=35):
            pass


def test_many_processes_never_hold_it_together(path, kind) -> None:
    """Each adds one to a counter that is read and written without any other protection."""
    counter = path.parent / "counter"
    counter.write_text("0")
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            try:
                for _ in range(10):
                    with exclusive(path, what=WHAT, wait=DEADLINE_SECONDS):
                        value = int(counter.read_text())
                        os.sched_yield()
                        counter.write_text(str(value + 1))
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    assert counter.read_text() == "40"


@pytest.fixture
def no_flock(monkeypatch) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse_flock(errno.ENOSYS))


@pytest.mark.usefixtures("no_flock")
class TestWithoutFlock:
    def test_a_lock_of_a_dead_host_says_what_to_remove(self, path) -> None:
        file = leave(path, another_host())
        with pytest.raises(Held) as refusal, exclusive(path, what=WHAT):
            pass
        assert str(refusal.value) == (
            f"{WHAT} is in use by process 77 on node-2 since 2026-01-01 10:00:00+00:00; wait until "
            f"that has ended, or end it; if it no longer runs there, remove {file}"
        )
        file.unlink()
        with exclusive(path, what=WHAT):
            pass

    @pytest.mark.parametrize(
        "left",
        [
            pytest.param({"started": "1"}, id="its number is another process's by now"),
            pytest.param({"boot": "0000/pid:[1]"}, id="the host has been started anew"),
            pytest.param({"pid": 2**22 + 1}, id="no such process"),
        ],
    )
    def test_a_lock_of_a_dead_process_is_free(self, path, left) -> None:
        file = leave(path, dataclasses.replace(Holder.here(), **left))
        with exclusive(path, what=WHAT):
            assert not file.exists()

    def test_of_another_container_of_this_host_nothing_is_known(self, path) -> None:
        boot = Holder.here().boot.split("/")[0]
        leave(path, dataclasses.replace(Holder.here(), boot=f"{boot}/pid:[1]", pid=2**22 + 1))
        with pytest.raises(Held), exclusive(path, what=WHAT):
            pass

    def test_slurm_ends_a_job_before_it_starts_it_again(self, path, monkeypatch) -> None:
        monkeypatch.setenv("SLURM_JOB_ID", "9")
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        leave(path, another_host(job="9/0"))
        with exclusive(path, what=WHAT):
            pass
        leave(path, another_host(job="8/0"))
        with pytest.raises(Held), exclusive(path, what=WHAT):
            pass

    def test_half_a_file_and_another_lock_mean_nothing(self, path) -> None:
        leave(path.with_name(".quick.lock2"), another_host())
        path.with_name(f"{path.name}.held.node-2.77.0123abcd.tmp").write_text("{")
        with exclusive(path, what=WHAT):
            pass


def test_a_full_disk_costs_the_name_alone(path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", full)
    with (
        exclusive(path, what=WHAT),
        pytest.raises(Held, match="in use by another process"),
        exclusive(path, what=WHAT),
    ):
        pass


def test_where_no_file_can_be_made_the_error_names_it(tmp_path, kind) -> None:
    path = tmp_path / "away" / "lock"
    with pytest.raises(OSError) as error, exclusive(path, what=WHAT):
        pass
    assert str(path) in str(error.value)
    assert locks._descriptors == set()
