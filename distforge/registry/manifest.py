"""The manifest of a model directory: what every file in it must be, byte for byte.

``manifest.json`` holds a list of ``{"path", "bytes", "sha256"}``, one entry a file, sorted by
path; paths are relative to the directory and POSIX. The manifest's id is the sha256 of that
list's canonical JSON, so two directories with the same content have the same id.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from distforge import durable
from distforge.activity import named
from distforge.errors import InputError

MANIFEST_NAME = "manifest.json"
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")

Entry = dict[str, Any]  # {"path": str, "bytes": int, "sha256": str}


def write_manifest(directory: Path, known: Iterable[Entry] = ()) -> str:
    """Writes ``directory/manifest.json`` over all other files there and returns its id.

    Every listed file is flushed to disk before the manifest appears, and the manifest appears
    whole or not at all. An earlier manifest is replaced.

    Args:
        directory: an existing directory that holds at least one regular file and no links.
        known: entries of files that are hashed and on the disk already; of these only the size is
            looked at.

    Returns:
        The manifest's id: 64 hexadecimal digits.

    Raises:
        InputError: the directory is missing or empty, or holds something that is not a plain
            file (a link, a device), for which a manifest could not vouch; or a known file is gone
            or has another size.
    """
    entries = list_files(directory, known)
    durable.write_json(directory / MANIFEST_NAME, entries, indent=1)
    return identify(entries)


def list_files(directory: Path, known: Iterable[Entry] = ()) -> list[Entry]:
    """The entries that `write_manifest` would write, with each file on the disk; see there."""
    directory = _existing_directory(directory)
    durable.temporary(directory / MANIFEST_NAME).unlink(missing_ok=True)
    files = _plain_files(directory)
    if not files:
        raise InputError(
            f"{directory} holds no files, so there is nothing for a manifest to list; save the "
            "model there first"
        )
    hashed = {entry["path"]: entry for entry in known}
    for name, entry in hashed.items():
        found = files[name].stat().st_size if name in files else 0
        if found != entry["bytes"]:
            raise InputError(
                f"{directory / name} has {found} bytes, but {entry['bytes']} were written to it; "
                "save again to a directory that nothing else writes to"
            )
    return [hashed.get(name) or measure_file(directory, name) for name in files]


def measure_file(directory: Path, name: str) -> Entry:
    """Flush one file, then hash it; ``name`` is its POSIX path in ``directory``."""
    durable.flush(directory / name)
    size, digest = _measure(directory / name)
    return {"path": name, "bytes": size, "sha256": digest}


def read_manifest(directory: Path) -> list[Entry]:
    """The entries that a manifest lists, in path order; as `manifest_id` it looks at no file."""
    return read_entries(Path(directory) / MANIFEST_NAME)


def verify_manifest(directory: Path) -> str:
    """Checks every file of ``directory`` against its manifest and returns the manifest's id.

    Raises:
        InputError: the manifest is absent, malformed or points outside the directory, or a file
            is missing, extra or changed. The message names the first such file, in path order.
    """
    fault = next(find_manifest_faults(directory), None)
    if fault is not None:
        raise InputError(fault)
    return manifest_id(directory)


def find_manifest_faults(directory: Path) -> Iterator[str]:
    """All that `verify_manifest` would refuse, one sentence each, found as they are asked for.

    Raises:
        InputError: ``directory`` is not a directory.
    """
    directory = _existing_directory(directory)
    try:
        listed = {entry["path"]: entry for entry in read_entries(directory / MANIFEST_NAME)}
    except InputError as error:
        yield str(error)
        listed = {}
    present, others = _walk(directory)
    yield from map(_why_not_plain, others)
    if not listed:
        return
    fix = "fetch or export the model again, or write a new manifest if the change is meant"
    for name in sorted(listed.keys() | present.keys()):
        if name not in listed:
            yield f"{directory / name} is not listed in {MANIFEST_NAME}; {fix}"
        elif name in present:
            yield from _file_faults(present[name], listed[name], fix)
        elif directory / name not in others:
            yield f"{directory / name} is listed in {MANIFEST_NAME} but missing; {fix}"


def manifest_id(directory: Path) -> str:
    """The id that the manifest of ``directory`` states, without looking at the files it lists.

    Raises:
        InputError: the manifest is absent, malformed or points outside the directory.
    """
    return identify(read_manifest(directory))


def manifest_paths(directory: Path) -> list[str]:
    """The relative POSIX paths that the manifest of ``directory`` lists, in order; as `manifest_id`
    it looks at no file."""
    return [entry["path"] for entry in read_manifest(directory)]


def _file_faults(file: Path, entry: dict[str, Any], fix: str) -> Iterator[str]:
    size = file.stat().st_size
    if size != entry["bytes"]:
        yield f"{file} has {size} bytes but {MANIFEST_NAME} says {entry['bytes']}; {fix}"
        return
    try:
        _, digest = _measure(file)
    except OSError as error:
        yield f"{file} cannot be read ({error.strerror}); give the right to read it"
        return
    if digest != entry["sha256"]:
        yield f"{file} has sha256 {digest} but {MANIFEST_NAME} says {entry['sha256']}; {fix}"


def _existing_directory(directory: Path) -> Path:
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory; give the path of a saved model")
    return directory


def _plain_files(directory: Path) -> dict[str, Path]:
    """All files below ``directory`` but its own manifest, by POSIX path, in path order."""
    found, others = _walk(directory)
    if others:
        raise InputError(_why_not_plain(others[0]))
    return found


def _walk(directory: Path) -> tuple[dict[str, Path], list[Path]]:
    """`_plain_files`, and beside them what is neither a file nor a directory."""
    found: dict[str, Path] = {}
    others = []
    for root, folders, names in os.walk(directory):
        for name in [*folders, *names]:
            path = Path(root, name)
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                others.append(path)
            elif name in names:
                found[path.relative_to(directory).as_posix()] = path
    found.pop(MANIFEST_NAME, None)
    return dict(sorted(found.items())), others


def _why_not_plain(path: Path) -> str:
    return (
        f"{path} is a link or a special file, whose content a manifest cannot vouch for; copy the "
        "files themselves (cp -rL)"
    )


@named("computing the sha256 of {file}")
def _measure(file: Path) -> tuple[int, str]:
    with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return stream.tell(), digest


def identify(entries: list[dict[str, Any]]) -> str:
    """The id of the manifest with these entries."""
    canonical = json.dumps(entries, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def read_entries(file: Path) -> list[dict[str, Any]]:
    """The entries of a manifest's file; `InputError` as for `manifest_id`."""
    fix = "fetch or export the model again"
    try:
        entries = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"{file} does not exist, so the directory cannot be verified; {fix}"
        ) from None
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error}); {fix}") from None
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{file} must hold a non-empty list of path, bytes and sha256; {fix}")
    for entry in entries:
        if not _well_formed(entry):
            raise InputError(
                f"{file} has the entry {entry!r}, which is not a relative path inside the "
                f"directory with its bytes and sha256; {fix}"
            )
    paths = [entry["path"] for entry in entries]
    if paths != sorted(set(paths)):
        raise InputError(f"{file} lists a path twice or out of order; {fix}")
    return entries


def _well_formed(entry: object) -> bool:
    if not isinstance(entry, dict) or entry.keys() != {"path", "bytes", "sha256"}:
        return False
    path, size, digest = entry["path"], entry["bytes"], entry["sha256"]
    if not (isinstance(path, str) and isinstance(digest, str) and _SHA256.match(digest)):
        return False
    if type(size) is not int or size < 0:
        return False
    pure = PurePosixPath(path)
    contained = not pure.is_absolute() and ".." not in pure.parts and "\\" not in path
    return (
        contained
        and "\0" not in path
        and path == pure.as_posix()
        and path
        not in (
            ".",
            MANIFEST_NAME,
        )
    )
