"""What a model directory holds, read without writing anything into it.

The directory may be the user's own, or a snapshot in Hugging Face's cache, whose files are links.
Its manifest is kept beside the registry.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distforge import durable
from distforge.errors import InputError
from distforge.registry.manifest import (
    MANIFEST_NAME,
    identify,
    manifest_id,
    read_entries,
    verify_manifest,
)

_BLOCK_BYTES = 1 << 20

Entries = list[dict[str, Any]]


def measure_directory(directory: Path, progress: Callable[[], None] = lambda: None) -> Entries:
    """A manifest's entries for the files of ``directory`` as they are now.

    A link is read where it points to a file of the same model: inside the directory, or, of a
    snapshot in Hugging Face's cache, inside the model's folder there. Any other is refused: a
    server keeps copies of what is registered, and whoever made the directory would otherwise
    choose which of this user's files are copied.

    Args:
        directory: a model directory, resolved.
        progress: called after every MiB.

    Raises:
        InputError: a link elsewhere, a special file, or a file that cannot be read.
    """
    entries = []
    for name, path in sorted(_files(directory).items()):
        digest, size = hashlib.sha256(), 0
        try:
            with open(path, "rb") as stream:
                while block := stream.read(_BLOCK_BYTES):
                    digest.update(block)
                    size += len(block)
                    progress()
        except OSError as error:
            raise InputError(
                f"{path} cannot be read ({error.strerror}); give the right to read it"
            ) from error
        entries.append({"path": name, "bytes": size, "sha256": digest.hexdigest()})
    return entries


def registered_entries(
    directory: Path, manifests: Path | None, progress: Callable[[], None] = lambda: None
) -> Entries:
    """The entries of a directory that is to be registered, every file having been read.

    Where it holds a manifest, it must be true; else one is kept in ``manifests`` (None: nowhere).
    """
    entries = measure_directory(directory, progress)
    if (directory / MANIFEST_NAME).exists():
        if identify(entries) != manifest_id(directory):
            verify_manifest(directory)  # says which file it is
        return entries
    if manifests is not None:
        manifests.mkdir(parents=True, exist_ok=True)
        durable.write_json(_kept(manifests, identify(entries)), entries, indent=1)
    return entries


def known_entries(directory: Path, manifest: str, manifests: Path | None) -> Entries:
    """The entries that were registered as ``manifest``, or those of the directory as it is."""
    if (directory / MANIFEST_NAME).exists():
        return read_entries(directory / MANIFEST_NAME)
    if manifests is not None and (kept := _kept(manifests, manifest)).exists():
        return read_entries(kept)
    return measure_directory(directory)


def verify_directory(directory: Path, manifest: str, manifests: Path | None) -> str:
    """The manifest's id of what lies in ``directory``; it holds what was registered if that is
    ``manifest``.

    Raises:
        InputError: a file is missing, added or changed; the message names the first.
    """
    if (directory / MANIFEST_NAME).exists():
        return verify_manifest(directory)
    found = measure_directory(directory)
    if identify(found) != manifest:
        for entry in known_entries(directory, manifest, manifests):
            if entry not in found:
                raise InputError(
                    f"{directory / entry['path']} is not what was registered; restore it, or "
                    "register the directory as a new version"
                )
    return identify(found)


def _kept(manifests: Path, manifest: str) -> Path:
    return manifests / f"{manifest}.json"


def _files(directory: Path) -> dict[str, Path]:
    found = {}
    for root, folders, names in os.walk(directory):
        for path in (Path(root, name) for name in (*folders, *names)):
            name = path.relative_to(directory).as_posix()
            if path.is_symlink():
                found[name] = _linked_file(path, directory)
            elif path.is_file():
                found[name] = path
            elif not path.is_dir():
                raise InputError(f"{path} is a special file; keep only a model's files there")
    found.pop(MANIFEST_NAME, None)
    return found


def _linked_file(path: Path, directory: Path) -> Path:
    in_cache = directory.parent.name == "snapshots"
    allowed = directory.parent.parent if in_cache else directory
    target = path.resolve()
    if not (target.is_file() and target.is_relative_to(allowed)):
        raise InputError(
            f"{path} is a link to {target}, which is no file of this model; copy the files "
            "themselves (cp -rL)"
        )
    return target
