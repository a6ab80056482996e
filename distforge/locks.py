"""Locks between processes, also of several hosts: free again once their holder is gone.

The lock is flock's: the operating system releases it when the process ends, however it ends. Where
a file system has none (Lustre without ``-o flock``, some NFS) every process puts a file of its own
beside the lock, then looks for those of others, and takes its own back where it finds one. Two may
so refuse each other, but never both hold it; and a dead process's file, whose name nobody else
uses, can be removed by anyone at any time. That a process is dead is read from the kernel, never
from a clock. Of another host it cannot be known: then `Held` says which file to remove.
"""

from __future__ import annotations

import datetime
import errno
import fcntl
import json
import logging
import os
import random
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from distforge import durable
from distforge.errors import InputError

_NO_FLOCK = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_POLL_SECONDS = 0.05
# Two that refuse each other without flock try again, each after a time of its own.
_TRIES = 3
_random = random.SystemRandom()  # training draws from the other one

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock.

    Attributes:
        host, pid: where it runs; the kernel gives a number to a new process after some time.
        boot: which start of which kernel, and which set of processes ``pid`` counts in.
        started: ticks from the host's start to the process's; with ``pid`` it is unique.
        job: Slurm's, and how often that was put back into the queue; empty elsewhere.
        since: by that host's clock; for people alone.
    """

    host: str
    pid: int
    boot: str
    started: str
    job: str
    since: str

    @classmethod
    def here(cls) -> Self:
        """This process, as of now."""
        pid, job = os.getpid(), os.environ.get("SLURM_JOB_ID", "")
        return cls(
            host=socket.gethostname(),
            pid=pid,
            boot=_boot(),
            started=_started(pid),
            job=f"{job}/{os.environ.get('SLURM_RESTART_COUNT', '0')}" if job else "",
            since=datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
        )

    @property
    def is_gone(self) -> bool:
        """Whether it certainly no longer runs."""
        here = Holder.here()
        if self.boot == here.boot:
            return not _runs(self.pid) or _started(self.pid) != self.started
        if self.job and here.job and self.job != here.job:
            # Slurm ends all of a job before it starts it again.
            return self.job.split("/")[0] == here.job.split("/")[0]
        # The host has been started anew; the same boot's other set of processes is a container's.
        return self.host == here.host and self.boot.split("/")[0] != here.boot.split("/")[0]

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


class Held(InputError):
    """Another process has the lock; ``holder`` is it, or None where that cannot be read."""

    def __init__(self, what: str, holder: Holder | None, remove: Path | None = None) -> None:
        by = holder or "another process"
        remedy = "wait until that has ended, or end it"
        if remove is not None:
            remedy += f"; if it no longer runs there, remove {remove}"
        super().__init__(f"{what} is in use by {by}; {remedy}")
        self.holder, self.by_file = holder, remove is not None


@contextmanager
def exclusive(path: Path, *, what: str, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock ``path`` while the block runs; processes forked inside do not hold it.

    Args:
        path: a file for the lock alone, in a directory that exists; gone when the lock is free.
        what: what it protects, for the message.
        wait: seconds to wait for another holder; `math.inf` waits for ever.

    Raises:
        Held: another process, or another block of this one, has it.
        OSError: with the path, where files cannot be made there.
    """
    deadline, tries = time.monotonic() + wait, 0
    while True:
        try:
            release = _take(path, what)
            break
        except Held as held:
            tries += 1
            if time.monotonic() >= deadline and not (held.by_file and tries < _TRIES):
                raise
        time.sleep(_POLL_SECONDS * _random.uniform(0.2, 1.0))
    owner = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == owner:
            release()


def _take(path: Path, what: str) -> Callable[[], None]:
    """Take the lock; what releases it."""
    try:
        return _take_flock(path, what)
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
        logger.info("%s: no flock here (%s), files it is", path.parent, error.strerror)
    return _take_by_file(path, what)


_descriptors: set[int] = set()


def _close_in_child() -> None:
    # Closed, not unlocked: the lock is the parent's, and stays it.
    while _descriptors:
        os.close(_descriptors.pop())


os.register_at_fork(after_in_child=_close_in_child)


def _take_flock(path: Path, what: str) -> Callable[[], None]:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_the_file = _is_at(descriptor, path)
        except BlockingIOError:
            os.close(descriptor)
            holder = _read(path)
            raise Held(what, None if holder is None or holder.is_gone else holder) from None
        except OSError as error:
            os.close(descriptor)
            with suppress(OSError):
                path.unlink()
            raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from error
        if is_the_file:
            break
        os.close(descriptor)  # who held it removed it; there may be another by now
    _descriptors.add(descriptor)
    with suppress(OSError):  # a full disk: locked all the same, though without a name
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, _line(Holder.here()).encode(), 0)

    def release() -> None:
        with suppress(OSError):
            path.unlink()
        _descriptors.discard(descriptor)
        os.close(descriptor)

    return release


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _take_by_file(path: Path, what: str) -> Callable[[], None]:
    me = Holder.here()
    mine = path.with_name(f"{path.name}.held.{me.host}.{me.pid}.{secrets.token_hex(4)}")
    files = re.compile(re.escape(path.name) + r"\.held\..*(?<!\.tmp)")
    durable.write_text(mine, _line(me))
    try:
        for other in path.parent.iterdir():
            if other == mine or not files.fullmatch(other.name):
                continue
            holder = _read(other)
            if holder is not None and holder.is_gone:
                other.unlink(missing_ok=True)
            elif other.exists():
                raise Held(what, holder, remove=other)
    except BaseException:
        mine.unlink(missing_ok=True)
        raise

    def release() -> None:
        with suppress(OSError):
            mine.unlink()

    return release


def _line(holder: Holder) -> str:
    return json.dumps(asdict(holder)) + "\n"


def _read(path: Path) -> Holder | None:
    try:
        return Holder(**json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _boot() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()  # not Linux: the host's name, and ``started`` is empty


def _started(pid: int) -> str:
    """Ticks from boot to the start of a process; empty where the kernel does not tell."""
    return (_stat(pid) or [""] * 20)[19]


def _runs(pid: int) -> bool:
    try:
        with suppress(PermissionError):  # another user's, but it is there
            os.kill(pid, 0)
    except ProcessLookupError:
        return False
    fields = _stat(pid)
    return fields is None or fields[0] not in ("Z", "X")  # ended, and not yet waited for


def _stat(pid: int) -> list[str] | None:
    """The fields of ``/proc/PID/stat`` behind the program's name, which may hold anything."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()
