"""The spool: what is meant for the registry, on disk before anything is sent.

A JSONL file of entries ``{"key", "op", …}`` and of outcomes ``{"done": key, "version"}`` or
``{"failed": key, "reason"}``. An entry without an outcome is sent again, however often a sender is
killed on its way; the registry's calls may be repeated, so that leaves one version each. Entries
are sent in order: a parent before its child.
"""

from __future__ import annotations

import fcntl
import json
import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distforge import durable
from distforge.errors import InputError
from distforge.registry.records import Session, split_version
from distforge.registry.registry import ModelRegistry
from distforge.registry.store import RegistryUnavailable

_log = logging.getLogger(__name__)


class Spool:
    """The spool at ``path``; processes of one machine may share it."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

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
            best: (alias, metric): point the alias there if the metric is at least its holder's.
        """
        return self._append(
            op="register",
            phase=phase,
            step=step,
            model_type=model_type,
            model_path=str(Path(model_path).absolute()),
            metadata=metadata,
            parent_key=parent_key,
            aliases=list(aliases),
            best=list(best or ()),
        )

    def session(self, session: Session) -> str:
        """Note a `ModelRegistry.record_session`; the entry's key."""
        return self._append(op="session", **asdict(session))

    def pending(self) -> list[dict[str, Any]]:
        """Entries without an outcome, oldest first."""
        entries, outcomes = self._read()
        return [entry for key, entry in entries.items() if key not in outcomes]

    def outcome(self, key: str) -> dict[str, Any] | None:
        """``{"version": …}`` or ``{"reason": …}`` of an entry that was sent or refused."""
        return self._read()[1].get(key)

    def failed(self) -> list[dict[str, Any]]:
        """Entries that the registry refused for good, each with its ``reason``."""
        entries, outcomes = self._read()
        refused = {key: o["reason"] for key, o in outcomes.items() if "reason" in o}
        return [{**entries[key], "reason": reason} for key, reason in refused.items()]

    def replay(self, registry: ModelRegistry) -> int:
        """Send what is pending, in order; how many entries were settled.

        One sender at a time: where another process is at it, nothing is done. An entry that can
        never succeed (its files are gone or damaged) is settled as failed, with a warning.

        Raises:
            RegistryUnavailable: the rest stays pending.
        """
        with self._only_sender() as alone:
            if not alone:
                return 0
            pending = self.pending()
            for entry in pending:
                try:
                    version = _apply(registry, entry, self)
                except RegistryUnavailable:
                    raise
                except InputError as error:
                    _log.warning("the registry cannot take %s: %s", entry["op"], error)
                    self._write({"failed": entry["key"], "reason": str(error)})
                else:
                    self._write({"done": entry["key"], "version": version})
            return len(pending)

    def _append(self, **entry: Any) -> str:
        key = uuid.uuid4().hex
        self._write({"key": key, **entry})
        return key

    def _write(self, record: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with durable.AppendOnly(self.path, shared=True) as lines:
            lines.write(json.dumps(record, default=str))

    def _read(self) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
        entries: dict[str, dict[str, Any]] = {}
        outcomes: dict[str, dict[str, Any]] = {}
        if not self.path.exists():
            return entries, outcomes
        for line in durable.read_lines(self.path):
            record = _parse(line)
            if "key" in record:
                entries[record["key"]] = record
            elif "done" in record:
                outcomes[record["done"]] = {"version": record.get("version", "")}
            elif "failed" in record:
                outcomes[record["failed"]] = {"reason": record.get("reason", "")}
        return entries, {key: value for key, value in outcomes.items() if key in entries}

    @contextmanager
    def _only_sender(self) -> Iterator[bool]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path.with_name(self.path.name + ".lock"), "w", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True


def _apply(registry: ModelRegistry, entry: dict[str, Any], spool: Spool) -> str:
    """Send one entry; the version, where there is one. Any part may have been sent before."""
    values = {key: value for key, value in entry.items() if key not in ("key", "op")}
    if entry["op"] == "session":
        checkpoints = {int(step): c for step, c in values.pop("checkpoints").items()}
        registry.record_session(Session(**values, checkpoints=checkpoints))
        return ""
    if entry["op"] != "register":
        raise InputError(f"the entry's op is {entry['op']!r}; expected session or register")
    metadata = dict(values["metadata"])
    if values["parent_key"]:
        parent = (spool.outcome(values["parent_key"]) or {}).get("version", "")
        if not parent:
            raise InputError("its parent was refused; register that first")
        metadata["parent"] = parent
    version = registry.register_model(
        values["phase"], values["step"], values["model_type"], values["model_path"], metadata
    )
    for alias in values["aliases"]:
        registry.promote(version, alias)
    if values["best"]:
        _promote_best(registry, version, *values["best"])
    return version


def _promote_best(registry: ModelRegistry, version: str, alias: str, metric: str) -> None:
    holder = registry.by_alias(split_version(version)[0], alias)
    floor = holder.metrics.get(metric, float("-inf")) if holder else float("-inf")
    if registry.get(version).metrics.get(metric, float("-inf")) >= floor:
        registry.promote(version, alias)


def _parse(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line) if line else {}
    except ValueError:
        return {}  # half a line, which earlier versions left standing between two
    return record if isinstance(record, dict) else {}
