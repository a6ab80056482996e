"""A model's files on a registry server, and copies of them that are whole and verified.

A copy is fetched file by file as its manifest says, never as the server lists them: a manifest's
paths are checked to lie inside the directory before anything is written.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from distforge import durable
from distforge.errors import InputError
from distforge.registry.manifest import (
    MANIFEST_NAME,
    manifest_id,
    manifest_paths,
    verify_manifest,
)
from distforge.registry.records import ModelVersion
from distforge.registry.store import RegistryUnavailable, Store

SCHEME = "mlflow-artifacts:/"
_FOLDER = "model"


def upload(store: Store, run: Any, directory: Path) -> str:
    """Copy a model's files to the server, as artifacts of ``run``; the copy's URI."""
    if not run.info.artifact_uri.startswith(SCHEME):
        raise InputError(
            f"the registry {str(store.uri)!r} keeps files at {run.info.artifact_uri!r} instead of "
            "serving them itself; start it with distforge registry serve"
        )
    store.log_artifacts(run.info.run_id, str(directory), _FOLDER)
    return f"{run.info.artifact_uri}/{_FOLDER}"


def download(store: Store, version: ModelVersion, run: Any, directory: Path) -> Path:
    """See `ModelRegistry.download`; ``run`` is None for a model that lies in a directory here."""
    directory = directory.absolute()
    if directory.exists():
        raise InputError(f"{directory} exists; give a directory that does not")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=directory.parent, prefix=f".{directory.name}.", ignore_cleanup_errors=True
    ) as scratch:
        partial = Path(scratch, "model")
        _fetch(store, version, run, partial)
        durable.publish_directory(partial, directory)
    return directory


def verify_copy(store: Store, version: ModelVersion, run: Any) -> str:
    """Fetch the server's copy, check every file, drop it again; the manifest's id."""
    with tempfile.TemporaryDirectory() as scratch:
        return _fetch(store, version, run, Path(scratch, "model"))


def delete_copy(store: Store, run: Any) -> None:
    """Mark the run deleted; its files go with the next ``mlflow gc`` of the server."""
    store.delete_run(run.info.run_id)


def require_registered(found: str, version: ModelVersion, where: Path) -> None:
    """`InputError` unless the manifest ``found`` at ``where`` is the registered one."""
    if found != version.manifest:
        raise InputError(
            f"{where} holds other content (manifest {found[:12]}) than version "
            f"{version.version} was registered with ({version.manifest[:12]}); restore the files, "
            "or register the directory as a new version"
        )


def _fetch(store: Store, version: ModelVersion, run: Any, partial: Path) -> str:
    partial.mkdir()
    _fetch_file(store, version, run, MANIFEST_NAME, partial)
    require_registered(manifest_id(partial), version, partial)
    for path in manifest_paths(partial):
        _fetch_file(store, version, run, path, partial)
    return verify_manifest(partial)


def _fetch_file(store: Store, version: ModelVersion, run: Any, path: str, directory: Path) -> None:
    target = directory / path
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if run is None:
            shutil.copyfile(version.model_path / path, target, follow_symlinks=False)
            return
        with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
            got = store.download_artifacts(run.info.run_id, f"{_FOLDER}/{path}", scratch)
            os.replace(got, target)
    except RegistryUnavailable:
        raise
    except Exception as error:  # artifact stores raise the types of their own libraries
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{path} of version {version.version} cannot be fetched ({reason}); register the model "
            "again"
        ) from error
