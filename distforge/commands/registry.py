"""``distforge registry serve|list|show|promote|lineage|verify|relocate|gc``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import tyro

from distforge.activity import counted
from distforge.errors import InputError
from distforge.registry import ModelRegistry, ModelVersion, Session, server
from distforge.registry.publisher import replay_spool
from distforge.registry.server import ServeConfig
from distforge.registry.spool import Spool

__all__ = ["ServeConfig"]

URI_VARIABLE = "DISTFORGE_REGISTRY_URI"
_DEFAULT_URI = "runs/registry.db"
_FAULTY = 3


@dataclass(frozen=True)
class ListConfig:
    """List the registered models and the training sessions.

    uri: the registry; by default $DISTFORGE_REGISTRY_URI, or runs/registry.db.
    model_type: only this name.
    sessions: list training sessions instead.
    spool: what runs could not send is sent first, from here.
    """

    uri: str = ""
    model_type: str = ""
    sessions: bool = False
    spool: Path = Path("runs/registry.spool.jsonl")


@dataclass(frozen=True)
class ShowConfig:
    """Show everything known of one version.

    version: such as baked_reasoning/3. uri: the registry, see ``registry list``.
    download: copy the model there, verified.
    """

    version: tyro.conf.Positional[str]
    uri: str = ""
    download: Path | None = None


@dataclass(frozen=True)
class PromoteConfig:
    """Point an alias at a version.

    version: such as baked_reasoning/3.
    alias: champion, baked-latest, baked-best, rl-latest or rl-best.
    uri: the registry, see ``registry list``.
    """

    version: tyro.conf.Positional[str]
    alias: tyro.conf.Positional[str]
    uri: str = ""


@dataclass(frozen=True)
class LineageConfig:
    """Show where a version comes from and what was made of it.

    version: such as baked_reasoning/3.
    uri: the registry, see ``registry list``.
    """

    version: tyro.conf.Positional[str]
    uri: str = ""


@dataclass(frozen=True)
class VerifyConfig:
    """Check every file of a version against its sha256; without one, of all versions, and the event
    log. Exit status 3 when something does not verify.

    version: such as baked_reasoning/3; empty is all.
    uri: the registry, see ``registry list``.
    """

    version: tyro.conf.Positional[str] = ""
    uri: str = ""


@dataclass(frozen=True)
class GcConfig:
    """Remove old versions of one name. Aliased ones and ancestors of what is kept stay; so do all
    files in run directories.

    model_type: the name, such as baked_reasoning.
    uri: the registry, see ``registry list``.
    keep_last: newest versions to keep. keep_every: keep multiples of this number; 0 keeps no more.
    dry_run: only say what would go.
    """

    model_type: tyro.conf.Positional[str]
    uri: str = ""
    keep_last: int = 10
    keep_every: int = 0
    dry_run: bool = False


@dataclass(frozen=True)
class RelocateConfig:
    """Correct the registry, and what waits to be sent to it, after models and runs were moved from
    one folder to another.

    old: the folder they were in. new: where they are now. uri: the registry, see ``registry list``.
    spool: what waits to be sent, as in ``registry list``. dry_run: only say what would change.
    """

    old: tyro.conf.Positional[Path]
    new: tyro.conf.Positional[Path]
    uri: str = ""
    spool: Path = Path("runs/registry.spool.jsonl")
    dry_run: bool = False


def serve(config: ServeConfig) -> int:
    """Run the server until it is stopped."""
    return server.serve(config)


def list_(config: ListConfig) -> int:
    """Print them."""
    uri = _uri(config.uri)
    left = replay_spool(uri, config.spool)
    registry = _open(config.uri)
    if config.sessions:
        for session in registry.sessions():
            print("\n    ".join(_session_entry(session)))
    else:
        for version in registry.find(config.model_type or None):
            print("\n    ".join(_entry(version)))
    if left:
        print(left)
    return 0


def show(config: ShowConfig) -> int:
    """Print tags, metrics, aliases and hand-offs."""
    registry = _open(config.uri)
    version = registry.get(config.version)
    rows = [("alias", alias) for alias in version.aliases]
    rows += sorted(version.tags.items())
    rows += [(key, f"{number:.4f}") for key, number in sorted(version.metrics.items())]
    for handoff in registry.handoffs(version.version):
        rows.append((f"handed to {handoff.target}", handoff.verdict))
    print(version.version)
    width = max((len(key) for key, _ in rows), default=0)
    for key, value in rows:  # no table: its edge would cut paths and hashes, which are to be copied
        print(f"    {key:{width}}  {value}")
    if config.download is not None:
        print(f"{registry.download(version.version, config.download)}: copied and verified")
    return 0


def promote(config: PromoteConfig) -> int:
    """Move the alias."""
    _open(config.uri).promote(config.version, config.alias)
    print(f"{config.alias} is {config.version}")
    return 0


def lineage(config: LineageConfig) -> int:
    """Print ancestors, the version, descendants, one a line."""
    found = _open(config.uri).lineage(config.version)
    for version in reversed(found.ancestors):
        print(_line(version))
    print(f"{_line(found.version)}  <--")
    for version in found.descendants:
        print(_line(version))
    return 0


def verify(config: VerifyConfig) -> int:
    """Check files, and the event log."""
    registry = _open(config.uri)
    wanted = [config.version] if config.version else [v.version for v in registry.find()]
    faults = 0
    for version in counted(wanted, "verifying versions"):
        try:
            print(f"{version}: {registry.verify(version)[:12]} verified")
        except InputError as error:
            faults += 1
            print(f"{version}: {error}")
    if registry.events is not None and not config.version:
        print(f"{registry.events.path}: {len(registry.events.read())} events, none changed")
    return _FAULTY if faults else 0


def gc(config: GcConfig) -> int:
    """Remove, or say what would be removed."""
    removed = _open(config.uri).gc(
        config.model_type, config.keep_last, config.keep_every, dry_run=config.dry_run
    )
    verb = "would remove" if config.dry_run else "removed"
    print(f"{verb} {len(removed)} versions{': ' if removed else ''}{', '.join(removed)}")
    return 0


def relocate(config: RelocateConfig) -> int:
    """Correct paths, or say which would be."""
    changed = _open(config.uri).relocate(config.old, config.new, dry_run=config.dry_run)
    verb = "would correct" if config.dry_run else "corrected"
    print(f"{verb} {len(changed)} paths{': ' if changed else ''}{', '.join(changed)}")
    if config.spool.exists():
        waiting = Spool(config.spool).relocate(config.old, config.new, dry_run=config.dry_run)
        print(f"{verb} {waiting} records that wait in {config.spool}")
    return 0


def _uri(given: str) -> str:
    return given or os.environ.get(URI_VARIABLE, "") or _DEFAULT_URI


def _open(given: str) -> ModelRegistry:
    return ModelRegistry(_uri(given), create=False)


def _entry(version: ModelVersion) -> list[str]:
    """Name and aliases; then what it reached on which data, for those of unlike data do not
    compare; its parent; where it lies."""
    aliases = f"  ({', '.join(version.aliases)})" if version.aliases else ""
    facts = []
    if (accuracy := version.metrics.get("accuracy_overall")) is not None:
        data = version.tags.get("dataset_sha256", "")[:8]
        facts.append(f"accuracy {accuracy:.1%}" + (f" on data {data}" if data else ""))
    if version.parent:
        facts.append(f"from {version.parent}")
    lines = [f"{version.version}{aliases}", ", ".join(facts), str(version.model_path)]
    return [line for line in lines if line]


def _session_entry(session: Session) -> list[str]:
    lines = [f"{session.id}  phase {session.phase}, step {session.step}: {session.status}"]
    if session.checkpoints:
        lines.append(f"checkpoints {', '.join(map(str, sorted(session.checkpoints)))}")
    return [*lines, f"{session.host}:{session.directory}"]


def _line(version: ModelVersion) -> str:
    phase = f"phase {version.tags.get('phase', '?')}, step {version.tags.get('step', '?')}"
    aliases = f" ({', '.join(version.aliases)})" if version.aliases else ""
    return f"{version.version}{aliases}: {phase}, {version.manifest[:12]}, {version.model_path}"
