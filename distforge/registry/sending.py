"""How the entries of a spool become calls of the registry, and what one that fails holds up."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from distforge.errors import InputError
from distforge.registry.places import found_path
from distforge.registry.records import Session, split_version
from distforge.registry.registry import ModelRegistry
from distforge.registry.store import RegistryUnavailable

# Measured on the same data: what makes two metrics comparable.
_DATA = "dataset_sha256"


class Outbox(Protocol):
    """What is to be sent: the `Spool`."""

    @property
    def path(self) -> Path: ...
    @property
    def directory(self) -> Path: ...
    def pending(self) -> list[dict[str, Any]]: ...
    def outcome(self, key: str) -> dict[str, Any] | None: ...
    def settle(self, key: str, **outcome: Any) -> None: ...
    def say_once(self, text: str) -> None: ...


class _NotNow(Exception):
    """An entry that may be sent later: of another version, or after one that cannot be read now."""


def send(spool: Outbox, registry: ModelRegistry) -> int:
    """Send what is pending, in order; how many entries were settled. See `Spool.replay`."""
    settled = 0
    held_up: set[str] = set()  # keys and sessions that wait for one another
    for entry in spool.pending():
        follows = {entry.get("parent_key") or entry["key"], entry.get("id") or entry["key"]}
        try:
            if not follows & held_up:
                spool.settle(entry["key"], **_outcome(registry, entry, spool))
                settled += 1
                continue
        except RegistryUnavailable as error:
            registry.check()  # raises where not this entry alone is refused
            spool.say_once(f"the registry does not take a record now: {error}")
        except Exception as error:  # whatever it is, those behind it are not to blame
            reason = f"{type(error).__name__}: {error}"
            spool.say_once(f"a record for the registry waits in {spool.path} ({reason})")
        held_up |= {entry["key"], entry.get("id") or entry["key"]}
    return settled


def _outcome(registry: ModelRegistry, entry: dict[str, Any], spool: Outbox) -> dict[str, str]:
    """Send one entry, of which any part may have been sent before."""
    try:
        return {"version": _apply(registry, entry, spool)}
    except RegistryUnavailable:
        raise
    except InputError as error:
        met = error.__cause__
        if isinstance(met, OSError) and not isinstance(met, FileNotFoundError):
            raise  # a disk that fails now may be read later
        spool.say_once(f"the registry cannot take {entry.get('op')}: {error}")
        return {"reason": str(error)}


def _apply(registry: ModelRegistry, entry: dict[str, Any], spool: Outbox) -> str:
    """The version, where there is one."""
    values = {key: value for key, value in entry.items() if key not in ("key", "op")}
    send_one = _SENDERS.get(entry.get("op", ""))
    if send_one is None:
        raise _NotNow(f"its op {entry.get('op')!r} is of another version of distforge")
    return send_one(registry, values, spool)


def _session(registry: ModelRegistry, values: dict[str, Any], spool: Outbox) -> str:
    checkpoints = {int(step): c for step, c in values.pop("checkpoints").items()}
    session = Session(**values, checkpoints=checkpoints)
    registry.record_session(session.with_paths(lambda p: str(found_path(p, spool.directory))))
    return ""


def _curves(registry: ModelRegistry, values: dict[str, Any], spool: Outbox) -> str:
    file = found_path(values["file"], spool.directory)
    registry.record_curves(values["id"], file, values["begin"], values["end"])
    return ""


def _register(registry: ModelRegistry, values: dict[str, Any], spool: Outbox) -> str:
    metadata = dict(values["metadata"])
    if values["parent_key"]:
        parent = spool.outcome(values["parent_key"])
        if parent is None:
            raise _NotNow("what became of its parent cannot be read")
        if "version" not in parent:
            raise InputError("its parent was refused; register that first")
        metadata["parent"] = parent["version"]
    path = str(found_path(values["model_path"], spool.directory))
    version = registry.register_model(
        values["phase"], values["step"], values["model_type"], path, metadata
    )
    for alias in values["aliases"]:
        registry.promote(version, alias)
    if values["best"]:
        _promote_best(registry, version, *values["best"])
    return version


_SENDERS = {"session": _session, "curves": _curves, "register": _register}


def _promote_best(registry: ModelRegistry, version: str, alias: str, metric: str) -> None:
    ours, holder = registry.get(version), registry.by_alias(split_version(version)[0], alias)
    if metric not in ours.metrics:
        return
    if holder is not None and metric in holder.metrics:
        comparable = ours.tags.get(_DATA) == holder.tags.get(_DATA)
        if not comparable or ours.metrics[metric] <= holder.metrics[metric]:
            return
    registry.promote(version, alias)
