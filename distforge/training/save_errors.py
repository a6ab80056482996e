"""What goes wrong in a save: said on every rank, in the user's words, with nothing half left."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from distforge.errors import InputError, explain_file_error
from distforge.training.distributed import World, ask_main


class CheckpointError(RuntimeError):
    """Rank 0 could not make a checkpoint; raised on the other ranks in its name."""


@contextmanager
def explained(final: Path) -> Iterator[None]:
    """What the file system refuses inside is an `InputError`."""
    try:
        yield
    except Exception as error:
        reason = _why_unwritable(error)
        if not reason:
            raise
        raise InputError(
            f"the checkpoint {final} cannot be written ({reason}); free space there or fix "
            "the directory, and resume: earlier checkpoints are as they were"
        ) from error


@contextmanager
def removed_on_error(partial: Path, world: World | None) -> Iterator[None]:
    """After an error inside nothing is left; rank 0 of ``world`` removes it, if one is given."""
    try:
        yield
    except BaseException:
        if world is not None and world.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        raise


def on_main(world: World, action: Callable[[], None]) -> None:
    """Run on rank 0 and wait for it; its error is raised on every rank."""
    _, failure, told = ask_main(world, action)
    if failure is not None:
        raise failure
    if told:
        raise CheckpointError(f"rank 0 could not save the checkpoint: {told}")


def _why_unwritable(error: Exception) -> str:
    """The file system's reason, if that is what ``error`` is about; else an empty string."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno) + (f": {error.filename}" if error.filename else "")
    # torch and safetensors write natively and have no error types for a file system.
    if isinstance(error, SafetensorError):
        return str(error)
    if explain_file_error(error):
        return "torch could not write all of a file; the disk may be full"
    return ""
