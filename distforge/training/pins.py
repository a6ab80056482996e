"""Checkpoints that a run can go back to: which, whether they are whole, and the best weights in
them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from distforge import durable
from distforge.errors import InputError
from distforge.training.checkpoint import verify_checkpoint
from distforge.training.distributed import World


@dataclass(frozen=True)
class Pin:
    """A checkpoint that is kept to go back to: its number and the step of its weights."""

    number: int
    step: int


def require_whole(checkpoint: Path, world: World) -> None:
    """Read every byte of it; collective.

    Raises:
        InputError: on every rank, when it is damaged or gone, or this run did not write it.
    """
    problem = ""
    if world.is_main:
        try:
            verify_checkpoint(checkpoint)
        except (InputError, OSError) as error:
            problem = str(error)
    problem = world.broadcast_object(problem)
    if problem:
        raise InputError(
            f"the run cannot go back to {checkpoint}, which cannot be used ({problem}); restore it "
            "from a copy and resume, or start the run over"
        )


def take_up(held: Path, best: Path, world: World) -> None:
    """Make ``best`` a copy of what a checkpoint holds, if it holds any; collective.

    Killed in between, ``best`` may be absent: a run that resumes from that checkpoint comes here
    again.
    """
    if world.is_main and held.is_dir():
        partial = durable.temporary(best)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(held, partial)
        durable.publish_directory(partial, best, replace=True)
    world.barrier()
