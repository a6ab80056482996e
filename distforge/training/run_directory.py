"""A run's directory: held by one process at a time, never shared by two runs."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distforge import durable
from distforge.errors import InputError, require_name
from distforge.locks import Held, exclusive
from distforge.training.distributed import World, on_main
from distforge.training.outcome import OUTCOME_FILE
from distforge.training.previous import bring_back, set_aside
from distforge.training.run_inputs import INPUTS_RECORD, require_format

Existing = Literal["resume", "replace"]
Resume = Literal["auto", "off", "force"]
IDENTITY_FILE = "config.sha256"
# What the pipeline notes of a run; they may lie in a directory before the run claims it.
INPUTS_FILE, PIPELINE_FILE = "inputs.json", "pipeline.json"
CONFIG_FILE = "config.toml"
SUMMARY_FILE = "summary.json"
# A copy of the model that the run starts from, which that can be made of again.
CHAMPION_DIRECTORY = "champion"
_METRICS_FILE, _WANDB_FILES = "metrics.jsonl", {"wandb", "wandb.id"}
_NOTES = (INPUTS_FILE, PIPELINE_FILE)

# Whoever held the directory may still be ending, after a last save where the run is started again;
# one of another host that died is known dead by a network file system only after its lease (90 s).
_WAIT_SECONDS, _LEASE_SECONDS = 5.0, 120.0

logger = logging.getLogger(__name__)


class PlacedRun:
    """What of a run's configuration says where it goes, and whether it goes on.

    name: the run's name; its directory is ``output/name``.
    output: the folder that holds the run's directory.
    existing: "resume" continues an unfinished run of the same configuration found there; "replace"
        starts it over, finished or not, and keeps what was there, hidden next to it, until the new
        run has ended. Another run's directory is refused either way.
    resume: "auto", which launchers give when they start a run again, continues an unfinished run
        even where ``existing`` is "replace", and does not touch a finished one; "force" continues
        it although its data or its model are others now; "off" leaves it to ``existing``.
    """


@dataclass(frozen=True)
class RunDirectory:
    """A claimed directory; ``is_new`` unless it held this run before."""

    path: Path
    is_new: bool

    def release(self, world: World) -> None:
        """The run was refused: where nothing was done yet, leave things as they were."""
        if self.is_new and world.is_main:
            _withdraw(self.path)


def claim_run_directory(
    output: str,
    name: str,
    config_toml: str,
    identity: str,
    existing: Existing,
    world: World,
    resume: Resume = "off",
) -> RunDirectory:
    """Make or take over ``output/name`` for the run with this configuration; collective.

    Args:
        output, name: parent directory, and the run's name in [A-Za-z0-9._-].
        config_toml: the resolved configuration, written to config.toml.
        identity: hash of what makes two runs the same run.
        existing: what to do with a directory that holds this very run, see `Step1Config`. What is
            replaced is kept beside it, see `previous`.
        world: rank 0 writes, the others wait.
        resume: other than "off", this is started again, and must not start over what has begun: it
            replaces only where that was interrupted between stepping aside and beginning.

    Raises:
        InputError: a bad name, or a directory that holds something else, another run, one of a
            newer distforge, or (with "resume") this run finished. Nothing is touched then.
    """
    require_name("the run's name", name)
    directory = Path(output) / name

    def claim() -> bool:
        had_not_begun = bring_back(directory)
        replaces = existing == "replace" and (resume == "off" or had_not_begun)
        _check(directory, identity, "replace" if replaces else "resume")
        if replaces and (directory / IDENTITY_FILE).exists():
            set_aside(directory, is_finished)
        is_new = not (directory / IDENTITY_FILE).exists()
        directory.mkdir(parents=True, exist_ok=True)
        durable.write_text(directory / IDENTITY_FILE, identity + "\n")
        durable.write_text(directory / CONFIG_FILE, config_toml)
        return is_new

    return RunDirectory(directory, on_main(world, claim))


@contextmanager
def holding(
    directory: Path, world: World, what: str = "", *, is_again: bool = False
) -> Iterator[None]:
    """Inside, no other process works on ``directory``, which need not exist; collective.

    ``is_again``: this is started in the place of a process that may still be saving.

    Raises:
        InputError: on every rank, one sentence with who has it.
    """
    parent_is_new = world.is_main and not directory.parent.exists()
    try:
        with ExitStack() as stack:
            on_main(world, lambda: stack.enter_context(_patiently(directory, what, is_again)))
            yield
    finally:
        if parent_is_new:
            with suppress(OSError):  # it is not empty
                directory.parent.rmdir()


@contextmanager
def locked(directory: Path, what: str = "", wait: float = 0.0) -> Iterator[None]:
    """As `holding`, for one process alone that waits ``wait`` seconds; `Held`."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(lock_file(directory), what=what or str(directory), wait=wait):
        yield


def lock_file(directory: Path) -> Path:
    """What is locked while a process works on ``directory``."""
    return directory.with_name(f".{directory.name}.lock")


@contextmanager
def _patiently(directory: Path, what: str, is_again: bool) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(directory, what, _WAIT_SECONDS))
        except Held as held:
            there = held.holder is not None and held.holder.host != socket.gethostname()
            if not is_again and (held.by_file or not there):
                raise
            logger.warning("%s; waiting %g s for that", held, _LEASE_SECONDS)
            stack.enter_context(locked(directory, what, _LEASE_SECONDS))
        yield


def is_finished(directory: Path) -> bool:
    """Whether the run there has ended with a result."""
    return (directory / SUMMARY_FILE).exists()


def holds(directory: Path, identity: str) -> bool:
    """Whether it is the run with this configuration that lies there."""
    marker = directory / IDENTITY_FILE
    return marker.is_file() and marker.read_text("utf-8").strip() == identity


def is_unclaimed(directory: Path) -> bool:
    """Whether nothing lies in a directory but what is written before a run claims it."""
    return directory.is_dir() and _names(directory) <= _and_temporary(*_NOTES) | {
        durable.temporary(Path(IDENTITY_FILE)).name
    }


def withdraw(directory: Path) -> None:
    """Remove a directory in which nothing was done, if nobody works there: the run could not begin.

    What it would have replaced comes back. Whatever else lies there was worked for, and stays.
    """
    with suppress(Held), locked(directory):
        _withdraw(directory)


def _withdraw(directory: Path) -> None:
    files = (IDENTITY_FILE, CONFIG_FILE, INPUTS_RECORD, OUTCOME_FILE, _METRICS_FILE, *_NOTES)
    known = _and_temporary(*files, CHAMPION_DIRECTORY) | _WANDB_FILES
    metrics = directory / _METRICS_FILE
    worked = metrics.exists() and metrics.stat().st_size
    if directory.is_dir() and not worked and _names(directory) <= known:
        durable.remove_directory(directory)
    bring_back(directory)


def _names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def _and_temporary(*names: str) -> set[str]:
    return {*names, *(durable.temporary(Path(name)).name for name in names)}


def _check(directory: Path, identity: str, existing: Existing) -> None:
    """`InputError` where the directory cannot be taken."""
    elsewhere = "give another --name or --output"
    if not directory.exists() or is_unclaimed(directory):
        return
    if not directory.is_dir() or not (directory / IDENTITY_FILE).is_file():
        raise InputError(f"{directory} exists and is not a run of distforge; {elsewhere}")
    require_format(directory)
    if not holds(directory, identity):
        raise InputError(
            f"{directory} holds another run (see its {CONFIG_FILE}); {elsewhere}, or remove it "
            "if it is no longer needed"
        )
    if existing == "resume" and is_finished(directory):
        raise InputError(
            f"{directory} holds this run, finished (see its {SUMMARY_FILE}); {elsewhere}, or start "
            "it over with --existing replace"
        )
