"""The model registry: a small face over MLflow's, embedded in one SQLite file by default.

A registered version is an exported model directory with its manifest, the metrics it reached, and
its parent, so that every model can be traced to the champion it came from, and every champion to
what was made of it. An embedded registry records where the model lies, and its sha256; a server
keeps a copy as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distforge.errors import InputError, require_name
from distforge.registry import artifacts, sessions
from distforge.registry.events import EventLog
from distforge.registry.manifest import MANIFEST_NAME, verify_manifest, write_manifest
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
from distforge.registry.store import (
    experiment_id,
    is_server,
    open_store,
    source_commit,
    store_uri,
)

_PAGE = 100


class ModelRegistry:
    """Registers, finds and verifies model versions; every change is a line of the event log.

    Args:
        uri: the path of an SQLite file (made when absent), a server's or a database's address (see
            `RegistryConfig`).
        events: the event log; by default beside the SQLite file, and none for an address.
        create: False refuses an SQLite file that is absent.

    Raises:
        InputError: bad ``uri``; every method raises it for what its arguments name wrongly.
        RegistryUnavailable: the store cannot be reached or used; so does every method.
    """

    def __init__(self, uri: str | Path, *, events: Path | None = None, create: bool = True) -> None:
        self.uri = uri
        self._store = open_store(uri, create=create)
        resolved = store_uri(uri)
        if events is None and resolved.startswith("sqlite:///"):
            file = Path(resolved.removeprefix("sqlite:///"))
            events = file.with_name(file.stem + ".events.jsonl")
        self.events = EventLog(events) if events else None

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
            model_path: an exported model directory; a manifest is written into it, or verified
                when it has one.
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
        manifest = (
            verify_manifest(path) if (path / MANIFEST_NAME).exists() else write_manifest(path)
        )
        if known := self._numbers_of(model_type, manifest):
            self._store.set_model_version_tag(model_type, known[0], PATH, str(path))
            return f"{model_type}/{known[0]}"
        tags |= {MANIFEST: manifest, PATH: str(path)}
        version = self._create(model_type, tags, metrics)
        self._log("register", version=version, manifest=manifest, model_path=str(path))
        return version

    def get(self, version: str) -> ModelVersion:
        """The version called ``name/number``."""
        name, number = split_version(version)
        found = self._lookup(self._store.get_model_version, name, number)
        if found is None or MANIFEST not in found.tags:
            raise InputError(
                f"the registry {str(self.uri)!r} has no version {version!r}; choose one that it has"
            )
        return self._read([found])[0]

    def find(self, model_type: str | None = None, **tags: object) -> list[ModelVersion]:
        """Ready versions with all these tags (of one name where given), by name and number; without
        arguments, all."""
        condition = None
        if model_type is not None:
            require_name("model_type", model_type)
            condition = f"name = '{model_type}'"
        wanted = {key: str(value) for key, value in tags.items()}
        return self._read(
            v
            for v in self._search(condition)
            if all(v.tags.get(key) == value for key, value in wanted.items())
        )

    def by_alias(self, model_type: str, alias: str) -> ModelVersion | None:
        """The version an alias points to, or None."""
        require_name("model_type", model_type)
        require_alias(alias)
        model = self._lookup(self._store.get_registered_model, model_type)
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

        A server's copy is read in full, over the network.
        """
        registered = self.get(version)
        if registered.uploaded:
            return artifacts.verify_copy(self._store, registered, self._run_of(version))
        found = verify_manifest(registered.model_path)
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
        run = self._run_of(version) if registered.uploaded else None
        if run is None and is_server(self.uri):
            raise InputError(
                f"the registry {str(self.uri)!r} holds no copy of {version}; fetch it from "
                f"{registered.model_path} where it was made"
            )
        return artifacts.download(self._store, registered, run, Path(directory))

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
        """Record a run directory's state; the same ``id`` again changes it. Checkpoints add up."""
        sessions.record_session(self._store, session)

    def sessions(self) -> list[Session]:
        """Every run directory that reported here, oldest first."""
        return sessions.read_sessions(self._store)

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
            run = self._run_of(version)
            self._store.delete_model_version(name, number)
            artifacts.delete_copy(self._store, run)
            self._log("remove", version=version)
        return removed

    def _create(self, model_type: str, tags: dict[str, str], metrics: dict[str, float]) -> str:
        if self._lookup(self._store.get_registered_model, model_type) is None:
            self._make_name(model_type)
        run = self._store.create_run(experiment_id(self._store), run_name=model_type)
        status = "FAILED"
        try:
            for name, value in metrics.items():
                self._store.log_metric(run.info.run_id, name, value)
            source = tags[PATH]
            if is_server(self.uri):
                source = artifacts.upload(self._store, run, Path(source))
            # Copy first, then the version with its tags: what is seen at all is seen whole.
            created = self._store.create_model_version(
                model_type, source=source, run_id=run.info.run_id, tags=tags
            )
            status = "FINISHED"
        finally:
            self._store.set_terminated(run.info.run_id, status)
        # Two writers of one content at once: the lower number stays, for both.
        first = self._numbers_of(model_type, tags[MANIFEST])[0]
        if first != str(created.version):
            self._store.delete_model_version(model_type, str(created.version))
            artifacts.delete_copy(self._store, run)
        return f"{model_type}/{first}"

    def _make_name(self, model_type: str) -> None:
        try:
            self._store.create_registered_model(model_type)
        except Exception as error:
            if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
                raise

    def _numbers_of(self, model_type: str, manifest: str) -> list[str]:
        found = self._search(f"name = '{model_type}' and tags.{MANIFEST} = '{manifest}'")
        return [str(v.version) for v in found]

    def _run_of(self, version: str) -> Any:
        return self._store.get_run(self._store.get_model_version(*split_version(version)).run_id)

    def _lookup(self, method: Any, *arguments: str) -> Any:
        """What MLflow has under a name, or None."""
        try:
            return method(*arguments)
        except Exception as error:
            if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def _search(self, condition: str | None) -> list[Any]:
        """Ready versions that this package registered, by name and number."""
        found: list[Any] = []
        token = None
        while True:
            page = self._store.search_model_versions(condition, page_token=token)
            # A shared server also holds what others registered, in their own ways.
            found += [v for v in page if v.status == "READY" and MANIFEST in v.tags]
            token = page.token
            if not token:
                return sorted(found, key=lambda v: (v.name, int(v.version)))

    def _read(self, versions: Any) -> list[ModelVersion]:
        versions = list(versions)
        metrics = sessions.read_metrics(self._store, [v.run_id for v in versions])
        aliases = self._aliases({v.name for v in versions})
        return [
            ModelVersion(
                version=f"{v.name}/{v.version}",
                model_path=Path(v.tags[PATH]),
                manifest=v.tags[MANIFEST],
                parent=v.tags.get(PARENT, ""),
                tags=dict(v.tags),
                metrics=metrics.get(v.run_id, {}),
                aliases=aliases.get((v.name, str(v.version)), ()),
                uploaded=v.source.startswith(artifacts.SCHEME),
            )
            for v in versions
        ]

    def _aliases(self, names: set[str]) -> dict[tuple[str, str], tuple[str, ...]]:
        found: dict[tuple[str, str], tuple[str, ...]] = {}
        for name in names:
            for alias, number in sorted(self._store.get_registered_model(name).aliases.items()):
                found[name, str(number)] = (*found.get((name, str(number)), ()), alias)
        return found

    def _log(self, event: str, **details: Any) -> None:
        if self.events is not None:
            self.events.append(event, registry=str(self.uri), **details)


def _model_directory(path: Path) -> Path:
    resolved = path.resolve()
    if not (resolved / "config.json").is_file():
        raise InputError(
            f"{path} is not an exported model; expected a directory with a config.json in it"
        )
    return resolved
