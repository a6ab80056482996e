"""What a new beginning replaces: beside it, hidden, until that has ended.

Nothing finished is removed for something that has only begun. It steps aside under a hidden name,
so that all paths that the new one writes down are right from the start; once the new one has ended
it is removed, and where the new one never began, or its directory was removed, it comes back.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from distforge import durable

logger = logging.getLogger(__name__)


def previous(directory: Path) -> Path:
    """Where what lay at ``directory`` before is kept."""
    return directory.with_name(f".{directory.name}.previous")


def set_aside(directory: Path, is_whole: Callable[[Path], bool]) -> None:
    """Make room at ``directory``, if something is there.

    What is not whole is removed only where something whole is kept already.
    """
    kept = previous(directory)
    if not directory.exists():
        return
    if kept.exists() and is_whole(kept) and not is_whole(directory):
        durable.remove_directory(directory)
        return
    if kept.exists():
        durable.remove_directory(kept)
    os.rename(directory, kept)
    durable.flush(directory.parent)
    logger.warning("%s is kept as %s until the new one has ended", directory, kept)


def bring_back(directory: Path) -> bool:
    """Where nothing is at ``directory``, what is kept of it comes back; whether something did."""
    if directory.exists() or not previous(directory).exists():
        return False
    os.rename(previous(directory), directory)
    durable.flush(directory.parent)
    return True


def forget(directory: Path) -> None:
    """The new one has ended: remove what is kept of the one before."""
    try:
        if previous(directory).exists():
            durable.remove_directory(previous(directory))
    except OSError as error:
        logger.warning("%s could not be removed (%s)", previous(directory), error)
