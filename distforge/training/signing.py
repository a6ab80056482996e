"""Which checkpoints a run wrote itself: those that its key has signed.

Whoever may write into a run's directory could leave a ``step_999999`` there, which a resume would
prefer to all others. So a run keeps a random key, ``checkpoints.key`` beside ``checkpoints``, that
none but its owner may read. A checkpoint's file ``signature`` is the HMAC-SHA256, under that key,
of its name and its manifest without this very file.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import tempfile
from collections.abc import Sequence
from pathlib import Path

from distforge import durable
from distforge.errors import InputError, first_line
from distforge.registry.manifest import (
    MANIFEST_NAME,
    Entry,
    manifest_paths,
    read_manifest,
    verify_manifest,
    write_manifest,
)

SIGNATURE_FILE = "signature"
_KEY = re.compile(r"[0-9a-f]{64}\n")


def key_file(root: Path) -> Path:
    """Where the key for the checkpoints in ``root`` lies."""
    return root.with_name(f"{root.name}.key")


def ensure_key(root: Path) -> bytes:
    """The key for the checkpoints in ``root``, made where there is none; raises as `read_key`."""
    key = read_key(root)
    if key is None:
        key = secrets.token_bytes(32)
        durable.write_text(key_file(root), key.hex() + "\n", mode=0o600)
    return key


def read_key(root: Path) -> bytes | None:
    """The key for the checkpoints in ``root``, or None where there is none.

    Raises:
        InputError: it cannot be read, is no key, or is one that others may read.
    """
    path = key_file(root)
    try:
        text, mode = path.read_text(encoding="utf-8"), path.stat().st_mode
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read ({first_line(error)}); {how_to_trust(root)}"
        ) from None
    if not _KEY.fullmatch(text):
        raise InputError(f"{path} holds no key of 64 hexadecimal digits; {how_to_trust(root)}")
    if mode & 0o077 and _keeps_modes(root.parent):
        raise InputError(
            f"{path} has mode {mode & 0o777:04o}, so that others could sign checkpoints of this "
            f"run; if nobody else could write to {root}, set it back with chmod 600"
        )
    return bytes.fromhex(text)


def write_signed_manifest(partial: Path, name: str, key: bytes, known: Sequence[Entry]) -> None:
    """Sign what is in ``partial``, which will be ``name``, and write its manifest.

    ``known``: the entries of all the files in it, which are on the disk.
    """
    durable.write_text(partial / SIGNATURE_FILE, _sign(name, known, key) + "\n")
    write_manifest(partial, known)


def require_signed(directory: Path, key: bytes) -> None:
    """Compare a checkpoint's signature with its manifest; looks at no other file.

    Raises:
        InputError: it has no signature, or one that this key did not make.
    """
    try:
        found = (directory / SIGNATURE_FILE).read_bytes().strip()
    except FileNotFoundError:
        found = b""
    wanted = _sign(directory.name, _signed_entries(directory), key)
    if not hmac.compare_digest(found, wanted.encode("ascii")):
        what = "a signature that is not this run's" if found else "no signature"
        raise InputError(
            f"it has {what}: this run did not write it; remove it, or "
            f"{how_to_trust(directory.parent)}"
        )


def sign_again(directory: Path, key: bytes) -> None:
    """Sign a checkpoint as it is, every byte of which its manifest describes.

    Killed in between, it verifies no more until this is called again.

    Raises:
        InputError: the manifest does not verify.
    """
    if SIGNATURE_FILE not in manifest_paths(directory):
        (directory / SIGNATURE_FILE).unlink(missing_ok=True)  # of a call that was killed
    verify_manifest(directory)
    known = _signed_entries(directory)
    durable.write_json(directory / MANIFEST_NAME, known, indent=1)
    write_signed_manifest(directory, directory.name, key, known)


def how_to_trust(root: Path) -> str:
    """What to do about checkpoints in ``root`` that the key there has not signed."""
    return (
        f"copy {key_file(root).name} from where the run was before, or, if you know who wrote "
        f"them, sign them with `distforge trust {root.parent}`"
    )


def _signed_entries(directory: Path) -> list[Entry]:
    return [entry for entry in read_manifest(directory) if entry["path"] != SIGNATURE_FILE]


def _keeps_modes(directory: Path) -> bool:
    """Some file systems give every file the same mode, and nobody can give the key a better one."""
    try:
        with tempfile.TemporaryFile(dir=directory) as probe:
            return os.fstat(probe.fileno()).st_mode & 0o077 == 0
    except OSError:  # a directory that cannot be written to says nothing against it
        return True


def _sign(name: str, entries: Sequence[Entry], key: bytes) -> str:
    ordered = sorted(entries, key=lambda entry: entry["path"])
    message = json.dumps([name, ordered], sort_keys=True, separators=(",", ":"))
    return hmac.new(key, message.encode("ascii"), hashlib.sha256).hexdigest()
