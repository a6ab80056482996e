"""The model registry: a small face over MLflow's, embedded in one SQLite file by default.

A registered version is an exported model directory with its manifest, the metrics it reached, and
its parent, so that every model can be traced to the champion it came from, and every champion to
what was made of it. The model stays where it is; the registry records where, and its sha256.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distforge.errors import InputError
from distforge.registry.manifest import MANIFEST_NAME, verify_manifest, write_manifest
from distforge.registry.store import experiment_id, open_store, source_commit

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion

ALIASES = ("champion", "baked-latest", "baked-best", "rl-latest", "rl-best")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_METRIC = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
_VERSION = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,99})/([1-9][0-9]{0,9})")
_PARENT, _MANIFEST, _PATH = "parent", "manifest", "model_path"
_OWN_TAGS = frozenset({"phase", "step", _MANIFEST, _PATH})
_MAX_TAG = 5000


@dataclass(frozen=True)
class RegistryConfig:
    """Where models are registered.

    enabled: False registers nothing.
    uri: an SQLite file, or an MLflow store such as ``sqlite:///models.db``; empty is
        ``registry.db`` beside the run directories.
    """

    enabled: bool = True
    uri: str = ""


@dataclass(frozen=True)
class ModelVersion:
    """One registered model. ``version`` is ``name/number``, ``parent`` likewise or empty."""

    version: str
    model_path: Path
    manifest: str
    parent: str
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Lineage:
    """Where a version comes from (nearest first) and what was made of it (parents first)."""

    version: ModelVersion
    ancestors: tuple[ModelVersion, ...]
    descendants: tuple[ModelVersion, ...]


class ModelRegistry:
    """Registers, finds and verifies model versions.

    Args:
        uri: the path of an SQLite file (made when absent), or an MLflow store's URI.

    Raises:
        InputError: the store cannot be opened.
    """

    def __init__(self, uri: str | Path) -> None:
        self._uri = uri
        self._client = open_store(uri)

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
        records where the content is now.

        Raises:
            InputError: a bad name, a missing or damaged directory, or an unknown parent.
        """
        metadata = dict(metadata or {})
        metrics = _checked_metrics(metadata.pop("metrics", None))
        tags = _checked_tags(phase, step, model_type, metadata)
        if tags.get(_PARENT):
            self.get(tags[_PARENT])
        path = _model_directory(Path(model_path))
        manifest = _manifest_of(path)
        known = self.find(model_type, manifest=manifest)
        if known:
            name, number = _split(known[-1].version)
            self._client.set_model_version_tag(name, number, _PATH, str(path))
            return known[-1].version
        return self._create(model_type, {**tags, _MANIFEST: manifest, _PATH: str(path)}, metrics)

    def get(self, version: str) -> ModelVersion:
        """The version called ``name/number``; `InputError` if there is none."""
        from mlflow.exceptions import MlflowException

        name, number = _split(version)
        try:
            found = self._client.get_model_version(name, number)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise InputError(
                f"the registry {str(self._uri)!r} has no version {version!r}; choose one "
                "that it has"
            ) from error
        return self._read(found)

    def find(self, model_type: str | None = None, **tags: object) -> list[ModelVersion]:
        """Ready versions with all these tags (of one name where given), by name and number; without
        arguments, all."""
        condition = None
        if model_type is not None:
            _require_name("model_type", model_type)
            condition = f"name = '{model_type}'"
        wanted = {key: str(value) for key, value in tags.items()}
        matching = [
            v
            for v in self._search(condition)
            if v.status == "READY" and all(v.tags.get(key) == wanted[key] for key in wanted)
        ]
        return [self._read(v) for v in sorted(matching, key=lambda v: (v.name, int(v.version)))]

    def by_alias(self, model_type: str, alias: str) -> ModelVersion | None:
        """The version an alias points to, or None."""
        from mlflow.exceptions import MlflowException

        _require_name("model_type", model_type)
        _require_alias(alias)
        try:
            aliases = self._client.get_registered_model(model_type).aliases
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return self.get(f"{model_type}/{aliases[alias]}") if alias in aliases else None

    def promote(self, version: str, alias: str) -> None:
        """Point ``alias``, one of `ALIASES`, at a version.

        Raises:
            InputError: an unknown alias or version, or a version that is not ready.
        """
        _require_alias(alias)
        name, number = _split(version)
        self.get(version)
        if self._client.get_model_version(name, number).status != "READY":
            raise InputError(f"version {version!r} is not ready; register it again")
        self._client.set_registered_model_alias(name, alias, number)

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
        """Check every file of a version against what was registered; the manifest's id."""
        registered = self.get(version)
        found = verify_manifest(registered.model_path)
        if found != registered.manifest:
            raise InputError(
                f"{registered.model_path} holds other content (manifest {found[:12]}) than version "
                f"{version} was registered with ({registered.manifest[:12]}); restore the files, "
                "or register the directory as a new version"
            )
        return found

    def _create(self, model_type: str, tags: dict[str, str], metrics: dict[str, float]) -> str:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(model_type)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        run = self._client.create_run(experiment_id(self._client, self._uri), run_name=model_type)
        status = "FAILED"
        try:
            for name, value in metrics.items():
                self._client.log_metric(run.info.run_id, name, value)
            # The tags go in with the version: a version is never seen without them.
            created = self._client.create_model_version(
                model_type, source=tags[_PATH], run_id=run.info.run_id, tags=tags
            )
            status = "FINISHED"
        finally:
            self._client.set_terminated(run.info.run_id, status)
        return f"{model_type}/{created.version}"

    def _search(self, condition: str | None) -> list[MlflowVersion]:
        page = self._client.search_model_versions(condition)
        found = [*page]
        while page.token:
            page = self._client.search_model_versions(condition, page_token=page.token)
            found.extend(page)
        return found

    def _read(self, version: MlflowVersion) -> ModelVersion:
        run = self._client.get_run(version.run_id)
        return ModelVersion(
            version=f"{version.name}/{version.version}",
            model_path=Path(version.tags[_PATH]),
            manifest=version.tags[_MANIFEST],
            parent=version.tags.get(_PARENT, ""),
            tags=dict(version.tags),
            metrics=dict(run.data.metrics),
        )


def _model_directory(path: Path) -> Path:
    resolved = path.resolve()
    if not (resolved / "config.json").is_file():
        raise InputError(
            f"{path} is not an exported model; expected a directory with a config.json in it"
        )
    return resolved


def _manifest_of(path: Path) -> str:
    return verify_manifest(path) if (path / MANIFEST_NAME).exists() else write_manifest(path)


def _checked_tags(
    phase: int, step: int, model_type: str, metadata: Mapping[str, Any]
) -> dict[str, str]:
    _require_name("model_type", model_type)
    for name, number in (("phase", phase), ("step", step)):
        if type(number) is not int or number < 0:
            raise InputError(f"{name} is {number!r}; expected a whole number, 0 or more")
    tags = {"phase": str(phase), "step": str(step)}
    if commit := source_commit():
        tags["git_commit"] = commit
    for key, value in metadata.items():
        _require_name("a metadata key", key)
        if key in _OWN_TAGS:
            raise InputError(f"the metadata have the key {key!r}, which the registry sets; drop it")
        if value is None or value == "":
            continue
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
        if len(text) > _MAX_TAG:
            raise InputError(
                f"the metadata's {key!r} has {len(text)} characters; at most {_MAX_TAG} fit a tag, "
                "so put it into a file of the model"
            )
        tags[key] = text
    return tags


def _checked_metrics(metrics: Any) -> dict[str, float]:
    checked = {}
    for name, value in dict(metrics or {}).items():
        if not isinstance(name, str) or not _METRIC.fullmatch(name):
            raise InputError(
                f"a metric is called {name!r}; use letters, digits, '.', '_', '-', '/'"
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"the metric {name!r} is {value!r}; expected a number")
        # What was not measured is left out: a store holds no NaN that compares like a number.
        if math.isfinite(value):
            checked[name] = float(value)
    return checked


def _split(version: str) -> tuple[str, str]:
    match = _VERSION.fullmatch(version)
    if match is None:
        raise InputError(
            f"version {version!r} is not of the form name/number, such as baked_reasoning/3"
        )
    return match[1], match[2]


def _require_alias(alias: str) -> None:
    if alias not in ALIASES:
        raise InputError(f"alias is {alias!r}; expected one of {', '.join(ALIASES)}")


def _require_name(what: str, name: object) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(
            f"{what} is {name!r}; expected letters, digits, '.', '_' and '-', at most 100, "
            "beginning with a letter or digit"
        )
