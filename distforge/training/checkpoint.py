"""A run's checkpoints: the one place that turns a directory into a checkpoint.

A checkpoint ``step_N`` appears whole or not at all: it is written as ``step_N.tmp``, flushed,
listed in a manifest, and renamed last. Killed at any moment, a run resumes from the newest one
whose manifest verifies.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from distforge import durable
from distforge.errors import InputError, require_in
from distforge.registry.manifest import verify_manifest, write_manifest
from distforge.training.distributed import World

_NAME = re.compile(r"step_(\d+)")
# What a killed save leaves; ".old" in the middle is from before distforge.durable.
_LEFTOVER = re.compile(r"step_\d+(\.old)?\.tmp(\.old)?")
_LATEST_FILE = "latest"
_STATE_FILE = "state.json"

logger = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """Rank 0 could not make a checkpoint; raised on the other ranks in its name."""


def save_checkpoint(
    root: Path,
    step: int,
    write: Callable[[Path], None],
    state: dict[str, Any],
    world: World,
    keep_last: int = 2,
    keep_every: int = 0,
    pinned: Collection[int] = (),
) -> Path:
    """Save ``root/step_N``; collective.

    Args:
        root: directory of the run's checkpoints, on a file system that all ranks share.
        step: optimizer steps taken, >= 0. A ``step_N`` that is there already is replaced.
        write: writes this rank's part into the directory it is given; called on every rank and
            collective itself (`TrainingEngine.save`).
        state: what else a resumed run needs, as JSON; rank 0's counts. See `load_state`.
        world: this process among the others.
        keep_last: how many checkpoints to keep, >= 1. Those of later steps are never removed.
        keep_every: keep those whose step is a multiple of this as well; 0 keeps no more.
        pinned: steps of checkpoints to keep as well. A pin is no file of its own: say in ``state``
            what the next save has to pin, and a kill cannot come between the two.

    Returns:
        The checkpoint's directory. The file ``root/latest`` holds its name.

    Raises:
        InputError: bad ``step``, ``keep_last`` or ``keep_every``, ranks that do not share ``root``,
            or a directory that cannot be written (a full disk). Earlier checkpoints are intact.
        CheckpointError: rank 0 failed, on all other ranks; rank 0 raises the error itself.
            A rank that fails in ``write`` raises at once without telling the others, which may
            be waiting for it inside ``write``: its end is what ends their wait, and the next save
            removes what they wrote.
    """
    require_in("[0, inf)", step=step, keep_every=keep_every)
    require_in("[1, inf)", keep_last=keep_last)
    final, partial = root / f"step_{step}", durable.temporary(root / f"step_{step}")
    others_write = False
    try:
        _on_main(world, lambda: _begin(root, partial))
        _require_shared(partial, world)
        others_write = world.size > 1
        write(partial)
        world.barrier()
        others_write = False
        _on_main(world, lambda: _finish(partial, final, state))
        _on_main(world, lambda: _remove_old(root, step, keep_last, keep_every, pinned))
    except BaseException as error:
        # A directory that goes while others write would make them blame a missing file.
        if world.is_main and not others_write:
            shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, Exception) and (reason := _why_unwritable(error)):
            raise InputError(
                f"the checkpoint {final} cannot be written ({reason}); free space there or mend "
                "the directory, and resume: earlier checkpoints are as they were"
            ) from error
        raise
    return final


def find_latest(root: Path) -> Path | None:
    """The newest checkpoint in ``root`` whose manifest verifies, or None; reads every byte of it.

    A damaged one is skipped with a warning that names the file and what is wrong with it.
    """
    for _, directory in reversed(_checkpoints(root)):
        try:
            verify_manifest(directory)
        except InputError as error:
            logger.warning("checkpoint %s is damaged and skipped: %s", directory, error)
            continue
        return directory
    return None


def load_state(directory: Path) -> dict[str, Any]:
    """The ``state`` that a checkpoint was saved with; `InputError` if it cannot be read."""
    path = directory / _STATE_FILE
    try:
        state = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); resume from another one") from None
    if not isinstance(state, dict):
        raise InputError(f"{path} holds no JSON object; resume from another checkpoint")
    return state


def _why_unwritable(error: Exception) -> str:
    """The file system's reason, if that is what ``error`` is about; else an empty string."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno) + (f": {error.filename}" if error.filename else "")
    # torch and safetensors write natively and have no error types for a file system.
    if isinstance(error, SafetensorError):
        return str(error)
    if "inline_container" in str(error):
        return "torch could not write all of a file; the disk may be full"
    return ""


def _on_main(world: World, action: Callable[[], None]) -> None:
    """Run on rank 0 and wait for it; its error is raised on every rank."""
    failure: Exception | None = None
    if world.is_main:
        try:
            action()
        except Exception as error:
            failure = error
    told = world.broadcast_object(f"{type(failure).__name__}: {failure}" if failure else "")
    if failure is not None:
        raise failure
    if told:
        raise CheckpointError(f"rank 0 could not save the checkpoint: {told}")


def _begin(root: Path, partial: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for path in root.iterdir():
        if path.is_dir() and _LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path)
    partial.mkdir()


def _require_shared(partial: Path, world: World) -> None:
    if not all(world.gather_objects(partial.is_dir())):
        raise InputError(
            f"{partial.parent} is not on a file system that all {world.size} ranks share; "
            "put the run's directory on one"
        )


def _finish(partial: Path, final: Path, state: dict[str, Any]) -> None:
    durable.write_json(partial / _STATE_FILE, state, indent=None)
    write_manifest(partial)
    durable.publish_directory(partial, final, replace=True)
    durable.write_text(final.parent / _LATEST_FILE, final.name + "\n")


def _remove_old(
    root: Path, step: int, keep_last: int, keep_every: int, pinned: Collection[int]
) -> None:
    past = [(number, directory) for number, directory in _checkpoints(root) if number <= step]
    for number, directory in past[:-keep_last]:
        if number not in pinned and (not keep_every or number % keep_every):
            durable.remove_directory(directory)


def _checkpoints(root: Path) -> list[tuple[int, Path]]:
    """Finished checkpoints by step; what is being written or removed is not among them."""
    if not root.is_dir():
        return []
    found = [
        (int(match.group(1)), path)
        for path in root.iterdir()
        if path.is_dir() and (match := _NAME.fullmatch(path.name))
    ]
    return sorted(found)
