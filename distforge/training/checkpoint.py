"""A run's checkpoints: the one place that turns a directory into a checkpoint.

A checkpoint ``step_N`` appears whole or not at all: it is written as ``step_N.tmp``, flushed,
listed in a manifest, signed, and renamed last. Killed at any moment, a run resumes from the newest
one whose manifest verifies. Every rank flushes and hashes what it wrote, while training goes on
where that takes long enough to be worth it.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial as partial_call
from pathlib import Path
from typing import Any

from distforge import durable
from distforge.errors import InputError, first_line, require_in
from distforge.registry.manifest import Entry, measure_file, verify_manifest
from distforge.training.distributed import World
from distforge.training.node_disks import first_by_disk, move_to_main, own_part, receives
from distforge.training.save_errors import (
    CheckpointError,
    explained,
    on_main,
    removed_on_error,
)
from distforge.training.signing import (
    ensure_key,
    how_to_trust,
    key_file,
    read_key,
    require_signed,
    sign_again,
    write_signed_manifest,
)

_NAME = re.compile(r"step_(\d+)")
# What a killed save leaves; ".old" in the middle is from before distforge.durable.
_LEFTOVER = re.compile(r"step_\d+(\.old|\.rank\d+)?\.tmp(\.old)?")
_LATEST_FILE = "latest"
_STATE_FILE = "state.json"

logger = logging.getLogger(__name__)


def begin_checkpoint(
    root: Path,
    step: int,
    write: Callable[[Path], Sequence[str] | None],
    state: dict[str, Any],
    world: World,
    keep_last: int = 2,
    keep_every: int = 0,
    pinned: Collection[int] = (),
) -> UnfinishedCheckpoint:
    """Write what ``root/step_N`` will hold, which `UnfinishedCheckpoint.finish` makes of it;
    collective.

    Once this returns, training may go on: what was written is no longer looked at in memory.

    Args:
        root: directory of the run's checkpoints. On nodes that do not see rank 0's it is used for
            what they write until that is there. The run's key (see `distforge.training.signing`)
            lies beside it, and is made where there is none.
        step: optimizer steps taken, >= 0. A ``step_N`` that is there already is replaced.
        write: writes this rank's part into the directory it is given; called on every rank and
            collective itself (`TrainingEngine.save`). It returns the files that this rank is to
            flush and hash, by their POSIX paths in the directory; what no rank names is rank 0's.
        state: what else a resumed run needs, as JSON; rank 0's counts. See `load_state`.
        world: this process among the others.
        keep_last: how many checkpoints to keep, >= 1. Those of later steps are never removed.
        keep_every: keep those whose step is a multiple of this as well; 0 keeps no more.
        pinned: steps of checkpoints to keep as well. A pin is no file of its own: say in ``state``
            what the next save has to pin, and a kill cannot come between the two.

    Raises:
        InputError: bad ``step``, ``keep_last`` or ``keep_every``, or a directory that cannot be
            written (a full disk). Earlier checkpoints are intact.
        CheckpointError: rank 0 failed, on all other ranks; rank 0 raises the error itself.
            A rank that fails in ``write`` raises at once without telling the others, which may
            be waiting for it inside ``write``: its end is what ends their wait, and the next save
            removes what they wrote.
    """
    require_in("[0, inf)", step=step, keep_every=keep_every)
    require_in("[1, inf)", keep_last=keep_last)
    final, partial = root / f"step_{step}", durable.temporary(root / f"step_{step}")
    with explained(final):
        with removed_on_error(partial, world):
            on_main(world, lambda: _begin(root, partial))
            first = first_by_disk(root, world)
            own = _place_of(partial, first, world)
        # A directory that goes while others write would make them blame a missing file.
        with removed_on_error(partial, world if world.size == 1 else None):
            mine = list(write(own) or ())
            if own != partial:  # what is moved is rank 0's from then on
                mine = []
            written = world.gather_objects(mine)
        with removed_on_error(partial, world):
            move_to_main(own, partial, first, world)
            on_main(world, lambda: durable.write_json(partial / _STATE_FILE, state, indent=None))
            if world.is_main:
                others = {name for names in written[1:] for name in names}
                mine = [name for name in _files(partial) if name not in others]
    remove_old = partial_call(_remove_old, root, step, keep_last, keep_every, pinned)
    return UnfinishedCheckpoint(final, partial, mine, world, remove_old)


class UnfinishedCheckpoint:
    """A checkpoint whose files are written, but not yet flushed, hashed and given their name.

    Every rank flushes and hashes its own. Killed before `finish`, a run resumes from the checkpoint
    before this one.

    Attributes:
        size: bytes of all files on all ranks.
    """

    def __init__(
        self,
        final: Path,
        partial: Path,
        mine: list[str],
        world: World,
        remove_old: Callable[[], None],
    ) -> None:
        self._final, self._partial, self._mine, self._world = final, partial, mine, world
        self._remove_old = remove_old
        self._hashing: Future[list[Entry]] | None = None
        own = sum((partial / name).stat().st_size for name in mine)
        self.size = sum(world.gather_objects(own))

    def hash_meanwhile(self) -> None:
        """Flush and hash in a thread, while this one goes on."""
        pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._hashing = pool.submit(self._hash)
        pool.shutdown(wait=False)

    def is_hashed(self) -> bool:
        """Whether `finish` would wait on no rank; collective."""
        return all(self._world.gather_objects(self._hashing is not None and self._hashing.done()))

    def finish(self) -> Path:
        """Sign it, give it its name, remove older ones; collective.

        Returns the checkpoint's directory. The file ``latest`` beside it holds its name.

        Raises:
            InputError, CheckpointError: as `begin_checkpoint`.
        """
        world, entries, failure = self._world, [], None
        with explained(self._final), removed_on_error(self._partial, world):
            try:
                entries = self._hashing.result() if self._hashing else self._hash()
            except OSError as error:
                failure = error
            told = world.gather_objects([entries, str(failure or "")])
            if failure is not None:
                raise failure
            for rank, (_, fault) in enumerate(told):
                if fault:
                    raise CheckpointError(f"rank {rank} could not save the checkpoint: {fault}")
            known = [entry for own, _ in told for entry in own]
            on_main(world, lambda: _publish(self._partial, self._final, known))
            on_main(world, self._remove_old)
        return self._final

    def _hash(self) -> list[Entry]:
        return [measure_file(self._partial, name) for name in self._mine]


def find_latest(root: Path) -> Path | None:
    """The newest checkpoint in ``root`` that this run wrote and whose manifest verifies, or None;
    reads every byte of it.

    Another one is skipped with a warning that says what is wrong with it.

    Raises:
        InputError: there are checkpoints, but no key to know them by, or one that cannot be used.
    """
    found = _checkpoints(root)
    if found and read_key(root) is None:
        raise InputError(
            f"{key_file(root)} is missing, so nothing shows that this run wrote {found[-1][1]}; "
            f"{how_to_trust(root)}, and resume"
        )
    for _, directory in reversed(found):
        try:
            verify_checkpoint(directory)
        except (InputError, OSError) as error:
            logger.warning("checkpoint %s is skipped: %s", directory, error)
            continue
        return directory
    return None


def remove_checkpoints(root: Path) -> None:
    """Remove all of ``root``, when what they led to is kept; ``latest`` still tells the last one's
    name."""
    for _, directory in _checkpoints(root):
        durable.remove_directory(directory)


def verify_checkpoint(directory: Path) -> None:
    """Read every byte of a checkpoint.

    Raises:
        InputError: it is damaged or gone, or this run did not write it.
        OSError: it cannot be read.
    """
    key = read_key(directory.parent)
    if key is None:
        raise InputError(
            f"{key_file(directory.parent)} is missing; {how_to_trust(directory.parent)}"
        )
    require_signed(directory, key)
    verify_manifest(directory)


def trust_checkpoints(root: Path) -> list[tuple[Path, str]]:
    """Sign the checkpoints in ``root`` as they are; each, and why it could not be signed, if so."""
    key, outcome = ensure_key(root), []
    for _, directory in _checkpoints(root):
        try:
            sign_again(directory, key)
            outcome.append((directory, ""))
        except InputError as error:
            outcome.append((directory, str(error)))
    return outcome


def load_state(directory: Path) -> dict[str, Any]:
    """The ``state`` that a checkpoint was saved with; `InputError` if it cannot be read."""
    path = directory / _STATE_FILE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({first_line(error)}); resume from another one"
        ) from None
    if not isinstance(state, dict):
        raise InputError(f"{path} holds no JSON object; resume from another checkpoint")
    return state


def _begin(root: Path, partial: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(root)
    ensure_key(root)
    partial.mkdir()


def _place_of(partial: Path, first: Sequence[int], world: World) -> Path:
    """Where this rank writes what is to lie in ``partial``; collective."""
    if receives(first, world):
        _remove_leftovers(partial.parent)
    return own_part(partial, first, world)


def _remove_leftovers(root: Path) -> None:
    for path in root.iterdir():
        if path.is_dir() and _LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path)


def _files(partial: Path) -> list[str]:
    found = (path for path in partial.rglob("*") if path.is_file())
    return sorted(path.relative_to(partial).as_posix() for path in found)


def _publish(partial: Path, final: Path, known: list[Entry]) -> None:
    write_signed_manifest(partial, final.name, ensure_key(final.parent), known)
    flushed = {partial / entry["path"] for entry in known}
    durable.publish_directory(partial, final, replace=True, flushed=flushed)
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
