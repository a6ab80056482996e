"""The event log: every change of a registry, one JSON object a line, only ever appended to.

    {"time": "…Z", "event": "promote", "version": "champion/1", …, "previous": "<sha256>"}

``previous`` is the sha256 of the line before, so a line that is changed, removed or slipped in
later is found by `EventLog.read`. The file's last lines can still be cut off unseen.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from distforge import durable
from distforge.errors import InputError
from distforge.locks import exclusive

_START = "0" * 64
_WAIT_SECONDS = 30.0


class EventLog:
    """Appends to the log at ``path``; several processes may at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: str, **details: Any) -> None:
        """Add one line and flush it to disk; of those before only the last is read.

        Raises:
            Held: another process has been writing for half a minute.
            OSError: with the path.
        """
        record = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "event": event,
            "user": _user(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            **details,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = self.path.with_name(self.path.name + ".lock")
        with (
            exclusive(lock, what=str(self.path), wait=_WAIT_SECONDS),
            durable.AppendOnly(self.path) as lines,
        ):
            last = lines.last_line()
            record["previous"] = hashlib.sha256(last).hexdigest() if last else _START
            lines.write(json.dumps(record, sort_keys=True, default=str))

    def read(self) -> list[dict[str, Any]]:
        """All events, oldest first.

        Raises:
            InputError: a line is not JSON, or does not follow from the line before.
        """
        if not self.path.exists():
            return []
        events, digest = [], _START
        for number, line in enumerate(durable.read_lines(self.path), start=1):
            try:
                record = json.loads(line)
                follows = record["previous"] == digest
            except (ValueError, KeyError, TypeError):
                follows = False
            if not follows:
                raise InputError(
                    f"{self.path}, line {number} does not follow from the line before: the log was "
                    "changed; compare it with a copy"
                )
            digest = hashlib.sha256(line).hexdigest()
            events.append(record)
        return events


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
