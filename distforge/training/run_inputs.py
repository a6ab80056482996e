"""What a run starts from, by content: the same on every rank, and in every session of the run.

Paths say nothing of that: data, a champion or a baked model can be others behind the same path.
What a run started from is written into its directory as hashes and compared when it is resumed.

Another version of distforge is not refused: that is how a run gets past the bug it died of. It is
noted, with a warning. Refused is a directory of a newer form than this version knows.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distforge import __version__, durable
from distforge.errors import InputError, first_line
from distforge.models.weight_files import files_sha256
from distforge.registry.store import source_commit
from distforge.training.distributed import World, on_main

INPUTS_RECORD = "identity.json"
# Of a run's directory; one that older versions of distforge cannot continue raises it.
FORMAT = 1

logger = logging.getLogger(__name__)


def require_alike(world: World, things: Mapping[str, str]) -> None:
    """`InputError`, on every rank, unless ``things``, hashes by name, are the same on all of them.

    Collective.
    """
    first, *others = world.gather_objects(dict(things))
    for rank, theirs in enumerate(others, start=1):
        for name in first:
            if theirs.get(name) != first[name]:
                raise InputError(
                    f"rank {rank} has another {name} ({_short(theirs.get(name, ''))}) than rank 0 "
                    f"({_short(first[name])}); give all ranks the same"
                )


def require_format(directory: Path) -> None:
    """`InputError` for a run of a newer form, or whose record cannot be read."""
    form = _read(directory).get("format", 0)
    if form > FORMAT:
        raise InputError(
            f"{directory} was written by a newer distforge, in form {form} where this one, "
            f"{__version__}, knows {FORMAT}; continue it with that version, or give another --name"
        )


def require_unchanged(
    directory: Path, inputs: Mapping[str, str], world: World, *, is_new: bool, force: bool
) -> None:
    """Note what a run starts from, or compare it with what it started from before; collective.

    Args:
        directory: the run's.
        inputs: hashes by name, such as "training data"; an empty one is unknown.
        is_new: nothing is there to compare with.
        force: go on with what has changed; that is noted.

    Raises:
        InputError: on every rank: they have not the same, or another input than the run had.
    """
    require_alike(world, inputs)
    on_main(world, lambda: _compare(directory, inputs, is_new, force))


def _compare(directory: Path, inputs: Mapping[str, str], is_new: bool, force: bool) -> None:
    record = {} if is_new else _read(directory)
    known = record.get("inputs", {})
    if not is_new and not record:
        logger.warning(
            "%s has no record of what it started from: whether that has changed is not known",
            directory,
        )
    changed = {n: h for n, h in inputs.items() if h and known.get(n, h) not in ("", h)}
    if changed and not force:
        name, now = next(iter(changed.items()))
        raise InputError(
            f"{directory} started from another {name} ({_short(known[name])}) than is there now "
            f"({_short(now)}); put that back, give another --name, or go on all the same with "
            "--resume force"
        )
    code = f"{__version__} {source_commit()[:12]}".strip()
    sessions = record.get("distforge", [])
    if sessions and sessions[-1] != code:
        logger.warning("%s continues with distforge %s after %s", directory, code, sessions[-1])
    record = {
        "format": FORMAT,
        "distforge": sessions if code in sessions[-1:] else [*sessions, code],
        "inputs": {**known, **inputs},
        "forced": record.get("forced", []) + [{n: known[n] for n in changed}] * bool(changed),
    }
    durable.write_json(directory / INPUTS_RECORD, record)


def _read(directory: Path) -> dict[str, Any]:
    path = directory / INPUTS_RECORD
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text("utf-8"))
        if isinstance(record, dict) and isinstance(record.get("format"), int):
            return record
        raise ValueError("it holds no record of a run")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({first_line(error)}); restore it from a copy, or remove it: "
            "then changed inputs go unnoticed"
        ) from None


def path_sha256(path: str) -> str:
    """Of a file, or of all files in a directory with their names; empty where nothing is named."""
    if not path:
        return ""
    root = Path(path).expanduser()
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{files_sha256([file])}  {file.relative_to(root.parent)}\n".encode())
    return digest.hexdigest()


def _short(digest: str) -> str:
    return digest[:12] or "unknown"
