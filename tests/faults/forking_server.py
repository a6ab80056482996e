"""Commands in processes that can be made to fail: forked from one that has imported everything.

    with serving(directory) as server:
        ended = server.run(bake, words, fault=Fault(watched, log, Mode.ONCE, call=17))

The server has the library of `tests/native/failing_calls.c` preloaded, which does nothing until a
child arms it. A child costs what its command does: milliseconds to start instead of ten seconds.
"""

from __future__ import annotations

import ctypes
import enum
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from tests.compiled import compile_once

ROOT = Path(__file__).parents[2]
LIBRARY = "failing_calls.so"
DEADLINE_SECONDS = 300.0


class Mode(enum.IntEnum):
    """What becomes of the call with the given number."""

    OFF, COUNT, ONCE, LASTING, KILL, WHILE = range(6)


@dataclass(frozen=True)
class Fault:
    """What the library does in one process; see `failing_calls.c`.

    watched: only calls about files below this directory count. log: gets a line a call.
    call: which one fails, from 1. choice: with the first or the second of the errors that such a
    call meets. full_while: with `Mode.WHILE`, the disk is full while this file exists.
    """

    watched: Path
    log: Path
    mode: Mode = Mode.COUNT
    call: int = 0
    choice: int = 0
    full_while: Path = Path()

    def arm(self) -> None:
        """In the process that it is for, last of all."""
        words = [os.fsencode(path.absolute()) for path in (self.watched, self.log)]
        number = ctypes.c_long(self.call)
        flag = os.fsencode(self.full_while.absolute())
        ctypes.CDLL(None).faults_arm(*words, int(self.mode), number, self.choice, 1, flag)


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit status, or minus the signal; what it said on stderr; its time."""

    status: int
    said: str
    seconds: float


@dataclass(frozen=True)
class _Request:
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    fault: Fault | None
    said: Path
    kill_after: float


class Server:
    """Runs one child at a time, which gets SIGKILL at its deadline."""

    def __init__(
        self, pipe: Connection, process: subprocess.Popen[bytes], said: Path, deadline: float
    ) -> None:
        self._pipe, self._said, self._deadline = pipe, said, deadline
        self.pid = process.pid

    def run(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        fault: Fault | None = None,
        kill_after: float | None = None,
    ) -> Ended:
        """``function(*arguments)``, importable, in a child: its result is the exit status.

        kill_after: seconds until the child gets SIGKILL, where it has not ended by then; None: the
        server's deadline.
        """
        seconds = self._deadline if kill_after is None else kill_after
        self._pipe.send(_Request(function, arguments, fault, self._said, seconds))
        status, seconds = self._pipe.recv()
        return Ended(status, self._said.read_text(encoding="utf-8", errors="replace"), seconds)


@contextmanager
def serving(directory: Path, deadline: float = DEADLINE_SECONDS) -> Iterator[Server]:
    """A server that keeps its files in ``directory``; it takes 10 to 20 seconds to come up.

    deadline: seconds that a child may take.
    """
    ours, theirs = Pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.forking_server", str(theirs.fileno())],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "LD_PRELOAD": str(library())},
        stdin=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
    )
    theirs.close()
    try:
        yield Server(ours, process, directory / "said", deadline)
    finally:
        ours.close()
        process.wait(DEADLINE_SECONDS)


def library() -> Path:
    command = ["cc", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror"]
    folder = compile_once([*command, "tests/native/failing_calls.c", "-ldl"], LIBRARY, 60)
    return folder / LIBRARY


def _serve(pipe: Connection) -> None:
    del os.environ["LD_PRELOAD"]  # programs that a command starts are not part of it
    from tests.faults import preloaded

    preloaded.warm()

    assert threading.active_count() == 1  # another would be missing in every child
    while True:
        try:
            request = pipe.recv()
        except EOFError:
            return
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            pipe.close()
            _be_the_command(request)
        status = _wait(child, request.kill_after)
        pipe.send((status, time.monotonic() - began))


def _wait(child: int, kill_after: float) -> int:
    handle = os.pidfd_open(child)
    try:
        if not select.select([handle], [], [], kill_after)[0]:
            os.kill(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        os.close(handle)


def _be_the_command(request: _Request) -> None:
    with open(request.said, "wb") as said, open(os.devnull, "wb") as nowhere:
        os.dup2(said.fileno(), 2)
        os.dup2(nowhere.fileno(), 1)
    status: Any = 1
    try:
        if request.fault is not None:
            request.fault.arm()
        status = request.function(*request.arguments)
    except SystemExit as error:
        status = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
