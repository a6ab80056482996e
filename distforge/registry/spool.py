"""The spool: what is meant for the registry, on disk before anything is sent.

A JSONL file of entries ``{"key", "op", …}`` and of outcomes ``{"done": key, "version"}`` or
``{"failed": key, "reason"}``. An entry without an outcome is sent again, however often a sender is
killed on its way; the registry's calls may be repeated, so that leaves one version each. Entries
are sent in order: a parent before its child.

Nothing here ends a run. What the disk does not take (it is full, or the file system is away) is
kept in memory, sent from there, and written as soon as there is room. Paths below the spool's own
directory are kept relative to it, so that a folder of runs can be moved with its spool.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import uuid
from collections import deque
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distforge import durable
from distforge.errors import InputError
from distforge.locks import Held, exclusive
from distforge.registry import sending
from distforge.registry.places import kept_path
from distforge.registry.records import Session
from distforge.registry.registry import ModelRegistry
from distforge.registry.relocation import relocated_entry

_WAIT_SECONDS = 5.0

_log = logging.getLogger(__name__)


class Spool:
    """The spool at ``path``; threads, and processes of machines that share the file, may at once.

    Its methods never raise for what a disk or a lock does, except `relocate`, which no run calls.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._here = threading.RLock()
        self._reader = _Reader(self.path)
        self._unwritten: deque[dict[str, Any]] = deque()
        self._said: set[str] = set()

    def register(
        self,
        phase: int,
        step: int,
        model_type: str,
        model_path: Path,
        metadata: dict[str, Any],
        *,
        parent_key: str = "",
        aliases: tuple[str, ...] = (),
        best: tuple[str, str] | None = None,
    ) -> str:
        """Note a `ModelRegistry.register_model`; the entry's key.

        Args:
            parent_key: the entry that registers the parent, whose version is not known yet.
            aliases: point these at the version afterwards.
            best: (alias, metric): point the alias there if the metric is better than its holder's,
                on the same data (the tag ``dataset_sha256``).
        """
        return self._append(
            op="register",
            phase=phase,
            step=step,
            model_type=model_type,
            model_path=kept_path(Path(model_path).absolute(), self.directory),
            metadata=metadata,
            parent_key=parent_key,
            aliases=list(aliases),
            best=list(best or ()),
        )

    def session(self, session: Session) -> str:
        """Note a `ModelRegistry.record_session`; the entry's key."""
        kept = session.with_paths(lambda path: kept_path(Path(path), self.directory))
        return self._append(op="session", **asdict(kept))

    def curves(self, session: str, file: Path, size: int) -> None:
        """Note that ``file``, a session's metrics, has grown to ``size`` bytes."""
        with self._here:
            begin = self._index().curves.get(session, 0)
            if begin < size:
                name = kept_path(file.absolute(), self.directory)
                self._append(op="curves", id=session, file=name, begin=begin, end=size)

    @property
    def directory(self) -> Path:
        """What the paths of its entries are relative to."""
        return self.path.absolute().parent

    @property
    def unwritten(self) -> int:
        """How many lines are in memory alone."""
        return len(self._unwritten)

    def pending(self) -> list[dict[str, Any]]:
        """Entries without an outcome, oldest first."""
        with self._here:
            return list(self._index().pending.values())

    def outcome(self, key: str) -> dict[str, Any] | None:
        """``{"version": …}`` or ``{"reason": …}`` of an entry that was sent or refused."""
        with self._here:
            return self._index().outcomes.get(key)

    def failed(self) -> list[dict[str, Any]]:
        """Entries that the registry refused for good, each with its ``reason``."""
        with self._here:
            return list(self._index().failed.values())

    def replay(self, registry: ModelRegistry) -> int:
        """Send what is pending, in order; how many entries were settled.

        One sender at a time: where another process is at it, nothing is done. An entry that can
        never succeed (its files are gone or damaged) is settled as failed, with a warning; one that
        cannot be sent now holds up those that follow from it, and no others.

        Raises:
            RegistryUnavailable: the registry is away; the rest stays pending.
        """
        try:
            with exclusive(self._beside(".lock"), what=f"sending {self.path}"):
                return sending.send(self, registry)
        except Held:
            return 0

    def relocate(self, old: Path, new: Path, *, dry_run: bool = False) -> int:
        """Put ``new`` in the place of ``old`` in the paths of what is pending, or only see where;
        how many entries that concerns.

        Raises:
            Held: another process is sending them. InputError: the spool cannot be written.
        """
        with exclusive(self._beside(".lock"), what=f"sending {self.path}", wait=_WAIT_SECONDS):
            before = self.pending()
            after = [relocated_entry(entry, self.directory, old, new) for entry in before]
            changed = [now for now, was in zip(after, before, strict=True) if now != was]
            for entry in [] if dry_run else changed:
                self._write(entry)  # the later line of one key counts
        if self._unwritten:
            raise InputError(f"{self.path} cannot be written; make room there and try again")
        return len(changed)

    def settle(self, key: str, **outcome: Any) -> None:
        """Note what became of an entry: ``version=…``, or ``reason=…`` if it was refused."""
        if "reason" in outcome:
            self._write({"failed": key, **outcome})
        else:
            self._write({"done": key, **outcome})

    def say_once(self, text: str) -> None:
        """Log a warning that was not logged before."""
        if text not in self._said:
            self._said.add(text)
            _log.warning("%s", text)

    def _append(self, **entry: Any) -> str:
        key = uuid.uuid4().hex
        self._write({"key": key, **entry})
        return key

    def _write(self, record: dict[str, Any]) -> None:
        with self._here:
            full = bool(self._unwritten)
            self._unwritten.append(record)
            try:
                self._write_out()
            except (OSError, Held) as error:
                if not full:
                    _log.warning(
                        "records for %s are kept in memory until they can be written (%s)",
                        self.path,
                        error,
                    )
            else:
                if full:
                    _log.warning("the registry's records are written again, to %s", self.path)

    def _write_out(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with (
            exclusive(self._beside(".append"), what=str(self.path), wait=_WAIT_SECONDS),
            durable.AppendOnly(self.path) as lines,
        ):
            while self._unwritten:
                lines.write(json.dumps(self._unwritten[0], default=str))
                self._unwritten.popleft()

    def _index(self) -> _Index:
        with self._here:
            try:
                known = self._reader.read()
            except OSError as error:
                self.say_once(f"{self.path} cannot be read ({error.strerror})")
                known = self._reader.index
            if self._unwritten:
                known = deepcopy(known)
                for record in self._unwritten:
                    known.add(record)
            return known

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)


@dataclass
class _Index:
    """What the lines of a spool come to."""

    pending: dict[str, dict[str, Any]] = field(default_factory=dict)
    outcomes: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, dict[str, Any]] = field(default_factory=dict)
    curves: dict[str, int] = field(default_factory=dict)  # session -> bytes noted

    def add(self, record: dict[str, Any]) -> None:
        if isinstance(key := record.get("key"), str):
            self.pending[key] = record
            session, end = record.get("id"), record.get("end")
            if isinstance(session, str) and isinstance(end, int):
                self.curves[session] = max(end, self.curves.get(session, 0))
        elif (key := record.get("done")) in self.pending:
            del self.pending[key]
            self.outcomes[key] = {"version": record.get("version", "")}
        elif (key := record.get("failed")) in self.pending:
            outcome = {"reason": record.get("reason", "")}
            self.failed[key] = self.pending.pop(key) | outcome
            self.outcomes[key] = outcome


class _Reader:
    """Reads on where it stopped: what was read once is not read again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.index = _Index()
        self._file: tuple[int, int] | None = None
        self._end = self._half = 0

    def read(self) -> _Index:
        """What all whole lines come to."""
        try:
            stream = open(self._path, "rb")  # noqa: SIM115 - closed below
        except FileNotFoundError:
            self.index, self._file = _Index(), None
            return self.index
        with stream:
            found = os.fstat(stream.fileno())
            file = found.st_dev, found.st_ino
            if file != self._file or found.st_size < self._end:
                self.index, self._file, self._end, self._half = _Index(), file, 0, 0
            stream.seek(self._end)
            *lines, half = stream.read().split(b"\n")
        for line in lines:
            self.index.add(_parse(line))
            self._end += len(line) + 1
        if half and self._half != self._end:
            self._half = self._end
            _log.warning("%s ends in half a line (%d bytes), left out", self._path, len(half))
        return self.index


def _parse(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line) if line else {}
    except ValueError:
        return {}  # half a line, which earlier versions left standing between two
    return record if isinstance(record, dict) else {}
