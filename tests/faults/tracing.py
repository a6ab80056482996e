"""Which calls a run makes, and which of them to let fail."""

from __future__ import annotations

import errno
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.forking_server import Mode

# What differs from run to run in a file's name.
_RANDOM = (
    (re.compile(r"/\.(\w+)\.[A-Za-z0-9_]{8}(?=/|$)"), r"/.\1.*"),
    (re.compile(r"/\.tmp[A-Za-z0-9]{6}$"), "/.tmp*"),
    (re.compile(r"\d+"), "N"),
)
# Between two of these nothing lasting happens.
_CHANGING = ("create", "write", "fsync", "rename", "mkdir", "unlink", "truncate", "link")
_DATABASE = "registry.db"


@dataclass(frozen=True)
class Call:
    """One call as the library logged it; ``other`` is a rename's new name. ``error`` is the errno
    that it was made to fail with, 0 where it was let through, -1 where the process was killed."""

    number: int
    kind: str
    error: int
    path: Path
    other: Path

    def role(self, folder: Path) -> str:
        """The file's part in a run: its path without what numbers and chance put into it."""
        name = "/" + str(self.path.relative_to(folder))
        for pattern, replacement in _RANDOM:
            name = pattern.sub(replacement, name)
        return name[1:]


@dataclass(frozen=True)
class Planned:
    """A fault to inject: the call's number, mode and choice of error; the call as it was seen in
    the undisturbed run, by which a sample is drawn."""

    call: int
    mode: Mode
    choice: int
    kind: str
    role: str

    def __str__(self) -> str:
        how = {Mode.ONCE: "fails", Mode.LASTING: "and later ones fail", Mode.KILL: "kills"}
        return f"call {self.call} ({self.kind} {self.role}) {how[self.mode]}, choice {self.choice}"


def read_log(path: Path) -> list[Call]:
    calls = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        number, kind, error, file, other = line.split("\t")
        calls.append(Call(int(number), kind, int(error), Path(file), Path(other)))
    return calls


def plan(calls: Sequence[Call], folder: Path) -> list[Planned]:
    """What to inject. Every call fails once, with each of its two errors if it changes something;
    before it does, it kills the process. Of each kind and role one fails for good.

    A database makes the same calls again and again: there, one error each.
    """
    chosen, lasting = [], set()
    for call in calls:
        role = call.role(folder)
        single = call.kind not in _CHANGING or role.startswith(_DATABASE)
        ways = [(Mode.ONCE, choice) for choice in ((call.number % 2,) if single else (0, 1))]
        if call.kind in _CHANGING:
            ways.append((Mode.KILL, 0))
        if (call.kind, role) not in lasting:
            lasting.add((call.kind, role))
            ways.append((Mode.LASTING, 0))
        chosen += [Planned(call.number, mode, choice, call.kind, role) for mode, choice in ways]
    return chosen


def sample(faults: Sequence[Planned], size: int, seed: int) -> list[Planned]:
    """``size`` of them, of as many kinds, roles and modes as that allows."""
    rng = random.Random(seed)
    left = rng.sample(list(faults), len(faults))
    counts: dict[object, int] = {}
    drawn: list[Planned] = []
    while left and len(drawn) < size:
        best = min(left, key=lambda fault: sum(counts.get(part, 0) for part in _parts(fault)))
        left.remove(best)
        drawn.append(best)
        for part in _parts(best):
            counts[part] = counts.get(part, 0) + 1
    return drawn


def _parts(fault: Planned) -> Iterator[object]:
    yield fault.kind
    yield fault.role
    yield (fault.mode, fault.choice)
    yield (fault.kind, fault.mode)


def injected(calls: Sequence[Call]) -> list[Call]:
    return [call for call in calls if call.error]


def name_of(error: int) -> str:
    return "SIGKILL" if error < 0 else errno.errorcode[error]
