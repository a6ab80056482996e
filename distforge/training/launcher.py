"""A rank does not outlive the launcher that started it.

A launcher that gets SIGKILL leaves its ranks to themselves: they train on and hold the run's
directory, so that whoever starts the run again is refused. Each rank therefore watches the
processes above it that belong to a launcher, and tells itself to stop when one of them is gone. As
after any SIGTERM, all ranks then save at the same step.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from distforge.errors import InputError

# What torchrun and DeepSpeed's launcher put into the environment of their ranks.
_MARKS = ("TORCHELASTIC_RUN_ID", "CROSS_RANK")

_watched_by: int | None = None


def stop_with_launcher() -> None:
    """From here on this process gets SIGTERM when its launcher has ended, at once if it has.

    Nothing happens without a launcher, where the system cannot watch a process (Linux 5.3 can),
    or a second time.
    """
    global _watched_by
    is_launched = any(mark in os.environ for mark in _MARKS)
    if not is_launched or not hasattr(os, "pidfd_open") or _watched_by == os.getpid():
        return
    _watched_by = os.getpid()
    handles, above = [], list(_launchers())
    for pid in above:
        with suppress(ProcessLookupError):
            handles.append(os.pidfd_open(pid))
    # The number of one that is gone may be another's by now, but not the parent's.
    if len(handles) < len(above) or os.getppid() not in above:
        _stop()
    else:
        threading.Thread(target=_watch, args=(handles,), daemon=True).start()


def require_hostfile() -> None:
    """`InputError` where DeepSpeed's launcher was given a hostfile that is not there.

    It only warns of that, and starts ranks on this machine alone.
    """
    if "CROSS_RANK" not in os.environ:
        return
    for pid in _launchers():
        for name in _hostfiles(_words(pid)):
            with suppress(OSError):  # another user's process tells less of itself
                file = Path(os.readlink(f"/proc/{pid}/cwd"), name)
                if not file.exists():
                    raise InputError(
                        f"the hostfile {file} is not there, so only this machine would train; give "
                        "--hostfile a file with a line for each node, such as 'node-1 slots=8'"
                    )


def _hostfiles(words: list[str]) -> Iterator[str]:
    for word, following in pairwise(words):
        if word in ("--hostfile", "-H"):
            yield following
        elif word.startswith("--hostfile="):
            yield word.partition("=")[2]


def _watch(handles: list[int]) -> None:
    select.select(handles, [], [])
    _stop()


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _launchers() -> Iterator[int]:
    """The parent, unless that is the system's first process, which takes in orphans; and above it,
    all that are DeepSpeed's: it has one process for all machines and one on each."""
    pid = os.getppid()
    if pid == 1 and not _is_python(pid):
        return
    yield pid
    while (pid := _parent(pid)) > 1 and _is_python(pid) and "deepspeed" in _program(pid):
        yield pid


def _is_python(pid: int) -> bool:
    return Path(_words(pid)[0]).name.startswith("python")


def _program(pid: int) -> str:
    """What a Python process runs: a script's path, or a module with what stands before it."""
    return " ".join(_words(pid)[1:4])


def _words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text("utf-8", errors="replace").split("\0")
    except OSError:
        return [""]


def _parent(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
    except OSError:
        return 0
    return int(text.rpartition(")")[2].split()[1])
