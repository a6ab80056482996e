"""A hostfile, read before DeepSpeed's launcher reads it.

The launcher takes ``NAME slots=N``, a line each, before any code but its own runs, and has no hook
there: what it refuses is a traceback, and some lines it takes for something else than they say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_EXAMPLE = "'node-1 slots=8'"
_WRITE_ALL = f"write one, with a line for each node such as {_EXAMPLE}"
_EXPECTED = f"write a host's name and its number of ranks, such as {_EXAMPLE}"
# Of hosts and addresses, with a user before them; pdsh would make several hosts of [1-4] and of a
# comma, where the launcher counts one.
_NAME = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9_.:@-]*")


@dataclass(frozen=True)
class Host:
    """``slots`` ranks are to run on ``name``, says line number ``line``."""

    name: str
    slots: int
    line: int


@dataclass(frozen=True)
class Fault:
    """What is wrong, and what to do."""

    found: str
    remedy: str


@dataclass(frozen=True)
class Hostfile:
    """What a file says: the hosts of the lines that are right, in order, and all that is wrong."""

    hosts: tuple[Host, ...]
    faults: tuple[Fault, ...]


def read_hostfile(path: Path) -> Hostfile:
    """Read all of it, whatever is wrong; `OSError` where a file that is there cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Hostfile((), (Fault(f"{path} is not there", _WRITE_ALL),))
    except UnicodeDecodeError:
        return Hostfile((), (Fault(f"{path} is not text in UTF-8", _WRITE_ALL),))
    hosts: dict[str, Host] = {}
    faults = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if fault := next(_faults_of(words), None):
            faults.append(Fault(f"line {number} is {line.strip()!r}: {fault.found}", fault.remedy))
            continue
        host = Host(words[0], int(words[1].removeprefix("slots=")), number)
        first = hosts.setdefault(host.name, host)
        if first is not host:
            found = f"line {number} names {host.name} again, as line {first.line} does"
            faults.append(Fault(found, "give each host one line, with all its slots"))
    if not hosts and not faults:
        faults.append(Fault(f"{path} names no host", f"write a line for each, such as {_EXAMPLE}"))
    return Hostfile(tuple(hosts.values()), tuple(faults))


def _faults_of(words: list[str]) -> Iterator[Fault]:
    """What is wrong with a line, the first thing first."""
    name, *rest = words
    if not _NAME.fullmatch(name):
        yield Fault(f"{name!r} is no host's name", "write each host's own name on its own line")
    if not rest:
        yield Fault("it has no slots", _EXPECTED)
        return
    if not rest[0].startswith("slots="):
        yield Fault(f"{rest[0]!r} stands where 'slots=N' should", _EXPECTED)
        return
    count = rest[0].removeprefix("slots=")
    # The launcher reads 8 of '8x', and str.isdecimal knows digits that are not ASCII.
    if not re.fullmatch("[0-9]+", count):
        yield Fault(f"slots is {count!r}, which is not a whole number", _EXPECTED)
    elif int(count) == 0:
        yield Fault("slots is 0, so it would train nothing", "leave it out, or write 1 or more")
    # What follows is another launcher's, such as max_slots, and read by nobody here.
