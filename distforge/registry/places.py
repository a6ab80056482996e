"""Where a model lies, as it is kept: relative to the folder of what keeps it, if it is below that.

So a folder of runs may be moved or copied with the registry in it. What lies elsewhere is kept as
an absolute path, which `relocated` corrects.
"""

from __future__ import annotations

from pathlib import Path, PurePath


def kept_path(path: Path, folder: Path | None) -> str:
    """The absolute ``path`` as it is kept in ``folder``; None has no place of its own."""
    if folder is not None and path != folder and path.is_relative_to(folder):
        return path.relative_to(folder).as_posix()
    return str(path)


def found_path(kept: str, folder: Path | None) -> Path:
    """The path that `kept_path` kept."""
    return Path(kept) if folder is None else folder / kept


def relocated(kept: str, old: PurePath, new: PurePath) -> str | None:
    """An absolute path below ``old`` with ``new`` in its place; None for any other."""
    path = PurePath(kept)
    if not path.is_absolute() or not path.is_relative_to(old):
        return None
    return str(new / path.relative_to(old))
