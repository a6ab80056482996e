"""A model's files on a registry server, and copies of them that are whole and verified.

Files are sent and fetched one by one, in pieces, as the model's manifest says and never as the
server lists them: a manifest's paths are checked to lie inside the directory before anything is
written. An upload that was cut off is gone on with: what the server has whole stays there.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from distforge import durable
from distforge.errors import InputError, first_line
from distforge.registry.contents import Entries
from distforge.registry.manifest import MANIFEST_NAME, identify, read_entries, verify_manifest
from distforge.registry.records import ModelVersion
from distforge.registry.store import RegistryUnavailable, Store

SCHEME = "mlflow-artifacts:/"
_FOLDER = "model"
_BLOCK_BYTES = 1 << 20
# Without a byte sent or received; and for the answer, when the server has stored so many a second.
_STALL_SECONDS = 60.0
_STORED_BYTES = 1 << 20


def upload(
    store: Store,
    run: Any,
    directory: Path,
    entries: Entries,
    progress: Callable[[], None] = lambda: None,
) -> str:
    """Copy a model's files to the server, as artifacts of ``run``; the copy's URI.

    It takes as long as it takes: only a server that takes nothing for a while ends it.

    Args:
        directory, entries: the files, and what they hold.
        progress: called after every piece.
    """
    if not run.info.artifact_uri.startswith(SCHEME):
        raise InputError(
            f"the registry {str(store.uri)!r} keeps files at {run.info.artifact_uri!r} instead of "
            "serving them itself; start it with distforge registry serve"
        )
    there = dict(_sizes(store, run, _FOLDER))
    for entry in entries:
        if there.get(entry["path"]) != entry["bytes"]:
            with open(directory / entry["path"], "rb") as stream:
                _put(store, run, entry["path"], _Counted(stream, progress), entry["bytes"])
    manifest = (json.dumps(entries, indent=1) + "\n").encode()
    _put(store, run, MANIFEST_NAME, manifest, len(manifest))
    return f"{run.info.artifact_uri}/{_FOLDER}"


def download(
    store: Store, version: ModelVersion, run: Any, directory: Path, entries: Entries | None
) -> Path:
    """See `ModelRegistry.download`.

    ``run`` is None for a model that lies in a directory here, and has these ``entries``.
    """
    directory = directory.absolute()
    if directory.exists():
        raise InputError(f"{directory} exists; give a directory that does not")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=directory.parent, prefix=f".{directory.name}.", ignore_cleanup_errors=True
    ) as scratch:
        partial = Path(scratch, "model")
        partial.mkdir()
        if run is not None:
            _save(_pieces(store, version, run, MANIFEST_NAME), partial / MANIFEST_NAME)
            entries = read_entries(partial / MANIFEST_NAME)
        assert entries is not None
        require_registered(identify(entries), version, partial)
        for entry in entries:
            _save(_pieces(store, version, run, entry["path"]), partial / entry["path"])
        if run is None:
            durable.write_json(partial / MANIFEST_NAME, entries, indent=1)
        verify_manifest(partial)
        durable.publish_directory(partial, directory)
    return directory


def verify_copy(store: Store, version: ModelVersion, run: Any) -> str:
    """Read all of the server's copy, of which nothing is kept; the manifest's id."""
    with tempfile.TemporaryDirectory() as scratch:
        manifest = Path(scratch, MANIFEST_NAME)
        _save(_pieces(store, version, run, MANIFEST_NAME), manifest)
        entries = read_entries(manifest)
    require_registered(identify(entries), version, Path(_FOLDER))
    for entry in entries:
        digest = hashlib.sha256()
        for piece in _pieces(store, version, run, entry["path"]):
            digest.update(piece)
        if digest.hexdigest() != entry["sha256"]:
            raise InputError(
                f"{entry['path']} has sha256 {digest.hexdigest()} on the server, but "
                f"{MANIFEST_NAME} says {entry['sha256']}; register the model again"
            )
    return identify(entries)


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


def _sizes(store: Store, run: Any, folder: str) -> Iterator[tuple[str, int]]:
    """Path in the model, and bytes, of what the server has of it."""
    for found in store.list_artifacts(run.info.run_id, folder):
        if found.is_dir:
            yield from _sizes(store, run, found.path)
        else:
            yield found.path.removeprefix(f"{_FOLDER}/"), found.file_size


def _put(store: Store, run: Any, path: str, content: Any, size: int) -> None:
    store.request(
        run.info.artifact_uri,
        "PUT",
        f"/{_FOLDER}/{quote(path)}",
        data=content,
        timeout=(_STALL_SECONDS, _STALL_SECONDS + size / _STORED_BYTES),
    ).close()


def _pieces(store: Store, version: ModelVersion, run: Any, path: str) -> Iterator[bytes]:
    try:
        if run is None:
            with open(version.model_path / path, "rb") as stream:
                yield from iter(lambda: stream.read(_BLOCK_BYTES), b"")
            return
        with store.request(
            run.info.artifact_uri,
            "GET",
            f"/{_FOLDER}/{quote(path)}",
            stream=True,
            timeout=_STALL_SECONDS,
        ) as answer:
            yield from answer.iter_content(_BLOCK_BYTES)
    except OSError as error:  # requests' errors too, in the middle of a file
        reason = first_line(error)
        if run is not None:
            raise RegistryUnavailable(
                f"the registry {str(store.uri)!r} stopped sending {path} ({reason}); try again"
            ) from error
        raise InputError(
            f"{path} of version {version.version} cannot be read ({reason}); register the model "
            "again"
        ) from error


def _save(pieces: Iterator[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "xb") as stream:
        for piece in pieces:
            stream.write(piece)


class _Counted:
    """A file that says when a piece of it was read."""

    def __init__(self, stream: BinaryIO, progress: Callable[[], None]) -> None:
        self._stream, self._progress = stream, progress

    def read(self, size: int = -1) -> bytes:
        self._progress()
        return self._stream.read(size)

    def __getattr__(self, name: str) -> Any:  # its length and place, for the request's headers
        return getattr(self._stream, name)
