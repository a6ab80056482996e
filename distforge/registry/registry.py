"""The model registry: a small face over MLflow's, embedded in one SQLite file by default.

A registered version is an exported model directory with its manifest, the metrics it reached, and
its parent, so that every model can be traced to the champion it came from, and every champion to
what was made of it. An embedded registry records where the model lies, and its sha256; a server
keeps a copy as well.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distforge.errors import InputError, require_name
from distforge.locks import Held
from distforge.registry import artifacts, contents, relocation, sessions
from distforge.registry.curves import record_curves
from distforge.registry.events import EventLog
from distforge.registry.manifest import identify
from distforge.registry.places import kept_path
from distforge.registry.records import (
    MANIFEST,
    PARENT,
    PATH,
    Handoff,
    Lineage,
    ModelVersion,
    Session,
    checked_metrics,
    checked_tags,
    require_alias,
    split_version,
)
from distforge.registry.retention import choose_removed
from distforge.registry.store import SQLITE, is_server, open_store, source_commit, store_uri
from distforge.registry.versions import Versions, lookup

_MANIFESTS = "registry.manifests"
# Versions that a message names.
_SHOWN = 8

_log = logging.getLogger(__name__)


class ModelRegistry:
    """Registers, finds and verifies model versions; every change is a line of the event log.

    Args:
        uri: the path of an SQLite file (made when absent), a server's or a database's address (see
            `RegistryConfig`).
        events: the event log; by default beside the SQLite file, and none for an address.
        create: False refuses an SQLite file that is absent.
        progress: called after every piece of a file that is read or sent.

    Raises:
        InputError: bad ``uri``; every method raises it for what its arguments name wrongly.
        RegistryUnavailable: the store cannot be reached or used; so does every method.
    """

    def __init__(
        self,
        uri: str | Path,
        *,
        events: Path | None = None,
        create: bool = True,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        self.uri = uri
        self._store = open_store(uri, create=create)
        resolved = store_uri(uri)
        self._folder = None
        if resolved.startswith(SQLITE):
            file = Path(resolved.removeprefix(SQLITE))
            self._folder = file.parent
            events = events or file.with_name(file.stem + ".events.jsonl")
        self.events = EventLog(events) if events else None
        self._manifests = events.with_name(_MANIFESTS) if events else None
        self._progress = progress
        self._versions = Versions(self._store, self._folder, progress)

    def check(self) -> None:
        """`RegistryUnavailable` unless the registry answers."""
        self._store.search_registered_models(max_results=1)

    def register_model(
        self,
        phase: int,
        step: int,
        model_type: str,
        model_path: str | Path,
        metadata: Mapping[str, Any] | None = None,
    ) -> str:
        """Register the model in ``model_path``; its version, such as ``"baked_reasoning/3"``.

        Args:
            phase, step: where in the pipeline it was made, 0 or more.
            model_type: the registered name, in [A-Za-z0-9._-].
            model_path: an exported model directory, which is only read. The manifest in it must
                be true; where it has none, one is kept beside the registry.
            metadata: ``parent`` (a version, or absent), ``metrics`` (name to number), and anything
                else as tags; what is not a string is kept as JSON, empty values are left out.

        Registering the same content under the same name again returns the version it has, and
        records where the content is now; so it may be repeated after any failure.

        Raises:
            InputError: a bad name, a missing or damaged directory, or an unknown parent.
        """
        metadata = dict(metadata or {})
        metrics = checked_metrics(metadata.pop("metrics", None))
        tags = checked_tags(phase, step, model_type, metadata)
        if commit := source_commit():
            tags.setdefault("git_commit", commit)
        if tags.get(PARENT):
            self.get(tags[PARENT])
        path = _model_directory(Path(model_path))
        entries = contents.registered_entries(path, self._manifests, self._progress)
        manifest, kept = identify(entries), kept_path(path, self._folder)
        if known := self._versions.numbers_of(model_type, manifest):
            version = f"{model_type}/{known[0]}"
            self._store.set_model_version_tag(model_type, known[0], PATH, kept)
            self._versions.finish(version)
            return version
        tags |= {MANIFEST: manifest, PATH: kept}
        version = self._versions.create(model_type, tags, metrics, path, entries)
        self._log("register", version=version, manifest=manifest, model_path=str(path))
        return version

    def get(self, version: str) -> ModelVersion:
        """The version called ``name/number``.

        Raises:
            InputError: there is none, or ``version`` is a name alone; the message has those of it.
        """
        if isinstance(version, str) and "/" not in version and (known := self._known(version)):
            raise InputError(f"{version!r} has no number; choose one of {known}")
        name, number = split_version(version)
        found = lookup(self._store.get_model_version, name, number)
        if found is None or MANIFEST not in found.tags:
            raise InputError(
                f"the registry {str(self.uri)!r} has no version {version!r}; choose one of "
                f"{self._known(name) or 'those that `distforge registry list` shows'}"
            )
        return self._versions.read([found])[0]

    def _known(self, name: str) -> str:
        """The versions of a name, the newest few; empty where there are none."""
        known = [found.version for found in self.find() if found.version.startswith(f"{name}/")]
        return ", ".join(known[-_SHOWN:])

    def find(self, model_type: str | None = None, **tags: object) -> list[ModelVersion]:
        """Ready versions with all these tags (of one name where given), by name and number; without
        arguments, all."""
        condition = None
        if model_type is not None:
            require_name("model_type", model_type)
            condition = f"name = '{model_type}'"
        wanted = {key: str(value) for key, value in tags.items()}
        return self._versions.read(
            v
            for v in self._versions.search(condition)
            if all(v.tags.get(key) == value for key, value in wanted.items())
        )

    def by_alias(self, model_type: str, alias: str) -> ModelVersion | None:
        """The version an alias points to, or None."""
        require_name("model_type", model_type)
        require_alias(alias)
        model = lookup(self._store.get_registered_model, model_type)
        aliases = model.aliases if model else {}
        return self.get(f"{model_type}/{aliases[alias]}") if alias in aliases else None

    def promote(self, version: str, alias: str) -> None:
        """Point ``alias``, one of `ALIASES`, at a version.

        Raises:
            InputError: an unknown alias or version, or a version that is not ready.
        """
        require_alias(alias)
        name, number = split_version(version)
        self.get(version)
        if self._store.get_model_version(name, number).status != "READY":
            raise InputError(f"version {version!r} is not ready; register it again")
        self._store.set_registered_model_alias(name, alias, number)
        self._log("promote", version=version, alias=alias)

    def ancestors(self, version: str) -> list[ModelVersion]:
        """The version, its parent, its parent's parent, …"""
        chain = [self.get(version)]
        while chain[-1].parent:
            chain.append(self.get(chain[-1].parent))
        return chain

    def children(self, version: str) -> list[ModelVersion]:
        """All versions, of any name, that have this one as their parent."""
        return self.find(parent=self.get(version).version)

    def lineage(self, version: str) -> Lineage:
        """The version's history, both ways."""
        first, *ancestors = self.ancestors(version)
        known = self.find()
        found = [first]
        # Grows while it is walked: children of children are found in turn.
        for parent in found:
            found.extend(child for child in known if child.parent == parent.version)
        return Lineage(first, tuple(ancestors), tuple(found[1:]))

    def verify(self, version: str) -> str:
        """Check every file of a version against what was registered; the manifest's id.

        A server's copy is read in full, over the network; nothing of it is kept here.
        """
        registered = self.get(version)
        if registered.uploaded:
            return artifacts.verify_copy(self._store, registered, self._versions.run_of(version))
        found = contents.verify_directory(
            registered.model_path, registered.manifest, self._manifests
        )
        artifacts.require_registered(found, registered, registered.model_path)
        return found

    def download(self, version: str, directory: str | Path) -> Path:
        """Copy a version's files to a new ``directory`` and verify them; the directory.

        It appears whole and verified, or not at all.

        Raises:
            InputError: the directory exists, the version's files are damaged or gone, or the
                manifest names files outside of it.
        """
        registered = self.get(version)
        run = self._versions.run_of(version) if registered.uploaded else None
        if run is None and is_server(self.uri):
            raise InputError(
                f"the registry {str(self.uri)!r} holds no copy of {version}; fetch it from "
                f"{registered.model_path} where it was made"
            )
        entries = None
        if run is None:
            entries = contents.known_entries(
                registered.model_path, registered.manifest, self._manifests
            )
        return artifacts.download(self._store, registered, run, Path(directory), entries)

    def record_handoff(
        self, source: str, target: str, verdict: str, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Record that version ``source`` was offered to ``target``, with which outcome.

        Args:
            source: a registered version.
            target: the receiving phase (such as ``phase4``), or a version.
            verdict: PASS, THEATRE or INCONCLUSIVE.
            metrics: what it was judged by; numbers by name.
        """
        handoff = Handoff(self.get(source).version, target, verdict, checked_metrics(metrics))
        sessions.record_handoff(self._store, handoff)
        self._log("handoff", source=source, target=target, verdict=verdict)

    def handoffs(self, source: str) -> list[Handoff]:
        """What `record_handoff` recorded of a version, oldest first."""
        return sessions.read_handoffs(self._store, self.get(source).version)

    def record_session(self, session: Session) -> None:
        """Record a run directory's state; the same ``id`` again changes it. Checkpoints add up, but
        for those that ``retained`` does not name."""
        sessions.record_session(self._store, session, self._folder)

    def record_curves(self, session: str, file: Path, begin: int, end: int) -> None:
        """Record the metrics that a session's ``metrics.jsonl`` has from one byte to another, and
        its configuration, which lies beside it."""
        record_curves(self._store, session, file, begin, end)

    def sessions(self) -> list[Session]:
        """Every run directory that reported here, oldest first.

        One whose process is gone without a word (its lock is free) is recorded as KILLED first.
        """
        sessions.record_killed(self._store, self._folder)
        return sessions.read_sessions(self._store, self._folder)

    def relocate(self, old: str | Path, new: str | Path, *, dry_run: bool = False) -> list[str]:
        """Put ``new`` in the place of ``old`` in all absolute paths of models and runs; what
        changed, such as ``"baked_reasoning/3"`` or a session's id.

        Paths below the registry's own folder are relative to it and need this only where a version
        of distforge before that wrote them. ``dry_run`` only says what would change.

        Raises:
            InputError: a model or run is not at its new place; nothing is changed then.
        """
        changed = relocation.relocate(
            self._store, self._versions, self._folder, Path(old), Path(new), dry_run=dry_run
        )
        if changed and not dry_run:
            self._log("relocate", old=str(old), new=str(new), changed=changed)
        return changed

    def gc(
        self,
        model_type: str,
        keep_last: int,
        keep_every: int = 0,
        *,
        dry_run: bool = False,
    ) -> list[str]:
        """Remove old versions of one name and the server's copies of them; the removed versions.

        The newest ``keep_last`` (>= 1) are kept, every ``keep_every``-th number (0: none), whatever
        an alias points to, and all ancestors of what is kept. Files in run directories are the
        runs' and stay. ``dry_run`` only says what would go.
        """
        removed = choose_removed(self.find(), model_type, keep_last, keep_every)
        for version in [] if dry_run else removed:
            name, number = split_version(version)
            run = self._versions.run_of(version)
            self._store.delete_model_version(name, number)
            artifacts.delete_copy(self._store, run)
            self._log("remove", version=version)
        return removed

    def _log(self, event: str, **details: Any) -> None:
        if self.events is None:
            return
        try:
            self.events.append(event, registry=str(self.uri), **details)
        except (OSError, Held) as error:  # what it tells of has happened all the same
            _log.warning("the event log lacks a line, %s of %s (%s)", event, details, error)


def _model_directory(path: Path) -> Path:
    resolved = path.resolve()
    if not (resolved / "config.json").is_file():
        raise InputError(
            f"{path} is not an exported model; expected a directory with a config.json in it"
        )
    return resolved
