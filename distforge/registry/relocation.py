"""Corrects the paths of a registry, and of what a spool has for it, after files were moved."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distforge.errors import InputError
from distforge.registry.artifacts import SCHEME
from distforge.registry.places import found_path, kept_path, relocated
from distforge.registry.records import PATH
from distforge.registry.sessions import find_runs
from distforge.registry.store import Store
from distforge.registry.versions import Versions

# In an entry of a spool, beside those of its checkpoints.
_PATHS = ("model_path", "directory", "lock", "file")


def relocate(
    store: Store,
    versions: Versions,
    folder: Path | None,
    old: Path,
    new: Path,
    *,
    dry_run: bool,
) -> list[str]:
    """See `ModelRegistry.relocate`."""
    before, after = Path(os.path.abspath(old)), Path(os.path.abspath(new))
    models = []
    for version in versions.search(None):
        moved = relocated(version.tags[PATH], before, after)
        if moved is None:
            continue
        if not version.source.startswith(SCHEME) and not Path(moved, "config.json").is_file():
            raise InputError(
                f"{version.name}/{version.version} is not at {moved}; move the files first, or "
                "name the folder that they were moved to"
            )
        models.append((version, kept_path(Path(moved), folder)))
    runs = [
        (run, changes)
        for run in find_runs(store, "tags.session LIKE '%'")
        if (changes := dict(_changed_tags(run.data.tags, folder, before, after)))
    ]
    if not dry_run:
        for version, path in models:
            store.set_model_version_tag(version.name, str(version.version), PATH, path)
        for run, changes in runs:
            for key, value in changes.items():
                store.set_tag(run.info.run_id, key, value)
    named = [f"{version.name}/{version.version}" for version, _ in models]
    return named + [run.data.tags["session"] for run, _ in runs]


def relocated_entry(entry: dict[str, Any], folder: Path, old: Path, new: Path) -> dict[str, Any]:
    """An entry of the spool in ``folder`` with ``new`` in the place of ``old`` in its paths."""
    before, after = Path(os.path.abspath(old)), Path(os.path.abspath(new))

    def moved(kept: str) -> str:
        now = relocated(str(found_path(kept, folder)), before, after)
        return kept if now is None else kept_path(Path(now), folder)

    paths: dict[str, Any] = {key: moved(entry[key]) for key in _PATHS if entry.get(key)}
    if checkpoints := entry.get("checkpoints"):
        paths["checkpoints"] = {
            step: {**checkpoint, "path": moved(checkpoint["path"])}
            for step, checkpoint in checkpoints.items()
        }
    return entry | paths


def _changed_tags(
    tags: dict[str, str], folder: Path | None, old: Path, new: Path
) -> Iterator[tuple[str, str]]:
    for key, value in tags.items():
        if key in ("directory", "lock") and (moved := relocated(value, old, new)):
            yield key, kept_path(Path(moved), folder)
        elif key.startswith("checkpoint."):
            checkpoint = json.loads(value)
            if moved := relocated(checkpoint["path"], old, new):
                checkpoint["path"] = kept_path(Path(moved), folder)
                yield key, json.dumps(checkpoint, sort_keys=True)
