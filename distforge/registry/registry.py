"""The model registry: a small face over MLflow's, embedded in one SQLite file by default.

A registered version is an exported model directory with its manifest, the metrics it reached, and
its parent, so that every model can be traced to the champion it came from.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distforge.errors import InputError
from distforge.registry.manifest import verify_manifest, write_manifest

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_EXPERIMENT = "distforge"
_PARENT, _MANIFEST, _PATH, _READY = "parent", "manifest", "model_path", "ready"


@dataclass(frozen=True)
class RegistryConfig:
    """Where models are registered.

    enabled: False registers nothing.
    uri: an MLflow store, such as ``sqlite:///models.db``; empty is ``registry.db`` beside the run
        directories.
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


class ModelRegistry:
    """Registers, finds and verifies model versions.

    Args:
        uri: an MLflow tracking and registry store; a SQLite file is made when it is not there.

    Raises:
        InputError: the store cannot be opened.
    """

    def __init__(self, uri: str) -> None:
        self._client = _open(uri)

    def register_model(
        self,
        phase: int,
        step: int,
        model_type: str,
        model_path: Path,
        metadata: Mapping[str, Any],
    ) -> str:
        """Register the model in ``model_path``; its version, such as ``"baked_reasoning/3"``.

        Args:
            phase, step: where in the pipeline it was made.
            model_type: the registered name, in [A-Za-z0-9._-].
            model_path: an exported model directory; a manifest is written into it, or verified
                when it has one.
            metadata: ``parent`` (a version, or absent), ``metrics`` (name to number), and anything
                else as tags.

        Registering the same content again returns the version it has. Raises `InputError` for a
        bad name, a missing or damaged directory, or an unknown parent.
        """
        _require_name("model_type", model_type)
        if not (model_path / "config.json").is_file():
            raise InputError(f"{model_path} is not an exported model; expected a config.json in it")
        has_manifest = (model_path / "manifest.json").exists()
        manifest = verify_manifest(model_path) if has_manifest else write_manifest(model_path)
        parent = str(metadata.get(_PARENT) or "")
        if parent:
            self.get(parent)
        known = self.find(model_type, manifest=manifest)
        if known:
            return known[-1].version
        return self._create(phase, step, model_type, model_path, manifest, metadata)

    def get(self, version: str) -> ModelVersion:
        """The version called ``name/number``; `InputError` if there is none."""
        from mlflow.exceptions import MlflowException

        name, _, number = version.partition("/")
        _require_name("model name", name)
        if not number.isdigit():
            raise InputError(f"version {version!r} is not of the form name/number")
        try:
            return self._read(self._client.get_model_version(name, number))
        except MlflowException as error:
            raise InputError(f"the registry has no version {version!r}") from error

    def find(self, model_type: str, **tags: str) -> list[ModelVersion]:
        """Ready versions of a model with all these tags, oldest first."""
        _require_name("model_type", model_type)
        found = self._client.search_model_versions(f"name = '{model_type}'")
        matching = [
            v
            for v in found
            if v.tags.get(_READY) == "true"
            and all(v.tags.get(key) == value for key, value in tags.items())
        ]
        return [self._read(v) for v in sorted(matching, key=lambda v: int(v.version))]

    def by_alias(self, model_type: str, alias: str) -> ModelVersion | None:
        """The version an alias points to, or None."""
        number = self._client.get_registered_model(model_type).aliases.get(alias)
        return None if number is None else self.get(f"{model_type}/{number}")

    def promote(self, version: str, alias: str) -> None:
        """Point ``alias`` at a ready version; `InputError` for a bad name or unknown version."""
        _require_name("alias", alias)
        if self.get(version).tags.get(_READY) != "true":
            raise InputError(f"version {version!r} is not ready; register it again")
        name, _, number = version.partition("/")
        self._client.set_registered_model_alias(name, alias, number)

    def ancestors(self, version: str) -> list[ModelVersion]:
        """The version, its parent, its parent's parent, …"""
        chain = [self.get(version)]
        while chain[-1].parent:
            chain.append(self.get(chain[-1].parent))
        return chain

    def children(self, version: str) -> list[ModelVersion]:
        """All versions, of any name, that have this one as their parent."""
        names = [model.name for model in self._client.search_registered_models()]
        return [child for name in names for child in self.find(name, parent=version)]

    def verify(self, version: str) -> str:
        """Check every file of a version against what was registered; the manifest's id."""
        registered = self.get(version)
        found = verify_manifest(registered.model_path)
        if found != registered.manifest:
            raise InputError(
                f"{registered.model_path} holds other content (manifest {found[:12]}) than version "
                f"{version} was registered with ({registered.manifest[:12]})"
            )
        return found

    def _create(
        self,
        phase: int,
        step: int,
        model_type: str,
        model_path: Path,
        manifest: str,
        metadata: Mapping[str, Any],
    ) -> str:
        from mlflow.exceptions import MlflowException

        experiment = self._client.get_experiment_by_name(_EXPERIMENT)
        experiment_id = (
            experiment.experiment_id if experiment else self._client.create_experiment(_EXPERIMENT)
        )
        run = self._client.create_run(experiment_id, run_name=model_type)
        for name, value in dict(metadata.get("metrics") or {}).items():
            self._client.log_metric(run.info.run_id, name, float(value))
        self._client.set_terminated(run.info.run_id)
        tags = {
            "phase": phase,
            "step": step,
            _MANIFEST: manifest,
            _PATH: model_path.resolve(),
            **{key: value for key, value in metadata.items() if key != "metrics" and value},
        }
        if commit := _git_commit():
            tags["git_commit"] = commit
        try:
            self._client.create_registered_model(model_type)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        created = self._client.create_model_version(
            model_type,
            source=str(model_path.resolve()),
            run_id=run.info.run_id,
            tags={key: str(value) for key, value in tags.items()},
        )
        # Last: a version without this tag was cut off while it was written, and is not found.
        self._client.set_model_version_tag(model_type, created.version, _READY, "true")
        return f"{model_type}/{created.version}"

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


def _open(uri: str) -> MlflowClient:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_registered_models(max_results=1)
    except (MlflowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the registry {uri!r} cannot be opened ({reason})") from error
    return client


def _require_name(what: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{what} is {name!r}; expected letters, digits, '.', '_' and '-', beginning with a "
            "letter or digit"
        )


def _git_commit() -> str:
    """The commit this code was run from, or an empty string outside a git checkout."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""
