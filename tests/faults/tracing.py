"""Which calls a run makes, and which of them to let fail."""

from __future__ import annotations

import errno
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from tests.faults.forking_server import Mode

# What differs from run to run in a file's name.
_RANDOM = (
    (re.compile(r"/\.(\w+)\.[A-Za-z0-9_]{8}(?=/|$)"), r"/.\1.*"),
    (re.compile(r"/\.tmp[A-Za-z0-9]{6}$"), "/.tmp*"),
    (re.compile(r"\d+"), "N"),
)
# Between two of these nothing changes that another process can see: a flush is for power cuts.
_CHANGING = ("create", "write", "rename", "mkdir", "unlink", "truncate", "link")
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


def plan(calls: Sequence[Call], folder: Path, database_share: int = 1) -> list[Planned]:
    """What to inject, a call after the other.

    Every call fails once, with one of its two errors; calls of one kind on files of one `_family`
    take turns, so that they meet both, and where there is but one it fails twice. Of each such kind
    and family one fails for good. Before a call that changes something the process is killed; a
    database's many writes of pages are one change.

    Args:
        database_share: only every so-manieth of a database's calls fails.
    """
    seen: dict[tuple[str, str], int] = {}
    chosen = []
    kills = _changes(calls)
    for call in calls:
        role = call.role(folder)
        group = call.kind, _family(role)
        turn = seen[group] = seen.get(group, -1) + 1
        ways = [(Mode.ONCE, turn % 2)]
        if role.startswith(_DATABASE) and turn > 1 and turn % database_share:
            ways = []
        if call.number in kills:
            ways.append((Mode.KILL, 0))
        if turn == 0:
            ways.append((Mode.LASTING, 0))
        chosen += [Planned(call.number, mode, choice, call.kind, role) for mode, choice in ways]
    lone = [f for f in chosen if f.mode is Mode.ONCE and not seen[f.kind, _family(f.role)]]
    return sorted([*chosen, *(replace(f, choice=1) for f in lone)], key=lambda f: f.call)


def _family(role: str) -> str:
    """Files of one ending in one directory, which one piece of code writes, reads or removes."""
    path = PurePath(role)
    return str(path.with_stem("*")) if path.suffix else role


def _changes(calls: Sequence[Call]) -> set[int]:
    """The numbers of those before which the files are not as before the last one."""
    numbers, there, gone = set(), set(), set()
    last: tuple[str, Path] | None = None
    for call in calls:
        if call.kind not in _CHANGING:
            continue
        is_page = call.path.name.startswith(_DATABASE) and last == (call.kind, call.path)
        is_idle = call.path in (gone if call.kind == "unlink" else there)
        last = call.kind, call.path
        if call.kind in ("unlink", "rename"):
            gone.add(call.path)
            there.discard(call.path)
        if call.kind in ("create", "mkdir"):
            gone.discard(call.path)
        if call.kind == "mkdir":
            there.add(call.path)
        if not is_page and not (is_idle and call.kind in ("unlink", "mkdir")):
            numbers.add(call.number)
    return numbers


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
